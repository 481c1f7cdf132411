"""Each kernel against PyTorch, run by test_kernels.py under Triton's interpreter."""

import contextlib
import copy
import itertools
from unittest import mock

import torch
import triton
from conftest import alive
from torch.nn import functional as F

from styleapp.kernels import affine, bordered, convolved, convolved_first, folded, mean_var, pooled, work
from styleapp.models import Decoder, Encoder, StyleCode, Stylizer
from styleapp.models.layers import max_pool2x2, subpixel_kernels, upsampled_conv2d

SHAPES = ((2, 8, 5, 7), (1, 3, 2, 2), (2, 48, 9, 3), (1, 64, 18, 20))
HALF = torch.float16  # products of matrices of bfloat16 are beyond the interpreter


def picture(shape: tuple[int, ...], dtype: torch.dtype, part: bool) -> torch.Tensor:
    """With its channels side by side; ``part``: cut out of a larger one."""
    n, c, height, width = shape
    x = torch.randn(n, c, height + 3 * part, width + 2 * part).to(dtype).contiguous(memory_format=torch.channels_last)
    return x[:, :, part : height + part, 2 * part : width + 2 * part]


def passes_over_memory() -> int:
    compared = 0
    for shape, dtype, part in itertools.product(SHAPES, (torch.float32, torch.bfloat16), (False, True)):
        n, c, height, width = shape
        x = picture(shape, dtype, part)
        digits = {"rtol": 1e-6, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 0.01, "atol": 0.01}
        for border in ("reflect", "replicate"):
            found = bordered(x, border)
            assert found.is_contiguous(memory_format=torch.channels_last)
            assert torch.equal(found, F.pad(x.float(), (1, 1, 1, 1), border).to(dtype)), (shape, border)
            assert torch.equal(bordered(x, border, relu=True), found.relu()), (shape, border)
            grad = picture((n, c, height + 2, width + 2), dtype, part)
            exact = x.detach().double().requires_grad_()
            F.pad(exact, (1, 1, 1, 1), border).backward(grad.double())
            torch.testing.assert_close(folded(grad, border).double(), exact.grad, **digits)
            compared += 3
        for rows in (n, 1)[: 1 + (n == 1)]:
            scale, shift = torch.rand(rows, c, 1, 1) + 0.5, torch.randn(rows, c, 1, 1)
            torch.testing.assert_close(affine(x, scale, shift).float(), x.float() * scale + shift, **digits)
        x = x + 200 * torch.arange(c).view(-1, 1, 1).to(dtype)  # a mean of thousands of deviations
        wide = x.double()
        for found, wanted in zip(mean_var(x), (wide.mean((2, 3)), wide.var((2, 3), correction=0)), strict=True):
            torch.testing.assert_close(found[..., 0, 0].double(), wanted, rtol=1e-6, atol=1e-6)
        compared += 2
        if min(shape[2:]) > 2:
            wanted = F.pad(max_pool2x2(x).float(), (1, 1, 1, 1), "reflect")
            assert torch.equal(pooled(x), wanted.to(dtype)), shape
            compared += 1
        compared += 1
    return compared


def convolutions() -> int:
    compared = 0
    for n, c, out, height, width in ((2, 64, 64, 9, 13), (1, 48, 96, 8, 20), (2, 64, 3, 6, 7), (1, 8, 136, 2, 3)):
        x = picture((n, c, height, width), HALF, False)
        weight = (picture((out, c, 3, 3), torch.float32, False) / (9 * c) ** 0.5).to(HALF)
        bias = torch.randn(out).to(HALF)
        seen, kernel, shift = x.float(), weight.float(), bias.float()
        wanted = F.conv2d(F.pad(seen, (1, 1, 1, 1), "reflect"), kernel, shift)
        close(convolved(bordered(x, "reflect"), weight, bias, False), wanted)
        for border in ("reflect", "replicate"):
            found = convolved(bordered(x, "reflect"), weight, bias, True, ring=border)
            close(found, F.pad(wanted.relu(), (1, 1, 1, 1), border))
        wanted = upsampled_conv2d(seen, kernel, shift, "bilinear").relu()
        parts = subpixel_kernels(weight, "bilinear").contiguous(memory_format=torch.channels_last)
        for border in ("reflect", "replicate"):
            found = convolved(bordered(x, "replicate"), parts, bias, True, 2, border)
            close(found, F.pad(wanted, (1, 1, 1, 1), border))
        compared += 5
    for n, out, height, width in ((2, 64, 9, 13), (1, 72, 2, 3)):
        weight, bias = (picture((out, 3, 3, 3), torch.float32, False) / 5).to(HALF), torch.randn(out).to(HALF)
        for channels_last in (False, True):
            x = torch.rand(n, 3, height, width).to(HALF)
            x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
            wanted = F.conv2d(F.pad(x.float(), (1, 1, 1, 1), "reflect"), weight.float(), bias.float())
            close(convolved_first(x, weight, bias, False), F.pad(wanted, (1, 1, 1, 1), "reflect"))
            close(convolved_first(x, weight, bias, True), F.pad(wanted.relu(), (1, 1, 1, 1), "reflect"))
            compared += 2
    return compared


