"""Each kernel against PyTorch, run by test_kernels.py under Triton's interpreter."""

import itertools

import torch
from torch.nn import functional as F

from styleapp.kernels import affine, bordered, folded, work

SHAPES = ((2, 8, 5, 7), (1, 3, 2, 2), (2, 48, 9, 3), (1, 64, 12, 40))


def picture(shape: tuple[int, ...], dtype: torch.dtype, part: bool) -> torch.Tensor:
    """With its channels side by side; ``part``: cut out of a larger one."""
    n, c, height, width = shape
    x = torch.randn(n, c, height + 3 * part, width + 2 * part).to(dtype).contiguous(memory_format=torch.channels_last)
    return x[:, :, part : height + part, 2 * part : width + 2 * part]


def main() -> None:
    torch.manual_seed(0)
    compared = 0
    for shape, dtype, part in itertools.product(SHAPES, (torch.float32, torch.bfloat16), (False, True)):
        n, c, height, width = shape
        x = picture(shape, dtype, part)
        digits = {"rtol": 1e-6, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 0.01, "atol": 0.01}
        for border in ("reflect", "replicate"):
            found = bordered(x, border)
            assert found.is_contiguous(memory_format=torch.channels_last)
            assert torch.equal(found, F.pad(x.float(), (1, 1, 1, 1), border).to(dtype)), (shape, border)
            grad = picture((n, c, height + 2, width + 2), dtype, part)
            exact = x.detach().double().requires_grad_()
            F.pad(exact, (1, 1, 1, 1), border).backward(grad.double())
            torch.testing.assert_close(folded(grad, border).double(), exact.grad, **digits)
            compared += 2
        for rows in (n, 1)[: 1 + (n == 1)]:
            scale, shift = torch.rand(rows, c, 1, 1) + 0.5, torch.randn(rows, c, 1, 1)
            torch.testing.assert_close(affine(x, scale, shift).float(), x.float() * scale + shift, **digits)
        compared += 1
    assert all(work(torch.device("cpu"), dtype) for dtype in (torch.float32, torch.bfloat16, torch.float16))
    print(compared, "compared")


if __name__ == "__main__":
    main()
