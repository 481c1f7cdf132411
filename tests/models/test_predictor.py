"""Codes for paintings that no table has."""

import math

import pytest
import torch
from conftest import TINY_VGG, alive

from styleapp.models import CodePredictor, Decoder, Encoder, StyleCode, Stylizer, code_from_moments
from styleapp.norms import moments


@pytest.fixture
def network() -> Stylizer:
    torch.manual_seed(5)
    made = alive(Stylizer(Encoder(TINY_VGG), Decoder(16), conditional=True))
    made.predictor = CodePredictor(sum(made.encoder.layer_channels.values()), made.code_channels, hidden=8)
    return made


def seen_by(network: Stylizer, image: torch.Tensor) -> StyleCode:
    return StyleCode.join([code_from_moments(moments(f)) for f in network.encoder.features(image)])


def test_an_untrained_predictor_leaves_the_measured_code(network):
    image = torch.rand(1, 3, 40, 48)
    found, network.predictor = network.measure(image), None
    measured = network.measure(image)
    assert torch.equal(found.gamma, measured.gamma) and torch.equal(found.beta, measured.beta)


def test_the_formula_in_float64(network):
    image = torch.rand(2, 3, 40, 48)
    predictor = network.predictor
    seen = seen_by(network, torch.rand(6, 3, 32, 32))
    predictor.standardize(seen)
    torch.nn.init.normal_(predictor.last.weight, std=0.3)
    found, network.predictor = network.measure(image), None
    measured, of_image = network.measure(image), seen_by(network, image)

    def logarithms(code: StyleCode) -> torch.Tensor:
        return torch.cat([code.gamma.double().log(), (code.beta.double() + 0.01).log()], 1)[..., 0, 0]

    over = logarithms(seen)
    z = ((logarithms(of_image) - over.mean(0)) / (over.std(0) + 0.1)).clamp(-4, 4)
    first, last = predictor.first.double(), predictor.last.double()
    x = z @ first.weight.T + first.bias
    x = 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))
    a, b = (3 * torch.tanh((x @ last.weight.T + last.bias)[..., None, None] / 3)).chunk(2, 1)
    assert torch.allclose(found.gamma.double(), measured.gamma * a.exp(), rtol=1e-4)
    assert torch.allclose(found.beta.double(), measured.beta + measured.gamma * b, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found.gamma, measured.gamma, rtol=0.05)


def test_what_is_hidden_does_not_count(network):
    torch.nn.init.normal_(network.predictor.last.weight, std=0.3)
    image = torch.rand(1, 3, 64, 64)
    everywhere = network.measure(image, torch.ones(1, 1, 64, 64))
    assert torch.allclose(everywhere.gamma, network.measure(image).gamma, rtol=1e-4)
    half = torch.ones(1, 1, 64, 64)
    half[..., 32:] = 0
    assert not torch.allclose(network.measure(image, half).gamma, everywhere.gamma, rtol=0.01)


def test_a_sheet_of_one_colour_has_a_code_too(network):
    torch.nn.init.normal_(network.predictor.last.weight, std=10.0)
    for value in (0.0, 0.5, 1.0):
        code = network.measure(torch.full((1, 3, 32, 32), value))
        assert code.gamma.isfinite().all() and code.beta.isfinite().all() and (code.gamma > 0).all()
