import torch

from styleapp.models import StyleCode
from styleapp.training.pairs import paired, tiled, where


def codes(*values: float) -> StyleCode:
    gamma = torch.tensor(values).view(-1, 1, 1, 1)
    return StyleCode(gamma, -gamma)


def test_every_photo_meets_another_painting_in_each_block():
    assert tiled(codes(1, 2, 3), 2).gamma.flatten().tolist() == [1, 2, 3, 1, 2, 3]
    found = paired(codes(1, 2, 3), 2)
    assert found.gamma.flatten().tolist() == [1, 2, 3, 2, 3, 1]
    assert found.beta.flatten().tolist() == [-1, -2, -3, -2, -3, -1]
    assert paired(codes(1, 2, 3), 2, 1).gamma.flatten().tolist() == [2, 3, 1, 3, 1, 2]


def test_where_chooses_sample_by_sample():
    mask = torch.tensor([True, False]).view(2, 1, 1, 1)
    chosen = where(mask, codes(1, 2), codes(3, 4))
    assert chosen.gamma.flatten().tolist() == [1, 4] and chosen.beta.flatten().tolist() == [-1, -4]
