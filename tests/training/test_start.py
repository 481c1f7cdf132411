from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import TINY_VGG, alive
from safetensors.torch import load_file, save_file
from torch import nn

from styleapp.errors import WeightsError
from styleapp.models import CodePredictor, Decoder, Encoder, ShiftPredictor, StyleCode, Stylizer
from styleapp.training.start import Start, spread, widened

PHOTO = torch.rand(1, 3, 40, 48, generator=torch.Generator().manual_seed(4))
PAINTING = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(5))


def network(width: float, encoder: Encoder | None = None, skips: dict[str, int] | None = None) -> Stylizer:
    """Conditional, with a predictor, everything at random."""
    made = alive(Stylizer(encoder or Encoder(TINY_VGG), Decoder(16, width, skips=skips), conditional=True))
    seen = sum(made.encoder.layer_channels.values())
    made.predictor = CodePredictor(seen, made.code_channels, hidden=8)
    with torch.no_grad():
        for name, parameter in made.predictor.named_parameters():
            if not name.endswith("bias"):
                nn.init.normal_(parameter, std=0.05)
        made.predictor.probe.copy_(torch.rand(made.predictor.probe.shape))
    if encoder is not None:
        made.encoder.load_state_dict(encoder.state_dict())
    return made.requires_grad_(False)


def measured(made: Stylizer, image: torch.Tensor) -> StyleCode:
    features, skips = made.encode(image)
    return made.measured(features, skips=skips)


def saved(made: Stylizer, codes: dict[str, StyleCode], file: Path) -> Path:
    """As a training saves it."""
    table = [torch.stack([c.gamma.flatten(), c.beta.flatten()]) for c in codes.values()]
    assert made.predictor is not None
    state = {f"decoder.{k}": v for k, v in made.decoder.state_dict().items()}
    state |= {f"predictor.{k}": v for k, v in made.predictor.state_dict().items()}
    names = "[" + ", ".join(f'"{n}"' for n in codes) + "]"
    save_file(state | {"codes": torch.stack(table)}, file, metadata={"styles": names})
    return file