def close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    assert found.shape == wanted.shape
    torch.testing.assert_close(found.float(), wanted, rtol=2e-3, atol=2e-3)


def networks() -> int:
    """Whole networks by our convolutions, in half precision, against those of PyTorch in float32."""
    compared = 0
    encoder = Encoder((8, 16, "M", 16, "M", 24, "M", 32))
    for conditional, skips in ((False, {"relu1_1": 8, "relu3_1": 24}), (True, {"relu1_1": 8, "relu2_1": 16})):
        decoder = Decoder(32, width=2, upsampling="bilinear", skips=skips)
        exact = alive(Stylizer(encoder, decoder, conditional=conditional)).requires_grad_(False)
        ours = copy.deepcopy(exact).to(memory_format=torch.channels_last)
        channels = exact.code_channels
        code = StyleCode(torch.rand(1, channels, 1, 1) + 0.5, torch.randn(1, channels, 1, 1))
        for height, width in ((24, 32), (17, 35), (16, 16)):
            image = torch.rand(2, 3, height, width)
            with torch.no_grad():
                wanted = [*exact.encoder.features(image), exact(image, code)]
                with by_our_kernels():
                    found = [*ours.encoder.features(image), ours(image, code)]
            for a, b in zip(found, wanted, strict=True):
                assert (a - b).norm() / b.norm() < 1e-4, (conditional, height, width)
                compared += 1
    return compared


def gradients() -> int:
    """Of a loss of the encoder's features of a decoder's picture, for filters, codes and the picture's features."""
    compared = 0
    encoder = Encoder((8, 16, "M", 16, 16, "M", 24, "M", 32)).requires_grad_(False)
    for conditional, skips in ((False, None), (True, {"relu1_1": 8, "relu2_1": 16})):
        decoder = Decoder(32, width=2, upsampling="bilinear", skips=skips)
        exact = alive(Stylizer(encoder, decoder, conditional=conditional))
        exact.encoder.requires_grad_(False)
        exact.decoder.requires_grad_(True)
        ours = copy.deepcopy(exact).to(memory_format=torch.channels_last)
        channels = exact.code_channels
        for height, width in ((24, 32), (20, 16)):
            image = torch.rand(2, 3, height, width)
            features, seen = (t.detach() for t in (exact.encoder(image), torch.rand(1)))
            skipped = exact.encode(image)[1]
            gamma, beta = torch.rand(1, channels, 1, 1) + 0.5, torch.randn(1, channels, 1, 1)
            outward = [torch.randn_like(f) / f[0].numel() ** 0.5 for f in exact.encoder.features(image)]
            found = []
            for network, how in ((exact, contextlib.nullcontext()), (ours, by_our_kernels())):
                leaves = [t.clone().requires_grad_() for t in (features, gamma, beta)]
                dtype = next(network.parameters()).dtype
                with how:
                    code = StyleCode(*leaves[1:])
                    seen = {k: v.to(dtype) for k, v in skipped.items()}
                    picture = network.restyled(leaves[0].to(dtype), code, 0.7, seen)[..., :height, :width]
                    values = network.encoder.features(picture)
                    loss = sum((o * v.float().square()).sum() for o, v in zip(outward, values, strict=True))
                    found.append(torch.autograd.grad(loss, [*leaves, *network.decoder.parameters()]))
            for a, b in zip(*found, strict=True):
                assert (a - b).norm() / a.norm() < 1e-3, (conditional, height, width, a.shape)
                compared += 1
    return compared


@contextlib.contextmanager
def by_our_kernels():
    """As on a GPU that takes them."""
    with contextlib.ExitStack() as stack:
        for module in ("layers", "vgg", "decoder"):
            stack.enter_context(mock.patch(f"styleapp.models.{module}.convolves", lambda layers, x: True))
        for name in ("decoder.takes_ring", "layers.takes_ring"):
            stack.enter_context(mock.patch(f"styleapp.models.{name}", lambda x: False))
        stack.enter_context(mock.patch("styleapp.models.layers.suits", lambda x: True))
        yield


def describes_tensors() -> bool:
    """Whether the interpreter takes every tensor that a GPU takes: that of Triton 3.4 wants rows of 16 numbers."""
    return tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 6)


def main() -> None:
    torch.manual_seed(0)
    counts = [passes_over_memory()]
    if describes_tensors():
        counts += [convolutions(), networks(), gradients()]
    assert all(work(torch.device("cpu"), dtype) for dtype in (torch.float32, torch.bfloat16, torch.float16))
    print(*counts, "compared")


if __name__ == "__main__":
    main()
