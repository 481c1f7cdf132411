from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import TINY_VGG, alive, noise
from safetensors import safe_open
from safetensors.torch import load_file

from styleapp.errors import ImageError, OptionError, WeightsError
from styleapp.images import from_pil
from styleapp.models import Decoder, Encoder, StyleCode, Stylizer
from styleapp.models.losses import grid_loss
from styleapp.options import ConditionalOptions
from styleapp.training.cin import learn_code, read_paintings, train_conditional

TINY = ConditionalOptions(steps=4, batch_size=2, pairs=2, size=32, warmup=1, bf16=False, lr=1e-3, style_size=32)


def encoder() -> Encoder:
    return alive(Stylizer(Encoder(TINY_VGG), Decoder(16))).encoder


def train(folders, out: Path, options: ConditionalOptions = TINY, **more) -> list[dict]:
    torch.manual_seed(3)
    records: list[dict] = []
    train_conditional(encoder(), *folders, out, options, report=records.append, **more)
    return records


def test_losses_fall_and_the_file_says_what_it_is(folders, tmp_path):
    out = tmp_path / "cin.safetensors"
    records = train(folders, out, replace(TINY, steps=80, lr=3e-3, code_lr=3e-2, ema=0.9), sample_minutes=0)
    assert records[0]["styles"] == ["0", "1", "2"]
    state = load_file(out)
    decoder = Decoder(16, skips={"relu1_1": 4, "relu2_1": 6})
    decoder.load_state_dict({k[8:]: v for k, v in state.items() if k.startswith("decoder.")})
    network = Stylizer(Encoder(TINY_VGG), decoder, conditional=True)
    assert state["codes"].shape == (3, 2, network.code_channels)
    with safe_open(out, "pt") as stored:
        assert stored.metadata()["styles"] == '["0", "1", "2"]'
    assert list(out.with_suffix(".samples").glob("*.png"))

    first = train(folders, tmp_path / "first.safetensors", replace(TINY, steps=1))[-1]
    later = train(folders, tmp_path / "later.safetensors", replace(TINY, steps=1), init=out)[-1]
    assert later["content"] + 10 * later["style"] < 0.8 * (first["content"] + 10 * first["style"])


def test_a_resumed_run_equals_an_unbroken_one(folders, tmp_path, one_step):
    train(folders, tmp_path / "whole.safetensors")
    broken = tmp_path / "broken.safetensors"
    train(folders, broken, minutes=0)
    for _ in range(TINY.steps - 1):
        train(folders, broken, minutes=one_step)
    train(folders, broken)
    whole, resumed = load_file(tmp_path / "whole.safetensors"), load_file(broken)
    assert all(torch.equal(whole[k], resumed[k]) for k in whole)


def test_what_the_decoder_sees_besides_is_trained(folders, tmp_path):
    """From nothing, in the file and in the options; a checkpoint of before the option goes on without it."""
    options = replace(TINY, skips="relu1_1,relu2_1")
    train(folders, tmp_path / "plain.safetensors", replace(options, skips=""))
    train(folders, tmp_path / "a.safetensors", options, further=folders[1])
    found = {k: v for k, v in load_file(tmp_path / "a.safetensors").items() if "skip" in k}
    assert {k: tuple(v.shape[:2]) for k, v in found.items()} == {
        "decoder.skip_relu1_1.weight": (2, 4),
        "decoder.skip_relu2_1.weight": (4, 6),
    }
    assert all((v != 0).any() for v in found.values())
    first = {}
    for given in ("", "relu1_1"):
        out = tmp_path / f"with{given}.safetensors"
        first[given] = train(folders, out, replace(TINY, skips=given, steps=1), init=tmp_path / "plain.safetensors")[-1]
    for name in ("content", "style", "identity"):
        assert first[""][name] == pytest.approx(first["relu1_1"][name], rel=1e-5)

    old = tmp_path / "with.ckpt"
    checkpoint = torch.load(old)
    del checkpoint["options"]["skips"]
    torch.save(checkpoint, old)
    assert train(folders, tmp_path / "with.safetensors", replace(TINY, skips="", steps=2))[-1]["step"] == 2
    with pytest.raises(WeightsError, match=r"other options \(skips\)"):
        train(folders, tmp_path / "with.safetensors", replace(TINY, steps=2))
    with pytest.raises(OptionError, match="unknown skip 'relu5_1'"):
        replace(TINY, skips="relu1_1,relu5_1")


def test_a_predictor_learns_codes_of_any_painting(folders, tmp_path):
    """Of paintings that have no row in the table: the losses fall, and the table has the rows that it should."""
    options = replace(TINY, further_share=1.0, pattern_share=0.0, lr=3e-3, ema=0.9)
    more = {"styles": ["1"], "further": folders[1]}
    records = train(folders, tmp_path / "long.safetensors", replace(options, steps=80), **more)
    assert records[0]["further"] == 3 and records[0]["styles"] == ["1"]
    assert load_file(tmp_path / "long.safetensors")["codes"].shape[0] == 1

    def losses(init: Path | None) -> float:
        last = train(folders, tmp_path / f"{init is None}.safetensors", replace(options, steps=1), init=init, **more)
        return last[-1]["content"] + 10 * last[-1]["style"]

    assert losses(tmp_path / "long.safetensors") < 0.8 * losses(None)


