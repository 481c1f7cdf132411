"""What holds on the CPU holds on a GPU. Skipped where there is none.

TEST_DEVICE=cpu pytest tests/test_gpu.py runs the same lines on the CPU, to know that they work before a GPU is there.
"""

import copy
import functools
import json
import math
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
import torch
from conftest import TINY_VGG, alive, noise
from PIL import Image
from torch.nn import functional as F

from styleapp import kernels
from styleapp.batch import Settings, Task, Worker, find_photos, make_jobs
from styleapp.enlarge import enlarged, reduced
from styleapp.images import Picture, from_pil, to_pil
from styleapp.models import Decoder, Encoder, ShiftPredictor, StyleCode, Stylizer
from styleapp.models.layers import (
    UPSAMPLINGS,
    ReflectConv2d,
    corrected_conv2d,
    padded,
    reflect_conv2d,
    upsampled_conv2d,
)
from styleapp.models.losses import grid_loss
from styleapp.models.recorded import Recorded
from styleapp.models.refine import code_losses
from styleapp.models.stylizer import TOLD_REFINEMENT
from styleapp.norms import NORMS, make_norm, moments
from styleapp.options import ConditionalOptions, DecoderOptions, Options
from styleapp.pipeline import StyleTransfer
from styleapp.training.cin import train_conditional
from styleapp.training.decoder import train_decoder

DEVICE = os.environ.get("TEST_DEVICE", "cuda")
pytestmark = pytest.mark.skipif(
    DEVICE.startswith("cuda") and not torch.cuda.is_available(), reason="there is no GPU here"
)
only_cuda = pytest.mark.skipif(not DEVICE.startswith("cuda"), reason="CUDA's own")

SIZE = {"style_size": 64}


@functools.cache
def released(precision: str, compiled: bool = False) -> StyleTransfer:
    """With the weights that are shipped: how far rounding goes depends on them."""
    return StyleTransfer(DEVICE, precision, compile=compiled)


@pytest.fixture(scope="module")
def tiny(weights) -> StyleTransfer:
    return StyleTransfer(DEVICE, "fp32", weights=weights)


@pytest.fixture(scope="module")
def cpu(weights) -> StyleTransfer:
    return StyleTransfer("cpu", "fp32", weights=weights)


