"""torch.autograd.gradcheck for every norm: of the input, and of every parameter."""

import copy

import pytest
import torch
from test_precision import NORMS, call
from torch.func import functional_call

from styleapp.norms import TLU, SyncBatchNorm, ot, standardize_weight, wct


@pytest.mark.parametrize("name", [*NORMS, "sync", "tlu"])
def test_every_norm(name):
    if name == "renorm":
        pytest.skip("takes r and d for constants, which they are not; test_population has its gradient")
    if name == "online":
        pytest.skip("its gradient depends on the samples before, which is the point of it; test_steps has it")
    torch.manual_seed(0)
    made = {"sync": lambda: SyncBatchNorm(8), "tlu": lambda: TLU(8)}
    norm = (made[name]() if name in made else copy.deepcopy(NORMS[name])).double().train()
    if name == "actnorm":
        norm.initialized.fill_(True)  # else the first batch replaces what is asked about
    # Away from the initial values: those are points of symmetry (SPADE, SEAN), or at the end of a range (ρ).
    parameters = {k: (p - 0.1 * torch.rand_like(p)).detach().requires_grad_() for k, p in norm.named_parameters()}
    x = torch.randn(2, 8, 8, 8, dtype=torch.float64, requires_grad=True)

    class Bound(torch.nn.Module):
        def forward(self, value):
            return call(norm, value)

    bound = Bound()
    bound.norm = norm

    def f(value, *rest):
        state = {f"norm.{k}": v for k, v in zip(parameters, rest, strict=True)}
        state |= {f"norm.{k}": b.clone() for k, b in norm.named_buffers()}
        return functional_call(bound, state, (value,)).square()

    # fast mode checks a random projection of the Jacobian: SEAN's has millions of entries
    assert torch.autograd.gradcheck(f, (x, *parameters.values()), fast_mode=True)


def test_transforms():
    c, s = (torch.randn(1, 3, 4, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(wct, (c, s))
    assert torch.autograd.gradcheck(ot, (c, s))
    assert torch.autograd.gradcheck(standardize_weight, c)