@pytest.mark.parametrize("predicted", [False, True])
def test_equivariance_is_measured_where_it_counts(folders, tmp_path, predicted):
    more = {"further": folders[1]} if predicted else {}
    options = replace(TINY, steps=1, size=64)
    assert train(folders, tmp_path / "a.safetensors", options, **more)[-1]["equivariance"] == 0
    record = train(folders, tmp_path / "b.safetensors", replace(options, equivariance_weight=1.0), **more)[-1]
    assert 0 < record["equivariance"] < 2


def test_with_a_predictor_a_resumed_run_equals_an_unbroken_one(folders, tmp_path, one_step):
    train(folders, tmp_path / "whole.safetensors", further=folders[1])
    broken = tmp_path / "broken.safetensors"
    for _ in range(TINY.steps - 1):
        train(folders, broken, further=folders[1], minutes=one_step)
    train(folders, broken, further=folders[1])
    whole, resumed = load_file(tmp_path / "whole.safetensors"), load_file(broken)
    assert all(torch.equal(whole[k], resumed[k]) for k in whole)


def test_one_style_makes_an_instance_norm_network(folders, tmp_path):
    out = tmp_path / "in.safetensors"
    assert train(folders, out, styles=["1"])[0]["styles"] == ["1"]
    assert load_file(out)["codes"].shape[0] == 1


def test_what_does_not_fit_is_told(folders, tmp_path):
    with pytest.raises(ImageError, match="has no painting nine; it has 0, 1, 2"):
        train(folders, tmp_path / "a.safetensors", styles=["nine"])
    with pytest.raises(ImageError, match="not a folder of paintings"):
        read_paintings(tmp_path / "nowhere", 32)
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"nothing")
    with pytest.raises(WeightsError, match="bad.safetensors: not a file of weights"):
        train(folders, tmp_path / "b.safetensors", init=bad)


@pytest.mark.parametrize("skips", [{}, {"relu1_1": 4, "relu3_1": 8}])
def test_sliced_to_one_row_cin_is_in(skips):
    """Normalising by hand with torch's instance norm, whose affine parameters are one row of the table."""
    network = alive(Stylizer(Encoder(TINY_VGG), Decoder(16, skips=skips), conditional=True))
    rows = [network.measure(torch.rand(1, 3, 32, 32)) for _ in range(3)]
    table = StyleCode(torch.cat([r.gamma for r in rows]), torch.cat([r.beta for r in rows]))
    image = torch.rand(1, 3, 40, 48)
    seen = dict(zip(skips, network.encoder.features(image, list(skips)), strict=True)) if skips else {}
    for k in range(3):
        row = StyleCode(table.gamma[k : k + 1], table.beta[k : k + 1]).split(network.norms)
        layers = {}
        for name, code in row.items():
            layers[name] = torch.nn.InstanceNorm2d(code.num_channels, eps=network.eps, affine=True)
            layers[name].weight.data = code.gamma.flatten()
            layers[name].bias.data = code.beta.flatten()
        x = layers["relu4_1"](network.encoder(image))
        for name in network.decoder.names:
            if name == "up":
                x = torch.nn.functional.interpolate(x, scale_factor=2)
                continue
            conv = network.decoder.get_submodule(name)
            x = torch.nn.functional.conv2d(torch.nn.functional.pad(x, (1,) * 4, "reflect"), conv.weight, conv.bias)
            if layer := {"conv1_2": "relu1_1", "conv3_4": "relu3_1"}.get(name if skips else ""):
                weight = network.decoder.get_parameter(f"skip_{layer}.weight")
                x = x + torch.einsum("nchw,ocij->nohw", seen[layer], weight)
            if name in layers:
                x = torch.relu(layers[name](x))
        found = network(image, StyleCode(table.gamma[k : k + 1], table.beta[k : k + 1]))
        assert torch.allclose(found, x, atol=1e-4)


def test_learning_changes_the_code_alone():
    network = alive(Stylizer(Encoder(TINY_VGG), Decoder(16), conditional=True))
    before = {k: v.clone() for k, v in network.state_dict().items()}
    painting, photo = (from_pil(noise(48, 48, seed=s)).rgb for s in (1, 2))
    seen: list[int] = []
    learned = learn_code(
        network, painting, [photo], steps=60, size=32, lr=5e-2, preview=lambda step, code: seen.append(step)
    )
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert learned.after[1] < 0.85 * learned.before[1]
    assert learned.code.num_channels == network.code_channels and seen == [12, 24, 36, 48, 60]
    further = learn_code(network, painting, [photo], steps=20, size=32, lr=1e-2, start=learned.code)
    assert further.before == pytest.approx(learned.after, rel=1e-5) and further.after != further.before
    with pytest.raises(OptionError, match="conditional network"):
        learn_code(Stylizer(network.encoder, network.decoder), painting, [photo])


def test_learning_minds_the_grid():
    network = alive(Stylizer(Encoder(TINY_VGG), Decoder(16), conditional=True))
    painting, photo = (from_pil(noise(48, 48, seed=s)).rgb for s in (1, 2))
    learned = [learn_code(network, painting, [photo], steps=60, size=32, lr=5e-2, grid_weight=w) for w in (0.0, 60.0)]
    without, with_it = (float(grid_loss(network(photo, found.code).clamp(0, 1))) for found in learned)
    assert with_it < 0.9 * without and learned[1].after[1] < learned[1].before[1]
