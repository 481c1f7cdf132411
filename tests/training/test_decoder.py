import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import TINY_VGG, noise
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from styleapp.errors import ImageError, OptionError, TrainingError, WeightsError
from styleapp.models import Decoder, Encoder, ShiftPredictor
from styleapp.options import DecoderOptions
from styleapp.training.data import ImagePool, colour_augmentation, painting_crops, patterns
from styleapp.training.decoder import train_decoder
from styleapp.training.loop import learning_rate

ABOVE = {"relu1_1": 4, "relu2_1": 6, "relu3_1": 8}
TINY = DecoderOptions(steps=4, batch_size=2, pairs=2, size=32, warmup=1, bf16=False, lr=1e-3)


def encoder() -> Encoder:
    torch.manual_seed(3)
    return Encoder(TINY_VGG)


def train(folders, out: Path, options: DecoderOptions = TINY, **more) -> list[dict]:
    records: list[dict] = []
    train_decoder(encoder(), *folders, out, options, report=records.append, **more)
    return records


def test_losses_fall_and_the_file_fits(folders, tmp_path):
    out = tmp_path / "d.safetensors"
    records = train(folders, out, replace(TINY, steps=60, lr=3e-3, ema=0.9, identity_share=0.5), sample_minutes=0)
    log = [json.loads(line) for line in out.with_suffix(".log.jsonl").read_text().splitlines()]
    assert log == records
    assert log[0]["options"]["steps"] == 60 and log[0]["photos"] == 4 and log[0]["paintings"] == 3
    assert log[-1]["step"] == 60 and log[-1]["images_per_second"] > 0
    assert 0 <= log[-1]["grid"] < 1
    state = load_file(out)
    assert all(t.dtype == torch.float16 for t in state.values())
    told = {name.removeprefix("shifts."): state.pop(name) for name in list(state) if name.startswith("shifts.")}
    decoder = Decoder(16, skips=ABOVE)
    decoder.load_state_dict(state)
    assert all(state[f"skip_{layer}.weight"].abs().max() > 0 for layer in ABOVE)
    shifts = ShiftPredictor(4 + 6 + 8, sum(decoder.hidden.values()))
    shifts.load_state_dict(told)
    assert shifts.last.weight.abs().max() > 0 and (shifts.scale > 0.09).all() and shifts.mean.abs().max() > 0.1
    with safe_open(out, "pt") as stored:
        assert stored.metadata()["step"] == "60"
    assert list(out.with_suffix(".samples").glob("*.png"))

    first = train(folders, tmp_path / "first.safetensors", replace(TINY, steps=1, identity_share=0.5))[-1]
    later = train(folders, tmp_path / "later.safetensors", replace(TINY, steps=1, identity_share=0.5), init=out)[-1]
    total = [r["content"] + 10 * r["style"] + 20 * r["identity"] for r in (first, later)]
    assert total[1] < 0.7 * total[0]


def test_freeze_leaves_the_decoder_as_it_is(folders, tmp_path, weights):
    out, init = tmp_path / "d.safetensors", weights / "adain_decoder.safetensors"
    its_own = encoder()  # another one may leave it dead, and then there is nothing to learn
    its_own.load_state_dict({k: v.float() for k, v in load_file(weights / "vgg19_relu4_1.safetensors").items()})
    train_decoder(its_own, *folders, out, replace(TINY, freeze=True), init=init)
    before, after = load_file(init), load_file(out)
    changed = {name for name in after if not torch.equal(before[name].half(), after[name])}
    assert changed == {"shifts.last.weight"}
    with pytest.raises(OptionError, match="freeze trains what the decoder is told, which is nothing without shifts"):
        replace(TINY, freeze=True, shifts=False)


def test_without_shifts_and_skips_it_is_the_papers(folders, tmp_path):
    out = tmp_path / "d.safetensors"
    train(folders, out, replace(TINY, shifts=False, skips=""))
    assert set(load_file(out)) == set(Decoder(16).state_dict())


