"""Codes made better by gradient steps."""

import pytest
import torch
from conftest import TINY_VGG, alive

from styleapp.models import CodePredictor, Decoder, Encoder, ShiftPredictor, StyleCode, Stylizer
from styleapp.models.losses import grid_loss
from styleapp.models.refine import code_losses, refined
from styleapp.models.stylizer import FAR_STEPS, TOLD_REFINEMENT


@pytest.fixture
def network() -> Stylizer:
    torch.manual_seed(5)
    made = alive(Stylizer(Encoder(TINY_VGG), Decoder(16), conditional=True))
    made.predictor = CodePredictor(sum(made.encoder.layer_channels.values()), made.code_channels, hidden=8)
    made.predictor.probe.uniform_()
    return made.eval().requires_grad_(False)


@pytest.fixture
def photo() -> torch.Tensor:
    return torch.rand(1, 3, 32, 40, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def paintings() -> torch.Tensor:
    return torch.rand(2, 3, 40, 32, generator=torch.Generator().manual_seed(2)) ** 3


def wanted_of(network: Stylizer, image: torch.Tensor) -> list[StyleCode]:
    return [network.code_of(f) for f in network.encoder.features(image)]


def equal(a: StyleCode, b: StyleCode) -> bool:
    return torch.equal(a.gamma, b.gamma) and torch.equal(a.beta, b.beta)


def test_one_step(network, photo, paintings):
    """The first step of Adam is ``lr`` against the sign of the gradient, which differences of the loss tell too."""
    painting, checked = paintings[:1], 0
    network.decoder.get_submodule(network.decoder.names[-1]).weight *= 0.1  # within black and white
    wanted = wanted_of(network, painting)
    code = network.measured(network.encoder(painting))
    found = refined(network, code, wanted, [photo], steps=1, lr=0.01, style_weight=3.0)

    def loss(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        seen = network.encode(photo)
        changed = StyleCode(code.gamma * a.exp(), code.beta + code.gamma * b)
        content, style, _ = code_losses(network, photo, seen, changed, wanted)
        return content + 3.0 * style

    for k in range(0, network.code_channels, 7):
        for first in (True, False):
            nudge = torch.zeros_like(code.gamma)
            nudge[:, k] = 1e-3
            still = torch.zeros_like(nudge)
            up, down = (loss(*((s * nudge, still) if first else (still, s * nudge))) for s in (1, -1))
            slope = float(up - down) / 2e-3
            if abs(slope) < 0.05:  # rounding decides
                continue
            checked += 1
            step = -0.01 if slope > 0 else 0.01
            got = (found.gamma / code.gamma).log() if first else (found.beta - code.beta) / code.gamma
            assert float(got[:, k]) == pytest.approx(step, rel=1e-2)
    assert checked > 5


def test_a_damped_step(network, photo, paintings):
    """lr · g / (|g| + rms of all g), for each code by itself."""
    code, wanted = network.measured(network.encoder(paintings)), wanted_of(network, paintings)
    a, b = (torch.zeros_like(t, requires_grad=True) for t in (code.gamma, code.beta))
    changed = StyleCode(code.gamma * a.exp(), code.beta + code.gamma * b)
    content, style, picture = code_losses(network, photo, network.encode(photo), changed, wanted)
    loss = content + style + 50 * grid_loss(picture)
    gradient = torch.stack(torch.autograd.grad(loss.sum(), (a, b)))
    expected = -0.01 * gradient / (gradient.abs() + gradient.square().mean((0, 2, 3, 4), keepdim=True).sqrt())
    weights = {"style_weight": 1.0, "grid_weight": 50.0}
    found = refined(network, code, wanted, [photo], steps=1, lr=0.01, damping=1.0, **weights)
    assert not torch.allclose(loss, content + style, rtol=0.01)
    moved = torch.stack([(found.gamma / code.gamma).log(), (found.beta - code.beta) / code.gamma])
    torch.testing.assert_close(moved, expected, rtol=1e-3, atol=1e-5)


def test_losses_fall_and_the_network_stays(network, photo, paintings):
    before = {k: v.clone() for k, v in network.state_dict().items()}
    wanted = wanted_of(network, paintings)
    code = network.measure(paintings)
    told: list[int] = []
    found = refined(network, code, wanted, [photo], steps=20, progress=lambda step, loss, code: told.append(step))
    losses = [sum(code_losses(network, photo, network.encode(photo), c, wanted)[:2]) for c in (code, found)]
    assert (losses[1] < losses[0]).all()
    assert told == list(range(1, 21))
    assert not found.gamma.requires_grad
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


def test_each_code_by_itself(network, photo, paintings):
    wanted = wanted_of(network, paintings)
    code = network.measure(paintings)
    together = refined(network, code, wanted, [photo, photo.flip(-1)], steps=4)
    for i in range(2):
        one, goal = ([StyleCode(c.gamma[i : i + 1], c.beta[i : i + 1]) for c in codes] for codes in ([code], wanted))
        alone = refined(network, one[0], goal, [photo, photo.flip(-1)], steps=4)
        # Not for all: the sign of a gradient of next to nothing is an accident.
        assert torch.isclose(alone.gamma, together.gamma[i : i + 1], rtol=1e-3).float().mean() > 0.9
        assert torch.isclose(alone.beta, together.beta[i : i + 1], rtol=1e-3, atol=1e-3).float().mean() > 0.9


AS_MEASURED = {"steps": 3, "lr": 0.115, "style_weight": 2.0, "damping": 6.0}


def test_measuring_refines_where_there_is_a_predictor(network, paintings):
    predicted, found = network.measure(paintings), network.measure(paintings, refine=3)
    assert equal(predicted, network.measure(paintings, refine=0))
    wanted = wanted_of(network, paintings)
    assert equal(found, refined(network, predicted, wanted, [network.predictor.probe], **AS_MEASURED))
    assert not torch.allclose(found.gamma, predicted.gamma, rtol=0.01)
    network.predictor = None
    assert equal(network.measure(paintings, refine=3), network.measure(paintings))


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_the_same_again_in_any_mode(network, paintings, mode):
    outside = network.measure(paintings, refine=3)
    with mode():
        assert equal(network.measure(paintings, refine=3), outside)


def test_what_is_hidden_does_not_count(network, paintings):
    image = paintings[:1]
    everywhere = network.measure(image, torch.ones(1, 1, *image.shape[-2:]), refine=3)
    half = torch.ones(1, 1, *image.shape[-2:])
    half[..., 16:] = 0
    whole, part = network.measure(image, refine=3), network.measure(image, half, refine=3)
    assert torch.isclose(everywhere.gamma, whole.gamma, rtol=1e-2).float().mean() > 0.9
    assert torch.isclose(part.gamma, whole.gamma, rtol=1e-2).float().mean() < 0.5


def test_in_bfloat16(network, paintings):
    exact = network.measure(paintings, refine=4)
    network.encoder.bfloat16(), network.decoder.bfloat16()
    found = network.measure(paintings, refine=4)
    assert found.gamma.dtype == torch.float32
    assert ((found.gamma - exact.gamma).abs() / exact.gamma).median() < 0.1


def test_a_sheet_of_one_colour(network):
    for value in (0.0, 0.5, 1.0):
        code = network.measure(torch.full((1, 3, 32, 32), value), refine=5)
        assert code.gamma.isfinite().all() and code.beta.isfinite().all() and (code.gamma > 0).all()


class TestTold:
    """Of an AdaIN decoder what it is told changes, and nothing else."""

    @pytest.fixture
    def told(self) -> Stylizer:
        torch.manual_seed(5)
        decoder = Decoder(16, upsampling="bilinear")
        made = alive(Stylizer(Encoder(TINY_VGG), decoder, shifts=ShiftPredictor(18, sum(decoder.hidden.values()))))
        torch.nn.init.normal_(made.shifts.last.weight, std=0.02)
        made.shifts.probes.uniform_()
        return made

    def test_the_first_step_is_a_share_of_the_layers_deviation(self, told, photo, paintings):
        code, wanted = told.measure(paintings), wanted_of(told, paintings)
        found = refined(told, code, wanted, [photo], steps=1, lr=0.01)
        assert torch.equal(found.gamma, code.gamma) and torch.equal(found.beta[:, :16], code.beta[:, :16])
        step, parts = StyleCode(found.gamma, found.beta - code.beta).split(told.parts), code.split(told.parts)
        target = told.apply_code(told.encoder(photo).expand(2, -1, -1, -1), parts["relu4_1"])
        for name in told.decoder.hidden:
            y = told.decoder(target, until=name, shifts=told.told(parts))
            wanted_step = 0.01 * y.std((1, 2, 3), keepdim=True)
            size = step[name].beta.abs()
            assert (size <= wanted_step * 1.001).all()
            moved = size > 0.01 * wanted_step  # the others are behind a ReLU that gives nothing
            assert moved.float().mean() > 0.5
            assert torch.isclose(size, wanted_step.expand_as(size), rtol=0.01)[moved].float().mean() > 0.9

    def test_losses_fall_and_the_network_stays(self, told, photo, paintings):
        before = {k: v.clone() for k, v in told.state_dict().items()}
        code, wanted = told.measure(paintings), wanted_of(told, paintings)
        found = refined(told, code, wanted, [photo], steps=20, lr=0.05)
        content, style = (
            [code_losses(told, photo, told.encode(photo), c, wanted)[k] for c in (code, found)] for k in (0, 1)
        )
        assert (content[1] + style[1] < content[0] + style[0]).all()
        assert told.takes(found)
        assert all(torch.equal(v, before[k]) for k, v in told.state_dict().items())

    def test_measuring_refines_on_its_probe(self, told, paintings):
        predicted, found = told.measure(paintings), told.measure(paintings, refine=3)
        wanted = wanted_of(told, paintings)
        assert equal(found, refined(told, predicted, wanted, told.probes.split(1), steps=3, **TOLD_REFINEMENT))
        assert equal(found, told.predicted(wanted, refine=3)) and not equal(found, predicted)
        with torch.inference_mode():
            assert equal(told.measure(paintings, refine=3), found)
        assert [told.steps(n) for n in (0, 3, None)] == [0, 3, FAR_STEPS]
        told.shifts = None
        assert told.steps(3) == 0 and told.probes is None and told.measure(paintings, refine=3).num_channels == 16

    @pytest.mark.parametrize(("bound", "steps"), [(0.0, 5), (1e9, 2)])
    def test_what_is_far_off_takes_more_steps(self, told, paintings, monkeypatch, bound, steps):
        """Each painting its own, whatever is measured beside it."""
        for name, value in (("TOLD_STEPS", 2), ("FAR_STEPS", 5), ("FAR", bound)):
            monkeypatch.setattr(f"styleapp.models.stylizer.{name}", value)
        wanted, taken = wanted_of(told, paintings), []
        found = told.predicted(wanted, None, lambda: taken.append(1))
        assert len(taken) == steps * len(paintings)
        each = zip(told.predicted(wanted).each(), zip(*(c.each() for c in wanted), strict=True), strict=True)
        probes = told.probes.split(1)
        alone = [refined(told, one, of_one, probes, steps=steps, **TOLD_REFINEMENT) for one, of_one in each]
        assert equal(found, StyleCode(torch.cat([c.gamma for c in alone]), torch.cat([c.beta for c in alone])))

    def test_steps_may_depend_on_the_first_picture(self, told, paintings):
        asked: list[float] = []
        wanted, code = wanted_of(told, paintings), told.measure(paintings)
        photo = told.probes[:1]

        def steps(style: float) -> int:
            asked.append(style)
            return 4

        found = refined(told, code, wanted, [photo], steps=steps)
        assert equal(found, refined(told, code, wanted, [photo], steps=4))
        style = code_losses(told, photo, told.encode(photo), code, wanted)[1]
        assert asked == pytest.approx([float(style.max())], rel=1e-4)

    def test_codes_are_told_apart(self, told, network, paintings):
        """The two may have as many channels."""
        codes = told.measure(paintings), network.measure(paintings)
        assert codes[0].num_channels == codes[1].num_channels
        assert [told.takes(c) for c in codes] == [True, False]
        assert [network.takes(c) for c in codes] == [False, True]
        assert told.takes(StyleCode.mix([codes[0], codes[0]], [0.3, 0.7]))