def array(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def scene(height: int, width: int) -> torch.Tensor:
    """A picture with fine and coarse parts."""
    generator = torch.Generator().manual_seed(0)
    coarse, fine = (torch.rand(1, 3, *size, generator=generator) for size in ((6, 8), (height // 3, width // 3)))
    parts = [F.interpolate(x, (height, width), mode="bicubic") for x in (coarse, fine)]
    return (0.8 * parts[0] + 0.2 * parts[1]).clamp(0, 1)


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(-10 * (a - b).square().mean().log10())


def render(transfer: StyleTransfer, image: torch.Tensor, options: Options) -> torch.Tensor:
    """A picture in float, so that no rounding to 8 bits hides anything."""
    return transfer.picture(Picture(image), "great-wave", options).rgb


@pytest.mark.parametrize("options", [{}, {"alpha": 0.5}, {"color": "luma"}, {"norm": "cin"}, {"norm": "adagn:4"}])
def test_pictures_are_those_of_the_cpu(tiny, cpu, options):
    image = noise(75, 90)
    a, b = (array(t.stylize(image, "great-wave", **options, **SIZE)) for t in (tiny, cpu))
    assert np.abs(a - b).max() <= 2


@pytest.mark.parametrize("norm", ["wct", "ot", "efdm"])
def test_a_painting_is_measured_as_on_the_cpu(tiny, cpu, norm):
    a, b = (array(t.stylize(noise(64, 80), noise(70, 64, seed=3), norm=norm, **SIZE)) for t in (tiny, cpu))
    assert np.abs(a - b).mean() < 1


@pytest.mark.parametrize("options", [{}, {"alpha": 0.6}, {"norm": "cin"}, {"color": "luma"}, {"norm": "adaln"}])
def test_tiled_is_untiled(options):
    image = scene(300, 420)
    a, b = (render(released("fp32"), image, Options(**options, tile=tile)) for tile in ("off", "96"))
    assert float((a - b).abs().max()) <= 2e-4


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_is_close(precision):
    if precision == "fp16" and DEVICE == "cpu":
        pytest.skip("fp16 is for GPUs")
    image, options = scene(512, 512), Options()
    half, full = (released(p) for p in (precision, "fp32"))
    found = render(half, image, options)
    assert psnr(found, render(half, image, replace(options, tile="128"))) >= 45
    assert psnr(found, render(full, image, options)) >= 35


def test_two_runs_are_bit_identical():
    runs = [render(released("auto"), scene(256, 300), Options(alpha=0.7)) for _ in range(2)]
    assert torch.equal(*runs)


@pytest.mark.parametrize("norm", ["adain", "cin"])
def test_a_batch_is_as_each_alone(tiny, norm):
    photos = [tiny.fit(noise(64, 48, seed=i), Options(**SIZE)) for i in range(5)]
    styles = ["great-wave", "the-visit", "wheat-field", "great-wave", "the-visit"]
    options = Options(norm=norm, **SIZE)
    assert tiny.fits_at_once(photos, options)
    for photo, style, found in zip(photos, styles, tiny.pictures(photos, styles, options), strict=True):
        alone = tiny.picture(photo, style, options)
        assert (found.pixels.int() - alone.pixels.int()).abs().max() <= 1


def test_a_folder_is_as_each_alone(tiny, weights, tmp_path):
    (tmp_path / "in").mkdir()
    for i in range(10):
        noise(*((48, 40) if i % 3 else (40, 64)), seed=i).save(tmp_path / "in" / f"{i}.png")
    (tmp_path / "in" / "5.png").write_text("no image")
    settings = Settings(Options(**SIZE), DEVICE, "fp32", weights=str(weights), batch_size=4)
    jobs = make_jobs(find_photos([str(tmp_path / "in")]), ["great-wave"], str(tmp_path / "out"))
    done = list(Worker(settings).run(Task(job) for job in jobs))
    assert [bool(d.error) for d in done].count(True) == 1 and len(done) == 10
    for i in set(range(10)) - {5}:
        alone = tiny.stylize(tmp_path / "in" / f"{i}.png", "great-wave", **SIZE)
        with Image.open(next((tmp_path / "out").rglob(f"{i}*.png"))) as found:
            assert np.abs(array(found) - array(alone)).max() <= 1


@only_cuda
def test_where_memory_runs_out_the_tiles_become_smaller():
    transfer, image = released("bf16"), scene(2048, 2048)
    wanted = render(transfer, image, Options())
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    notes: list[str] = []
    try:
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_allocated() + 700e6) / total)
        found = transfer.picture(Picture(image), "great-wave", Options(tile="2048"), note=notes.append)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert notes and all("out of memory: going on with tiles of" in n for n in notes)
    assert psnr(found.rgb, wanted) >= 45


@only_cuda
def test_a_budget_is_kept():
    transfer, image = released("bf16"), scene(3000, 3000)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    render(transfer, image, Options(max_memory="1GB"))
    assert torch.cuda.max_memory_allocated() < 1e9


def test_large_photos_are_reduced_and_enlarged_as_on_the_cpu():
    picture, cpu = from_pil(noise(300, 200)), torch.device("cpu")
    small, wanted = reduced(picture, 64, torch.device(DEVICE)), reduced(picture, 64)
    assert (small.pixels.int() - wanted.pixels.int()).abs().max() <= 1
    result, kept = from_pil(noise(*small.size, seed=1)), torch.rand(1, 1, *small.size)
    found = enlarged(picture, wanted, result, kept, torch.device(DEVICE)).pixels.int()
    assert (found - enlarged(picture, wanted, result, kept, cpu).pixels.int()).abs().max() <= 1


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_reflection(layout):
    x = torch.randn(2, 5, 9, 7, dtype=torch.float64, device=DEVICE).contiguous(memory_format=layout)
    w = torch.randn(4, 5, 3, 3, dtype=torch.float64, device=DEVICE)
    wanted = F.pad(x, (1, 1, 1, 1), mode="reflect")
    found = padded(x, "reflect")
    assert torch.equal(found, wanted) and found.is_contiguous(memory_format=layout)
    for way in (reflect_conv2d, corrected_conv2d):
        assert torch.allclose(way(x, w), F.conv2d(wanted, w), atol=1e-12)
    for mode in UPSAMPLINGS:
        upsampled = F.pad(F.interpolate(x, scale_factor=2.0, mode=mode), (1, 1, 1, 1), mode="replicate")
        assert torch.allclose(upsampled_conv2d(x, w, mode=mode), F.conv2d(upsampled, w), atol=1e-12)


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_norms_are_those_of_float64(name, dtype):
    """Forward, and the gradient of the input, in float32."""
    torch.manual_seed(0)
    norm = make_norm(name, 32)
    if name == "syncbn":
        pytest.skip("needs processes")
    x = torch.randn(4, 32, 12, 10) * 3 + 5
    if name in ("layernorm", "rms", "scalenorm"):
        x = x.movedim(1, -1).contiguous()
    more = (0,) if name == "cin" else ()
    exact = copy.deepcopy(norm).double()
    a = x.double().requires_grad_()
    b = x.to(DEVICE, dtype).requires_grad_()
    wanted, found = exact(a, *more), norm.to(DEVICE)(b, *more)
    assert found.dtype == dtype or name in ("frn",)
    close = {torch.float32: 2e-5, torch.bfloat16: 5e-2, torch.float16: 1e-2}[dtype]
    scale = wanted.abs().max()
    assert (found.cpu().double() - wanted).abs().max() / scale < close
    if dtype == torch.float32:
        weight = torch.randn_like(wanted)
        (wanted * weight).sum().backward()
        (found * weight.to(DEVICE, dtype)).sum().backward()
        assert (b.grad.cpu().double() - a.grad).abs().max() / a.grad.abs().max() < 1e-4


@only_cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("channels", [3, 48, 64, 512])
def test_own_kernels(channels, dtype):
    """Borders, their gradient and norms, of a whole picture and of a part of one."""
    x = torch.randn(2, channels, 21, 35, device=DEVICE).to(dtype).contiguous(memory_format=torch.channels_last)
    digits = {"rtol": 1e-6, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 0.01, "atol": 0.01}
    for image in (x, x[:, :, 1:, 2:]):
        assert kernels.suits(image)
        for border in ("reflect", "replicate"):
            wide = image.double().requires_grad_()
            wanted = F.pad(wide, (1, 1, 1, 1), border)
            found = kernels.bordered(image, border)
            assert torch.equal(found, wanted.to(dtype))
            grad = torch.randn_like(found)
            wanted.backward(grad.double())
            torch.testing.assert_close(kernels.folded(grad, border).double(), wide.grad, **digits)
        scale, shift = (torch.randn(2, channels, 1, 1, device=DEVICE) for _ in range(2))
        torch.testing.assert_close(
            kernels.affine(image, scale, shift).double(), image.double() * scale + shift, **digits
        )


@pytest.mark.parametrize("upsampling", [None, *UPSAMPLINGS])
@pytest.mark.parametrize("relu", [False, True])
def test_the_layer_and_its_gradients(upsampling, relu, monkeypatch):
    """In float32 and bfloat16, with gradients and without, against float64 on the CPU."""
    torch.manual_seed(0)
    exact = ReflectConv2d(16, 24).double()
    x = torch.randn(2, 16, 18, 22, dtype=torch.float64, requires_grad=True)
    told = torch.randn(24, dtype=torch.float64, requires_grad=True)
    wanted = exact(x, upsampling=upsampling, relu=relu, shift=told)
    outward = torch.randn_like(wanted)
    gradients = torch.autograd.grad((wanted * outward).sum(), [x, told, *exact.parameters()])
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # 10 bits for float32
    for dtype, close in ((torch.float32, 1e-3), (torch.bfloat16, 3e-2)):
        layer = copy.deepcopy(exact).to(DEVICE, dtype).to(memory_format=torch.channels_last)
        y = x.detach().to(DEVICE, dtype).contiguous(memory_format=torch.channels_last).requires_grad_()
        shift = told.detach().to(DEVICE, torch.float32).requires_grad_()  # what is told is float32 in any network
        found = layer(y, upsampling=upsampling, relu=relu, shift=shift)
        ours = torch.autograd.grad((found * outward.to(found)).sum(), [y, shift, *layer.parameters()])
        with torch.no_grad():
            plain = layer(y, upsampling=upsampling, relu=relu, shift=shift)
        for a, b in zip([found, plain, *ours], [wanted, wanted, *gradients], strict=True):
            # Rounding takes some pixels to the other side of a ReLU, and their gradients with them.
            assert (a.cpu().double() - b).norm() / b.norm() < (
                close if a is found or a is plain or not relu else 6 * close
            )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_adain_is_told_is_refined(dtype, monkeypatch):
    """As far as on the CPU in float32, nearly: rounding leads to other codes, that are as good."""
    torch.manual_seed(0)
    decoder = Decoder(16, upsampling="bilinear")
    network = alive(Stylizer(Encoder(TINY_VGG), decoder, shifts=ShiftPredictor(18, sum(decoder.hidden.values()))))
    network.shifts.probes.copy_(torch.cat([from_pil(noise(224, 224, seed=seed)).rgb for seed in (1, 3)]))
    painting = from_pil(noise(64, 80, seed=2)).rgb
    first, wanted = network.measure(painting), network.measure(painting, refine=12)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    there = copy.deepcopy(network).to(DEVICE)
    for part in (there.encoder, there.decoder):
        part.to(dtype).to(memory_format=torch.channels_last)
    found = there.measure(painting.to(DEVICE), refine=12)
    assert found.beta.dtype == torch.float32 and torch.equal(found.gamma[:, 16:], wanted.gamma[:, 16:].to(DEVICE))

    def loss(code: StyleCode) -> float:
        goal = [network.code_of(f) for f in network.encoder.features(painting)]
        total = torch.zeros(())
        for probe in network.probes.split(1):
            content, style, picture = code_losses(network, probe, network.encode(probe), code.to("cpu"), goal)
            total += (content + TOLD_REFINEMENT["style_weight"] * style + 60 * grid_loss(picture)).sum()
        return float(total)

    gained = (loss(first) - loss(found)) / (loss(first) - loss(wanted))
    assert gained == pytest.approx(1, abs=0.1 if dtype == torch.float32 else 0.7)


@only_cuda
@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_our_convolutions_are_those_of_cudnn(conditional, dtype):
    """Features, pictures and gradients of whole networks, on the GPUs that take ours."""
    assert kernels.convolve(torch.device("cuda:0"), dtype) == (torch.cuda.get_device_capability() == (9, 0))
    torch.manual_seed(0)
    decoder = Decoder(32, width=2, upsampling="bilinear", skips={"relu1_1": 8, "relu2_1": 16})
    network = alive(Stylizer(Encoder((8, 16, "M", 16, 16, "M", 24, "M", 32)), decoder, conditional=conditional))
    network = network.to(DEVICE, dtype).to(memory_format=torch.channels_last)
    network.encoder.requires_grad_(False)
    network.decoder.requires_grad_(True)
    image = torch.rand(2, 3, 66, 83, device=DEVICE)
    code = network.measure(torch.rand(1, 3, 64, 64, device=DEVICE))
    code = StyleCode(code.gamma.detach().float(), code.beta.detach().float())
    found = []
    for ours in (True, False):
        with mock.patch("styleapp.kernels.convolve", kernels.convolve if ours else lambda *which: False):
            picture = network(image, code)
            features = network.encoder.features(picture)
            loss = sum(f.float().square().mean() for f in features) * 100
            gradients = torch.autograd.grad(loss, list(network.decoder.parameters()))
            found.append([picture, *features, *gradients])
    for a, b in zip(*found, strict=True):
        assert (a - b).float().norm() / b.float().norm() < (0.1 if dtype == torch.bfloat16 else 0.02), a.shape


@only_cuda
def test_what_is_recorded_is_what_it_was():
    """A size that comes again is a recording: of other photos, styles and strengths the pictures are the same."""
    transfer = released("bf16")
    photos = [to_pil(Picture(scene(256, 192 + 64 * (i % 2)).roll(17 * i, -1))) for i in range(6)]
    wanted = [array(transfer.stylize(p, "great-wave", tile="512")) for p in photos]  # tiles are not recorded
    for i, name in enumerate(["great-wave", "wheat-field", "great-wave", "great-wave"]):
        found = [array(transfer.stylize(p, name)) for p in photos]
        if i != 1:
            assert all(np.abs(a - b).mean() < 1 for a, b in zip(found, wanted, strict=True))
        else:
            assert all(np.abs(a - b).mean() > 4 for a, b in zip(found, wanted, strict=True))
    assert 1 <= len(transfer.recordings._kept) <= transfer.recordings.most
    half = [array(transfer.stylize(photos[0], "great-wave", alpha=0.5)) for _ in range(3)]
    assert np.array_equal(half[1], half[2]) and np.abs(half[0] - half[2]).max() <= 1
    assert np.abs(half[0] - wanted[0]).mean() > 4


@only_cuda
def test_threads_share_recordings():
    transfer, photos = released("bf16"), [to_pil(Picture(scene(128, 128).roll(9 * i, -1))) for i in range(8)]
    wanted = [array(transfer.stylize(p, "great-wave")) for p in photos]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda p: array(transfer.stylize(p, "great-wave")), photos * 4))
    assert all(np.abs(f - wanted[i % 8]).max() <= 1 for i, f in enumerate(found))


