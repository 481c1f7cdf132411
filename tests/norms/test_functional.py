import pytest
import torch
from torch.nn import functional as F

from styleapp.norms import adain, moments, normalize


def reference(content, style, eps=1e-5):
    """Equation 8 of Huang and Belongie 2017, in float64, one channel at a time."""
    content, style = content.double(), style.double()
    out = torch.empty_like(content)
    for n in range(content.shape[0]):
        for c in range(content.shape[1]):
            x, y = content[n, c], style[n, c]
            sigma_x = ((x - x.mean()).pow(2).mean() + eps).sqrt()
            sigma_y = ((y - y.mean()).pow(2).mean() + eps).sqrt()
            out[n, c] = sigma_y * (x - x.mean()) / sigma_x + y.mean()
    return out


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
def test_adain_is_equation_8(dtype, tolerance):
    content, style = torch.randn(2, 3, 5, 6).to(dtype), 3 * torch.randn(2, 3, 7, 4).to(dtype) + 2
    assert (adain(content, style) - reference(content, style)).abs().max() < tolerance


def test_own_style_is_the_identity():
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    assert torch.allclose(adain(x, x), x, atol=1e-12)


def test_normalize_is_instance_norm():
    x, gamma, beta = torch.randn(2, 3, 8, 8), torch.randn(3), torch.randn(3)
    found = normalize(x, moments(x), gamma.view(1, 3, 1, 1), beta.view(1, 3, 1, 1))
    assert torch.allclose(found, F.instance_norm(x, weight=gamma, bias=beta), atol=1e-5)
    assert torch.allclose(normalize(x, moments(x), None, None), F.instance_norm(x), atol=1e-5)


def test_gradients():
    c = torch.randn(1, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    s = torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(adain, (c, s))


def test_fp16_of_large_range_stays_finite():
    x = torch.full((1, 1, 8, 8), 512.0, dtype=torch.float16)
    x[..., ::2] = -512
    y = normalize(x, moments(x), None, None)
    assert y.dtype == torch.float16
    assert torch.equal(y.unique(), torch.tensor([-1.0, 1.0], dtype=torch.float16))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("affine", [True, False])
def test_the_quick_way_of_half_precision_is_as_exact(dtype, layout, affine):
    """Without gradients torch's batch norm does it; with them, our own lines: both within rounding of float64."""
    x = (torch.randn(1, 6, 32, 24) * torch.rand(6, 1, 1) * 5 + 40 * torch.randn(6, 1, 1)).to(dtype)
    x = x.contiguous(memory_format=layout)
    m = moments(x)
    gamma, beta = (torch.randn(1, 6, 1, 1), torch.randn(1, 6, 1, 1)) if affine else (None, None)
    wide = moments(x.double())
    wanted = normalize(x.double(), wide, *(None if t is None else t.double() for t in (gamma, beta)))
    with torch.no_grad():
        quick = normalize(x, m, gamma, beta)
    plain = normalize(x, m, gamma, beta)
    assert quick.dtype == dtype and quick.stride() == x.stride()
    half = torch.finfo(dtype).eps / 2
    for found in (quick, plain):
        assert ((found.double() - wanted).abs() <= half * wanted.abs() * 1.01 + 1e-4).all()


@torch.no_grad()
@pytest.mark.parametrize("shared", [False, True], ids=["each its own", "one for all"])
def test_a_batch_in_half_precision_is_its_samples(shared, monkeypatch):
    """On a CPU each goes through torch's batch norm, which a batch of them cannot."""
    x = (3 + 2 * torch.randn(3, 5, 6, 7)).bfloat16()
    gamma, beta = torch.randn(2, 1 if shared else 3, 5, 1, 1)
    calls = []
    quick = F.batch_norm
    monkeypatch.setattr(F, "batch_norm", lambda *args, **more: calls.append(1) or quick(*args, **more))
    found = normalize(x, moments(x), gamma, beta)
    assert len(calls) == 3 and found.dtype == torch.bfloat16
    exact = normalize(x.double(), moments(x.double()), gamma.double(), beta.double())
    assert (found.double() - exact).abs().max() < 0.02 * exact.abs().max()