def test_a_decoder_that_sees_no_more_layers_goes_on_with_them(folders, tmp_path):
    """They come in through filters of zeros: its first losses are those that it had."""
    small = tmp_path / "small.safetensors"
    train(folders, small, replace(TINY, skips="", lr=3e-3, steps=20))
    first = {}
    for skips in ("", "relu1_1,relu3_1"):
        out = tmp_path / f"from {skips or 'nothing'}.safetensors"
        first[skips] = train(folders, out, replace(TINY, skips=skips, steps=1), init=small)[-1]
    for loss in ("content", "style", "identity"):
        assert first[""][loss] == pytest.approx(first["relu1_1,relu3_1"][loss], rel=1e-5)
    assert {"skip_relu1_1.weight", "skip_relu3_1.weight"} == set(load_file(out)) - set(load_file(small))
    with pytest.raises(OptionError, match="unknown skip 'relu4_1', did you mean 'relu3_1'"):
        replace(TINY, skips="relu4_1")


def test_a_resumed_run_equals_an_unbroken_one(folders, tmp_path, one_step):
    train(folders, tmp_path / "whole.safetensors")
    broken = tmp_path / "broken.safetensors"
    train(folders, broken, minutes=0)  # no time at all: an untrained decoder and its checkpoint
    for _ in range(TINY.steps - 1):
        train(folders, broken, minutes=one_step)
    train(folders, broken)
    whole, resumed = load_file(tmp_path / "whole.safetensors"), load_file(broken)
    assert all(torch.equal(whole[k], resumed[k]) for k in whole)


def test_goes_on_after_kill_minus_nine(folders, tmp_path, weights):
    out = tmp_path / "d.safetensors"
    script = (
        "import sys; from pathlib import Path; from styleapp.options import DecoderOptions;"
        "from styleapp.weights import Weights; from styleapp.training.decoder import train_decoder;"
        "a = [Path(p) for p in sys.argv[1:]];"
        "train_decoder(Weights(a[0]).encoder(), a[1], a[2], a[3],"
        "DecoderOptions(steps=10**6, batch_size=2, pairs=1, size=32, bf16=False), checkpoint_minutes=0)"
    )
    arguments = [sys.executable, "-c", script, *map(str, (weights, *folders, out))]
    process = subprocess.Popen(arguments)
    while not out.with_suffix(".ckpt").exists() and process.poll() is None:
        time.sleep(0.05)
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    step = torch.load(out.with_suffix(".ckpt"), weights_only=True)["step"]
    assert step > 0 and not out.exists()
    options = DecoderOptions(steps=step + 2, batch_size=2, pairs=1, size=32, bf16=False)
    records = train(folders, out, options)
    assert records[0]["step"] == step and records[-1]["step"] == step + 2


def test_checkpoint_of_other_options(folders, tmp_path):
    out = tmp_path / "d.safetensors"
    train(folders, out)
    with pytest.raises(WeightsError, match=r"other options \(size, lr\)"):
        train(folders, out, replace(TINY, lr=1.0, size=64))
    assert train(folders, out, replace(TINY, steps=5))[-1]["step"] == 5


@pytest.mark.parametrize("kind", ["text", "cut off", "of another network", "a list", "a folder"])
def test_a_checkpoint_that_is_none(kind, folders, tmp_path):
    """One line that says which file, and what to do about it."""
    out = tmp_path / "d.safetensors"
    checkpoint = out.with_suffix(".ckpt")
    train(folders, out)
    whole = checkpoint.read_bytes()
    checkpoint.unlink()
    if kind == "text":
        checkpoint.write_text("garbage")
    elif kind == "cut off":
        checkpoint.write_bytes(whole[:5000])
    elif kind == "of another network":
        checkpoint.write_bytes(whole)
        saved = torch.load(checkpoint)
        del saved["decoder"]["shifts.probes"]
        torch.save(saved, checkpoint)
    elif kind == "a list":
        torch.save([1, 2], checkpoint)
    else:
        checkpoint.mkdir()
    with pytest.raises(WeightsError) as told:
        train(folders, out)
    assert str(checkpoint) in str(told.value) and "\n" not in str(told.value)


