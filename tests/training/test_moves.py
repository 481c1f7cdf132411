import math

import pytest
import torch
from torch.nn import functional as F

from styleapp.training.moves import followed, motion, move, random_motion

SIZE = 96
MOTIONS = [motion(SIZE), motion(SIZE, 0, 3, -5), motion(SIZE, 0.5), motion(SIZE, -0.7, 4, 4)]


def test_half_of_the_motions_shift_by_whole_pixels():
    torch.manual_seed(0)
    drawn = torch.cat([random_motion(SIZE) for _ in range(200)])
    straight = drawn[:, 0, 1] == 0
    assert 70 < straight.sum() < 130
    pixels = drawn[..., 2] * SIZE / 2
    assert (pixels - pixels.round()).abs().max() < 1e-4 and set(pixels.round().flatten().tolist()) == set(range(-8, 9))
    angles = torch.atan2(drawn[:, 1, 0], drawn[:, 0, 0])
    assert angles.abs().max() <= math.pi / 4 and (angles.abs() > 0.5).any()


def test_a_shift_moves_pixels_and_a_quarter_turn_turns_them():
    image = torch.rand(2, 3, SIZE, SIZE)
    shifted = move(image, motion(SIZE, down=3, right=-5))
    assert torch.allclose(shifted[..., :-3, 5:], image[..., 3:, :-5], atol=1e-4)
    assert torch.allclose(move(image, motion(SIZE, math.pi / 2)), image.rot90(1, (2, 3)), atol=1e-3)


@pytest.mark.parametrize("where", MOTIONS)
def test_what_follows_the_photo_costs_little_and_what_follows_the_grid_costs_much(where):
    photo = F.interpolate(torch.rand(1, 3, SIZE // 4, SIZE // 4), (SIZE, SIZE), mode="bicubic").clamp(0, 1)
    dots = F.pad(torch.ones(1, 1, 2, 2), (3, 3, 3, 3)).repeat(1, 1, SIZE // 8, SIZE // 8)

    def inverted(x: torch.Tensor) -> torch.Tensor:
        return 1 - x

    def dotted(x: torch.Tensor) -> torch.Tensor:
        return 0.5 * x + dots

    little = followed(photo, inverted(photo), where, inverted)
    much = followed(photo, dotted(photo), where, dotted)
    assert little.shape == (1,) and little < 0.02
    if not torch.equal(where, motion(SIZE)):
        assert much > 0.5


def test_several_pictures_of_each_photo_and_gradients_to_them_alone():
    photo, picture = torch.rand(2, 3, SIZE, SIZE), torch.rand(4, 3, SIZE, SIZE, requires_grad=True)
    weight = torch.ones((), requires_grad=True)
    loss = followed(photo, picture, motion(SIZE, 0.3), lambda moved: weight * moved.repeat(2, 1, 1, 1))
    assert loss.shape == (4,)
    loss.sum().backward()
    assert picture.grad is not None and picture.grad.abs().sum() > 0 and weight.grad is None
