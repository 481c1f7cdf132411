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
    made.predictor.probe.uniform_()
    return made.requires_grad_(False)


def seen_by(network: Stylizer, image: torch.Tensor) -> StyleCode:
    return StyleCode.join([code_from_moments(moments(f)) for f in network.encoder.features(image)])


def test_an_untrained_predictor_leaves_the_measured_code(network):
    image = torch.rand(1, 3, 40, 48)
    found, network.predictor = network.measure(image), None
    measured = network.measure(image)
    assert torch.equal(found.gamma, measured.gamma) and torch.equal(found.beta, measured.beta)


def logarithms(code: StyleCode) -> torch.Tensor:
    return torch.cat([code.gamma.double().log(), (code.beta.double() + 0.01).log()], 1)[..., 0, 0]


def gelu(x: torch.Tensor) -> torch.Tensor:
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def changed(measured: StyleCode, change: torch.Tensor) -> StyleCode:
    a, b = (3 * torch.tanh(change[..., None, None] / 3)).chunk(2, 1)
    return StyleCode(measured.gamma * a.exp(), measured.beta + measured.gamma * b)


def test_the_formula_in_float64(network):
    image = torch.rand(2, 3, 40, 48)
    predictor = network.predictor
    seen = seen_by(network, torch.rand(6, 3, 32, 32))
    predictor.standardize(seen)
    for layer in (predictor.last, predictor.correct):
        torch.nn.init.normal_(layer.weight, std=0.3)
    found = network.measure(image)
    measured, of_image = network.measured(network.encoder(image)), seen_by(network, image)

    over = logarithms(seen)
    mean, scale = over.mean(0), over.std(0) + 0.1
    z = ((logarithms(of_image) - mean) / scale).clamp(-4, 4)
    w1, b1 = (t.double() for t in (predictor.first.weight, predictor.first.bias))
    w2, b2 = (t.double() for t in (predictor.last.weight, predictor.last.bias))
    v1, c1 = (t.double() for t in (predictor.look.weight, predictor.look.bias))
    change = gelu(z @ w1.T + b1) @ w2.T + b2
    guess = changed(measured, change)
    made = [  # of the probe in each of the two codes, one after the other
        seen_by(network, network(predictor.probe, StyleCode(g[None].float(), b[None].float())))
        for g, b in zip(guess.gamma, guess.beta, strict=True)
    ]
    error = torch.cat([logarithms(code) for code in made]) - logarithms(of_image)
    x = torch.cat([z, (error / scale).clamp(-4, 4)], 1)
    wanted = changed(measured, change + gelu(x @ v1.T + c1) @ predictor.correct.weight.double().T)
    assert torch.allclose(found.gamma.double(), wanted.gamma, rtol=1e-3)
    assert torch.allclose(found.beta.double(), wanted.beta, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(wanted.gamma, guess.gamma, rtol=0.05)
    assert not torch.allclose(guess.gamma, measured.gamma.double(), rtol=0.05)


def test_each_painting_is_predicted_by_itself(network):
    """However many are measured at once."""
    for layer in (network.predictor.last, network.predictor.correct):
        torch.nn.init.normal_(layer.weight, std=0.3)
    images = torch.rand(3, 3, 40, 48)
    together = network.measure(images)
    for i in range(3):
        alone = network.measure(images[i : i + 1])
        assert torch.allclose(together.gamma[i : i + 1], alone.gamma, rtol=1e-3)
        assert torch.allclose(together.beta[i : i + 1], alone.beta, rtol=1e-3, atol=1e-4)


def test_what_is_hidden_does_not_count(network):
    torch.nn.init.normal_(network.predictor.last.weight, std=0.3)
    torch.nn.init.normal_(network.predictor.correct.weight, std=0.3)
    image = torch.rand(1, 3, 64, 64)
    everywhere = network.measure(image, torch.ones(1, 1, 64, 64))
    assert torch.allclose(everywhere.gamma, network.measure(image).gamma, rtol=1e-4)
    half = torch.ones(1, 1, 64, 64)
    half[..., 32:] = 0
    assert not torch.allclose(network.measure(image, half).gamma, everywhere.gamma, rtol=0.01)


def test_a_sheet_of_one_colour_has_a_code_too(network):
    torch.nn.init.normal_(network.predictor.last.weight, std=10.0)
    torch.nn.init.normal_(network.predictor.correct.weight, std=10.0)
    for value in (0.0, 0.5, 1.0):
        code = network.measure(torch.full((1, 3, 32, 32), value))
        assert code.gamma.isfinite().all() and code.beta.isfinite().all() and (code.gamma > 0).all()