@pytest.mark.parametrize("width", [0.5, 0.75, 1.0])
@pytest.mark.parametrize("seen", [{}, {"relu1_1": 4}, {"relu1_1": 4, "relu2_1": 6}])
def test_a_wider_network_makes_the_same_pictures(tmp_path, width, seen):
    """With codes from the table, and with predicted ones; and further channels are not dead.

    So does one that begins to see more of the photo.
    """
    torch.manual_seed(1)
    small = network(0.5, skips={name: channels for name, channels in seen.items() if name == "relu1_1"})
    row = measured(small, PAINTING)
    start = Start.read(saved(small, {"one": row}, tmp_path / "small.safetensors"))
    wide = network(width, small.encoder, seen)
    assert wide.predictor is not None
    start.fill_decoder(wide.decoder)
    assert start.fill_predictor(wide.predictor, wide)
    code = start.code("one", measured(wide, PAINTING), wide)
    assert code.num_channels == wide.code_channels >= small.code_channels
    assert torch.allclose(wide(PHOTO, code), small(PHOTO, row), rtol=1e-4, atol=1e-4)
    assert torch.allclose(
        wide(PHOTO, wide.measure(PAINTING)), small(PHOTO, small.measure(PAINTING)), rtol=1e-4, atol=1e-4
    )
    other = measured(wide, PHOTO)
    assert start.code("unknown", other, wide) is other

    wide.decoder.requires_grad_(True)
    optimizer = torch.optim.SGD(wide.decoder.parameters(), lr=1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        (wide(PHOTO, code) - PAINTING.mean()).square().mean().backward()
        optimizer.step()
    for name, parameter in wide.decoder.named_parameters():
        if name.endswith("weight"):
            assert parameter.grad is not None
            reached = (parameter.grad.flatten(1) != 0).any(1)
            further = reached[len(start.decoder.get(name, ())) :]  # in a network of random filters some are dead
            assert further.any() or not len(further), name


def test_a_file_of_a_decoder_alone(tmp_path):
    small, wide = Decoder(16, 0.5), Decoder(16, 1.0)
    file = tmp_path / "small.safetensors"
    save_file({k: v.half() for k, v in small.state_dict().items()}, file)
    start = Start.read(file)
    start.fill_decoder(wide)
    features = torch.rand(1, 16, 4, 5)
    assert torch.allclose(wide(features), small.half().float()(features), atol=1e-5)
    made = network(1.0)
    assert made.predictor is not None and not start.fill_predictor(made.predictor, made)


def test_a_wider_decoder_is_told_the_same(tmp_path):
    torch.manual_seed(2)
    encoder, small, wide = Encoder(TINY_VGG), Decoder(16, 0.5), Decoder(16, 1.0)

    def told(decoder: Decoder) -> Stylizer:
        return alive(Stylizer(encoder, decoder, shifts=ShiftPredictor(18, sum(decoder.hidden.values()))))

    before, after = told(small), told(wide)
    assert before.shifts is not None and after.shifts is not None
    nn.init.normal_(before.shifts.last.weight, std=0.05)
    before.shifts.mean.fill_(-0.5)
    before.shifts.probes.uniform_()
    file = tmp_path / "small.safetensors"
    save_file(small.state_dict() | {f"shifts.{k}": v for k, v in before.shifts.state_dict().items()}, file)
    start = Start.read(file)
    start.fill_decoder(wide)
    assert start.fill_shifts(after.shifts, wide)
    codes = [network.measure(PAINTING) for network in (before, after)]
    assert torch.allclose(after(PHOTO, codes[1]), before(PHOTO, codes[0]), atol=1e-5)
    assert torch.equal(after.shifts.probes, before.shifts.probes) and after.shifts.probes.any()
    state = {name: value for name, value in load_file(file).items() if name != "shifts.probes"}
    save_file(state | {"shifts.probe": torch.rand(1, 3, 192, 192)}, file)  # as 0.17 has it
    after.shifts.probes.zero_()
    assert Start.read(file).fill_shifts(after.shifts, wide) and not after.shifts.probes.any()
    with pytest.raises(WeightsError, match=r"small\.safetensors: no prediction of this shape"):
        start.fill_shifts(ShiftPredictor(17, sum(wide.hidden.values())), wide)
    older = {k: v for k, v in start.shifts.items() if k != "probe"}  # of before there was one
    replace(start, shifts=older).fill_shifts(after.shifts.requires_grad_(False), wide)
    save_file(small.state_dict(), file)
    assert not Start.read(file).fill_shifts(after.shifts, wide)


def test_what_does_not_fit_is_told(tmp_path):
    file = tmp_path / "wide.safetensors"
    save_file(Decoder(16, 1.0).state_dict(), file)
    with pytest.raises(WeightsError, match=r"wide\.safetensors: no decoder of width 0\.5 or less: conv4_1\.weight of"):
        Start.read(file).fill_decoder(Decoder(16, 0.5))
    with pytest.raises(ValueError, match="it has a, not b"):
        widened({"a": torch.ones(1)}, {"b": torch.ones(1)})
    with pytest.raises(ValueError, match="do not fit into"):
        spread(torch.ones(3), torch.ones(3), [2, 1], [1, 2])
    with pytest.raises(ValueError, match="3 and 3 channels"):
        spread(torch.ones(3), torch.ones(3), [2, 2], [1, 2])
    file.write_bytes(b"nothing")
    with pytest.raises(WeightsError, match="not a file of weights"):
        Start.read(file)
    made = network(0.5)
    odd = Start.read(saved(made, {"one": measured(made, PAINTING)}, tmp_path / "odd.safetensors"))
    with pytest.raises(WeightsError, match="no predictor of this shape"):
        odd.fill_predictor(CodePredictor(3, made.code_channels, hidden=8), made)


def test_blocks_are_spread():
    found = spread(torch.tensor([1, 2, 3]), torch.tensor([10, 20, 30, 40, 50]), [1, 2], [2, 3])
    assert found.tolist() == [1, 20, 2, 3, 50]
