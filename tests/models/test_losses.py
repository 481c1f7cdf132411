import pytest
import torch
from torch.nn import functional as F

from styleapp.models.losses import _local_mean, equivariance_loss, grid_loss, range_loss


def noise(seed: int) -> torch.Tensor:
    return torch.rand(1, 3, 192, 200, generator=torch.Generator().manual_seed(seed))


def test_detail_that_knows_nothing_of_the_grid_costs_nothing():
    smooth = F.avg_pool2d(noise(1), 3, 1)
    assert grid_loss(torch.cat([noise(0), noise(2)])).max() < 0.02 and grid_loss(smooth) < 0.05
    assert grid_loss(torch.full((2, 3, 64, 64), 0.5)).abs().max() < 1e-3


def test_a_pattern_that_is_the_same_in_every_cell():
    tile = torch.rand(1, 3, 8, 8)
    repeated = tile.repeat(1, 1, 24, 25)
    assert grid_loss(repeated) > 0.8
    other_period = F.interpolate(tile, (9, 9)).repeat(1, 1, 22, 23)
    assert grid_loss(other_period) < 0.3 * grid_loss(repeated)


def test_detail_that_is_stronger_at_the_borders_of_cells():
    """Its signs differ from cell to cell, so that its mean is 0."""
    at_the_border = torch.zeros(8, 8)
    at_the_border[0] = at_the_border[:, 0] = 1
    signs = (torch.rand(1, 1, 24, 25) > 0.5).float() * 2 - 1
    picture = 0.5 + 0.3 * at_the_border.repeat(24, 25) * F.interpolate(signs, scale_factor=8.0)
    assert grid_loss(picture) > 0.5


def test_faint_dots_in_a_calm_part_of_a_busy_picture():
    """At one place of some cells of 4x4 pixels, a twentieth of the contrast that the rest has."""
    busy = noise(3)
    busy[..., :96, :] = 0.5
    dots = (torch.rand(1, 1, 24, 50, generator=torch.Generator().manual_seed(4)) < 0.3).float()
    dots = F.pad(dots.repeat_interleave(4, 2).repeat_interleave(4, 3), (0, 0, 0, 96))
    one_place = F.pad(torch.ones(1, 1, 2, 2), (1, 1, 1, 1)).repeat(1, 1, 48, 50)
    assert grid_loss(busy - 0.05 * dots * one_place) > 10 * grid_loss(busy)


def test_what_is_beyond_black_and_white_costs_its_square():
    picture = torch.rand(2, 3, 5, 7)
    assert range_loss(picture).tolist() == [0, 0]
    picture[1, 0, 0, 0], picture[1, 1, 2, 3] = 1.5, -2.0
    assert range_loss(picture).tolist() == pytest.approx([0, (0.25 + 4) / 105])


def test_each_sample_by_itself_and_any_size_at_least_a_cell():
    both = grid_loss(torch.cat([noise(0), torch.rand(1, 3, 8, 8).repeat(1, 1, 24, 25)]))
    assert both.shape == (2,) and both[1] > 10 * both[0]
    assert grid_loss(torch.rand(3, 3, 17, 30)).isfinite().all()


def test_it_can_be_trained_away():
    picture = (
        0.5 + 0.1 * torch.rand(1, 1, 8, 8).repeat(1, 3, 12, 12) + 0.05 * torch.rand(1, 3, 96, 96)
    ).requires_grad_()
    before = grid_loss(picture).item()
    optimizer = torch.optim.Adam([picture], lr=5e-3)
    for _ in range(50):
        optimizer.zero_grad()
        grid_loss(picture).sum().backward()
        optimizer.step()
    assert grid_loss(picture).item() < 0.3 * before


def test_the_same_detail_costs_nothing_whatever_lies_below_it_and_other_detail_one():
    slope = torch.linspace(0, 1, 200).expand(1, 3, 192, 200)
    assert equivariance_loss(noise(0), 0.5 * noise(0) + slope) < 0.01
    assert equivariance_loss(noise(0), noise(1)) == pytest.approx(1.0, abs=0.05)


def test_details_are_compared_inside_alone():
    inside = torch.zeros(1, 1, 192, 200)
    inside[..., :96, :] = 1
    half = torch.cat([noise(0)[..., :104, :], noise(1)[..., 104:, :]], 2)
    both = equivariance_loss(torch.cat([half, noise(2)]), torch.cat([noise(0), noise(0)]), inside)
    assert both.shape == (2,) and both[0] < 0.02 and both[1] > 0.9
    assert equivariance_loss(half, noise(0)) > 0.3


@pytest.mark.parametrize("size", [5, 9, 17])
def test_the_local_mean_is_that_over_the_square(size):
    x = torch.rand(2, 3, 20, 31)
    square = F.avg_pool2d(x, size, 1, size // 2, count_include_pad=False)
    torch.testing.assert_close(_local_mean(x, size), square)