def test_a_training_that_diverges_ends_and_keeps_what_was_saved(folders, tmp_path):
    out = tmp_path / "d.safetensors"
    with pytest.raises(TrainingError, match="diverged before step 2: .*; .*ckpt is of a step before .*rate than 1e"):
        train(folders, out, replace(TINY, lr=1e30), checkpoint_minutes=0)
    saved = torch.load(out.with_suffix(".ckpt"))
    assert saved["step"] == 1 and all(value.isfinite().all() for value in saved["decoder"].values())
    assert not out.exists()


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("steps", 0, "steps must be at least 1, got 0"),
        ("equivariance_every", 0, "equivariance_every must be at least 1, got 0"),
        ("size", 8, "size must be at least 16 pixels, got 8"),
        ("lr", float("nan"), "lr must be 0 or more, got nan"),
        ("lr", float("inf"), "lr must be 0 or more, got inf"),
        ("warmup", -1, "warmup must be 0 or more, got -1"),
        ("style_weight", -1.0, "style_weight must be 0 or more, got -1"),
        ("identity_share", 1.5, "identity_share must be from 0 to 1, got 1.5"),
        ("mix_share", -0.1, "mix_share must be from 0 to 1, got -0.1"),
        ("width", 0.0, "width must be more than 0, got 0"),
        ("clip", 0.0, "clip must be more than 0, got 0"),
        ("ema", 1.0, "ema must be from 0 to below 1, got 1"),
    ],
)
def test_options_that_cannot_be(option, value, message):
    with pytest.raises(OptionError, match=message):
        replace(TINY, **{option: value})


@pytest.mark.parametrize(("norm", "message"), [("foo", "unknown norm 'foo'"), ("gn:7", "must be divisible")])
def test_a_norm_that_cannot_be(folders, tmp_path, norm, message):
    with pytest.raises(OptionError, match=f"no decoder with norm '{norm}': .*{message}"):
        train(folders, tmp_path / "d.safetensors", replace(TINY, norm=norm))


def test_goes_on_from_a_checkpoint_of_before_0_6(folders, tmp_path, one_step):
    """There the average was that of torch.optim.swa_utils."""
    out, whole = tmp_path / "d.safetensors", tmp_path / "whole.safetensors"
    train(folders, whole)
    for _ in range(3):
        train(folders, out, minutes=one_step)
    saved = torch.load(out.with_suffix(".ckpt"))
    assert saved["step"] == 3 < TINY.steps
    saved["ema"] = {f"module.{name}": value for name, value in saved["ema"].items()} | {"n_averaged": torch.tensor(3)}
    torch.save(saved, out.with_suffix(".ckpt"))
    train(folders, out)
    found, wanted = load_file(out), load_file(whole)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_what_lies_beyond_white_is_not_seen(folders, tmp_path):
    """But by the pixel loss."""
    train(folders, tmp_path / "a.safetensors", replace(TINY, steps=1))
    state = load_file(tmp_path / "a.safetensors")
    bias = next(name for name, value in state.items() if name.endswith("bias") and value.shape == (3,))
    records = []
    for brightness in (1000.0, 2000.0):
        state[bias][:] = brightness
        save_file(state, tmp_path / "bright.safetensors")
        options = replace(TINY, steps=1, identity_share=0.5)
        out = tmp_path / f"{brightness}.safetensors"
        records.append(train(folders, out, options, init=tmp_path / "bright.safetensors")[-1])
    one, other = records
    assert (one["content"], one["style"]) == pytest.approx((other["content"], other["style"]), rel=1e-5)
    assert other["identity"] > 3 * one["identity"] > 0


def test_equivariance_is_measured_where_it_counts(folders, tmp_path):
    plain = replace(TINY, steps=1, size=64, skips="")  # a decoder that has all fine detail to invent
    without = train(folders, tmp_path / "a.safetensors", plain)[-1]
    counted = replace(plain, equivariance_weight=1.0)
    record = train(folders, tmp_path / "b.safetensors", counted)[-1]
    assert without["equivariance"] == 0 < record["equivariance"] < 2
    later = train(folders, tmp_path / "c.safetensors", replace(counted, steps=60, lr=3e-3, equivariance_weight=100.0))
    assert later[-1]["equivariance"] < 0.7 * record["equivariance"]


