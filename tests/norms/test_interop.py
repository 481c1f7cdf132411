"""What torch's own norms can do, ours can: compile, export, ONNX, vmap, copies, pickles, several processes."""

import copy
import pickle
import socket

import pytest
import torch
import torch.multiprocessing as mp
from test_precision import CHANNELS, NORMS, call
from torch import nn

from styleapp.norms import (
    ActNorm,
    BatchNorm,
    ConditionalInstanceNorm,
    GroupNorm,
    InstanceNorm,
    MovingAverageBatchNorm,
    OnlineNorm,
    SyncBatchNorm,
    checkpoint_safe,
)

X = torch.randn(2, CHANNELS, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=NORMS)
def norm(request) -> nn.Module:
    torch.manual_seed(0)
    return copy.deepcopy(NORMS[request.param])


class Called(nn.Module):
    """A norm with its further inputs bound, as one module of one input."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return call(self.norm, x)


def test_copies_and_pickles(norm):
    norm = norm.eval()
    wanted = call(norm, X)
    for other in (copy.deepcopy(norm), pickle.loads(pickle.dumps(norm))):
        assert torch.equal(call(other, X), wanted)
    fresh = copy.deepcopy(norm)
    fresh.load_state_dict(norm.state_dict())
    assert repr(fresh) == repr(norm)


def test_checkpoint_safe_norms_are_copied_and_pickled():
    bn = checkpoint_safe(BatchNorm(3))
    for other in (copy.deepcopy(bn), pickle.loads(pickle.dumps(bn))):
        assert len(other._forward_pre_hooks) == 1


@pytest.mark.parametrize("training", [True, False])
def test_dynamo_traces_one_graph(norm, training):
    """torch.compile without its code generator: tracing is what depends on us."""
    if training and isinstance(norm, ActNorm):
        pytest.skip("the first batch sets it: two graphs")
    if training and isinstance(norm, MovingAverageBatchNorm | OnlineNorm):
        pytest.skip("the gradient too changes what is kept, which no graph can hold")
    module = Called(norm).train(training)
    other = copy.deepcopy(module)
    torch.compiler.reset()  # graphs of other norms count against the limit of recompilations
    compiled = torch.compile(other, backend="aot_eager", fullgraph=True)
    for _ in range(2):
        assert torch.allclose(compiled(X), module(X), atol=1e-5)
    for a, b in zip(module.buffers(), other.buffers(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_export(norm):
    module = Called(norm).eval()
    program = torch.export.export(module, (X,))
    assert torch.allclose(program.module()(X), module(X), atol=1e-5)


@pytest.mark.parametrize(
    "kind",
    ["in", "gn", "ln2d", "frozen", "bn", "adain", "cin", "half-in", "frn", "iln", "iternorm", "evonorm-s0", "derf"],
)
def test_onnx(kind, tmp_path):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    module = Called(copy.deepcopy(NORMS[kind])).eval()
    torch.onnx.export(module, (X,), tmp_path / "norm.onnx", dynamo=True, verbose=False)
    session = runtime.InferenceSession(str(tmp_path / "norm.onnx"))
    found = session.run(None, {session.get_inputs()[0].name: X.numpy()})[0]
    assert torch.allclose(torch.from_numpy(found), module(X), atol=1e-4)


def test_vmap_and_functional_call():
    """Where torch's own norms work under vmap, ours do: stacked parameters, one forward for an ensemble."""
    for module in (GroupNorm(CHANNELS, num_groups=2), InstanceNorm(CHANNELS), copy.deepcopy(NORMS["adain"])):
        batch = torch.stack([X, X + 1, 2 * X])
        found = torch.func.vmap(lambda x, m=module: call(m, x))(batch)
        assert torch.allclose(found, torch.stack([call(module, x) for x in batch]), atol=1e-5)
    models = [ConditionalInstanceNorm(CHANNELS, 2) for _ in range(3)]
    for m in models:
        for p in m.parameters():
            nn.init.normal_(p)
    params, buffers = torch.func.stack_module_state(models)
    found = torch.func.vmap(lambda p, b: torch.func.functional_call(models[0], (p, b), (X, 1)))(params, buffers)
    assert torch.allclose(found, torch.stack([m(X, 1) for m in models]), atol=1e-5)


def _worker(rank: int, port: int, sizes: list[int], results: mp.Queue) -> None:
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    torch.manual_seed(0)
    x = torch.randn(sum(sizes), 3, 4, 4, dtype=torch.float64) + 5
    mine = x.split(sizes)[rank].clone().requires_grad_()
    norm = SyncBatchNorm(3, momentum=0.3).double()
    nn.init.uniform_(norm.weight)
    model = nn.parallel.DistributedDataParallel(norm)
    for _ in range(2):
        model.zero_grad()
        mine.grad = None
        y = model(mine)
        (y.pow(3).sum()).backward()
    own = [norm.running_mean, norm.running_var, norm.num_batches_tracked, norm.weight.grad]
    results.put((rank, [t.detach().numpy() for t in (y, mine.grad, *own)]))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("sizes", [[4, 2], [5, 0]])
def test_sync_batch_norm_over_two_processes_is_batch_norm_of_the_whole(sizes):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    context = mp.get_context("spawn")
    results = context.Queue()
    processes = [context.Process(target=_worker, args=(r, port, sizes, results), daemon=True) for r in range(2)]
    for p in processes:
        p.start()
    found = dict(results.get(timeout=120) for _ in processes)
    for p in processes:  # not their exit codes: gloo's threads can abort a process that has ended, after its results
        p.join(30)

    torch.manual_seed(0)
    x = (torch.randn(sum(sizes), 3, 4, 4, dtype=torch.float64) + 5).requires_grad_()
    norm = nn.BatchNorm2d(3, momentum=0.3).double()
    nn.init.uniform_(norm.weight)
    for _ in range(2):
        norm.zero_grad()
        x.grad = None
        y = norm(x)
        y.pow(3).sum().backward()
    for rank, (a, b) in enumerate(zip(y.split(sizes), x.grad.split(sizes), strict=True)):
        assert torch.allclose(torch.from_numpy(found[rank][0]), a, atol=1e-10)
        assert torch.allclose(torch.from_numpy(found[rank][1]), b, atol=1e-9)
        for ours, theirs in zip(
            found[rank][2:5], (norm.running_mean, norm.running_var, norm.num_batches_tracked), strict=True
        ):
            assert torch.allclose(torch.from_numpy(ours), theirs, atol=1e-10)
        # DistributedDataParallel averages the gradients of the processes
        assert torch.allclose(2 * torch.from_numpy(found[rank][5]), norm.weight.grad, atol=1e-8)


def test_data_parallel_without_sync(tmp_path):
    """DDP with plain norms in one process: parameters are found and broadcast."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=0, world_size=1)
    try:
        for name in ("bn", "in", "gn", "switchable", "bin", "frn"):
            module = copy.deepcopy(NORMS[name])
            model = nn.parallel.DistributedDataParallel(module)
            model(X).sum().backward()
            assert all(p.grad is not None for p in module.parameters()), name
    finally:
        torch.distributed.destroy_process_group()