def test_moments_keep_their_digits():
    x = torch.randn(2, 16, 64, 64, dtype=torch.float64) + 1000
    found = moments(x.float().to(DEVICE))
    assert torch.allclose(found.var.cpu().double(), moments(x).var, rtol=1e-4)


def test_compiled_is_the_same():
    image = scene(256, 256)
    a, b = (render(released("fp32", compiled), image, Options()) for compiled in (False, True))
    assert float((a - b).abs().max()) < 1e-3


def test_training_resumes(folders, tmp_path):
    options = DecoderOptions(steps=8, batch_size=2, pairs=2, size=32, warmup=1, lr=1e-3)
    losses = []
    for pieces in (1, 3):
        torch.manual_seed(3)
        encoder = alive(Stylizer(Encoder(TINY_VGG), Decoder(16))).encoder
        out, records = tmp_path / f"{pieces}.safetensors", []
        for piece in range(pieces):
            minutes = math.inf if piece == pieces - 1 else 0.0
            train_decoder(
                encoder, *folders, out, options, device=torch.device(DEVICE), minutes=minutes, report=records.append
            )
        assert records[-1]["step"] == 8
        losses.append(records[-1]["content"])
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


@only_cuda
@pytest.mark.parametrize("network", ["adain", "cin"])
def test_a_recorded_step_is_that_of_the_kernels_one_by_one(network, folders, tmp_path):
    losses = []
    for recorded in (True, False):
        torch.manual_seed(3)
        encoder = alive(Stylizer(Encoder(TINY_VGG), Decoder(16))).encoder
        with mock.patch("styleapp.training.loop.Recorded", Recorded if recorded else lambda run, *example: run):
            records = []
            more = {"device": torch.device(DEVICE), "report": records.append}
            same = {"steps": 12, "batch_size": 2, "pairs": 2, "size": 32, "warmup": 1, "lr": 3e-3}
            out = tmp_path / f"{recorded}.safetensors"
            if network == "adain":
                train_decoder(encoder, *folders, out, DecoderOptions(**same, equivariance_weight=1), **more)
            else:
                options = ConditionalOptions(**same, style_size=32, equivariance_weight=1, skips="relu1_1")
                train_conditional(encoder, *folders, out, options, further=folders[1], **more)
        losses.append([records[-1][name] for name in ("content", "style", "identity", "grid", "equivariance")])
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


def test_the_command(run, photo):
    code, out, err = run(
        "stylize", photo, "-s", "great-wave", "-o", "a.png", "--device", DEVICE, "--json", "--style-size", 64
    )
    assert code == 0, err
    assert json.loads(out)["device"].startswith(DEVICE)


@only_cuda
def test_info_tells_whether_the_own_kernels_work(run):
    convolutions = ", convolutions too" if torch.cuda.get_device_capability() == (9, 0) else ""
    assert json.loads(run("info", "--json")[1])["kernels"]["cuda:0"] == f"own{convolutions}"