def test_equivariance_taken_lazily_weighs_as_much(folders, tmp_path):
    options = replace(TINY, steps=1, size=64, equivariance_weight=1.0)
    each = train(folders, tmp_path / "a.safetensors", options)[-1]["equivariance"]
    third = train(folders, tmp_path / "b.safetensors", replace(options, equivariance_every=3))[-1]["equivariance"]
    assert third == pytest.approx(3 * each, rel=1e-5)
    log = train(folders, tmp_path / "c.safetensors", replace(options, steps=3, equivariance_every=3))[-1]
    assert log["equivariance"] == pytest.approx(third / 3, rel=1e-5), "of three steps one takes it"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_command_after_a_step_and_saves(number, folders, tmp_path):
    out = tmp_path / "d.safetensors"
    command = [sys.executable, "-m", "styleapp", "train", "adain", "--out", str(out)]
    command += ["--content", str(folders[0]), "--style", str(folders[1])]
    command += ["--width", "0.25", "--size", "32", "--batch-size", "1", "--pairs", "1", "--steps", "1000000"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    log = out.with_suffix(".log.jsonl")
    while not log.exists() and process.poll() is None:
        time.sleep(0.05)
    time.sleep(1.0)
    process.send_signal(number)
    printed, told = process.communicate(timeout=60)
    assert process.returncode == 128 + number and "Traceback" not in told
    assert printed.split() == [str(out)]
    assert torch.load(out.with_suffix(".ckpt"), weights_only=True)["step"] > 0 and load_file(out)


def test_bf16_trains_too(folders, tmp_path):
    options = replace(TINY, bf16=True, size=64, equivariance_weight=1.0)
    records = train(folders, tmp_path / "d.safetensors", options)
    assert torch.tensor([records[-1][k] for k in ("content", "style", "identity", "equivariance")]).isfinite().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [({"steps": 0}, "steps must be at least 1"), ({"pairs": 9}, r"pairs must be at most batch_size \(8\), got 9")],
)
def test_bad_options(change, message):
    with pytest.raises(OptionError, match=message):
        DecoderOptions(**change)


def test_learning_rate_rises_and_falls():
    options = DecoderOptions(steps=100, warmup=10, lr=1.0)
    rates = [learning_rate(i, options) for i in range(101)]
    assert rates[0] < 0.2 and max(rates) > 0.95 and rates[100] < 1e-9
    assert rates[20:] == sorted(rates[20:], reverse=True)


class TestData:
    def test_bad_files_are_named_and_left_out(self, tmp_path):
        noise(40, 40).save(tmp_path / "good.png")
        (tmp_path / "bad.jpg").write_text("text")
        skipped: list[ImageError] = []
        assert len(ImagePool(tmp_path, skipped=skipped.append)) == 1
        assert "bad.jpg" in str(skipped[0])

    def test_nothing_usable(self, tmp_path):
        with pytest.raises(ImageError, match="no readable image among 0 files"):
            ImagePool(tmp_path)
        with pytest.raises(ImageError, match="not a folder"):
            ImagePool(tmp_path / "none")

    def test_crops_depend_on_the_seed_alone(self, folders):
        pool = ImagePool(folders[0], short_side=40)
        assert all(min(i.shape[-2:]) == 40 and i.dtype == torch.uint8 for i in pool.images)
        torch.manual_seed(5)
        a = pool.crops(3, 32, (0.5, 1.0))
        torch.manual_seed(5)
        assert torch.equal(a, pool.crops(3, 32, (0.5, 1.0)))
        assert a.shape == (3, 3, 32, 32) and a.min() >= 0 and a.max() <= 1
        assert not torch.equal(a, pool.crops(3, 32, (0.5, 1.0)))

    def test_augmentation_keeps_range_and_shape(self, folders):
        pool = ImagePool(folders[1])
        for _ in range(10):
            batch = colour_augmentation(pool.crops(5, 24, (0.5, 1.0)))
            assert batch.shape == (5, 3, 24, 24) and batch.min() >= 0 and batch.max() <= 1

    def test_shares_of_colours_and_patterns(self, folders, monkeypatch):
        pool = ImagePool(folders[1])
        monkeypatch.setattr("styleapp.training.data.colour_augmentation", lambda batch: batch + 10)
        monkeypatch.setattr("styleapp.training.data.patterns", lambda n, size, _: torch.full((n, 3, size, size), 20))
        for pattern, colour, wanted in ((0, 0, 0), (0, 1, 10), (1, 0, 20)):
            crops = painting_crops(pool, 6, 24, pattern, colour)
            assert crops.shape == (6, 3, 24, 24)
            assert ((crops >= wanted) & (crops <= wanted + 1)).all()
        kinds = (painting_crops(pool, 400, 8, 0.2, 0.5).amax((1, 2, 3)) // 9).long().bincount()
        assert (kinds - torch.tensor([160, 160, 80])).abs().max() < 50

    def test_patterns_are_pictures(self):
        drawn = patterns(40, 48)
        assert drawn.shape == (40, 3, 48, 48) and drawn.min() >= 0 and drawn.max() <= 1
        assert (drawn.flatten(1).std(1) > 0.01).float().mean() > 0.9
