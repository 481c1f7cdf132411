"""The same plan on a Ray cluster, through Ray Data."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

from styleapp.batch.work import Done, Settings, Task, Worker
from styleapp.errors import OptionError

__all__ = ["run_ray"]

CHUNK = 20_000
"""Tasks that are handed to Ray Data at a time: it wants to know them all, and a plan may have millions."""

CORES_A_WORKER = 4


class _Actor:
    """What Ray keeps alive on each GPU, or each few cores: a worker with its network loaded."""

    def __init__(self, settings: Settings) -> None:
        self.worker = Worker(settings)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """A few tasks, with reading and writing beside the network as everywhere."""
        return {"done": list(self.worker.run(batch["task"]))}


def run_ray(
    settings: Settings,
    tasks: Iterable[Task | None],
    *,
    workers: int = 0,
    address: str = "",
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[Done]:
    """As :meth:`Worker.run`, on a cluster. Back-pressure, and retries of what a lost actor had in hand, are Ray's.

    Args:
        workers: actors; 0 for one a GPU, or one for every few cores, that the cluster has.
        stop: asked after each outcome, as Ray takes many tasks at once; what the actors then have in hand is given up.
        address: of the cluster, "auto" for the one that this machine belongs to; empty to start one here.

    Raises:
        OptionError: if Ray is not installed, or the cluster cannot be reached.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:  # Ray's, or that of a package of its own
        raise OptionError(f"--engine ray needs Ray; pip install 'styleapp[ray]' ({error})") from None
    if not ray.is_initialized():
        try:
            ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise OptionError(f"no Ray cluster at {address!r}: {error}") from None
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    have = ray.cluster_resources()  # type: ignore[no-untyped-call]
    gpus, cores = int(have.get("GPU", 0)), int(have.get("CPU", 1))
    on_gpu = gpus > 0 and settings.device in ("auto", "cuda")
    count = workers or (gpus if on_gpu else max(1, cores // CORES_A_WORKER))
    threads = settings.threads or (0 if on_gpu else max(1, cores // count))
    settings = replace(settings, threads=threads)
    each = (8 if on_gpu else 1) * 4
    source = (task for task in tasks if task is not None)
    while chunk := list(itertools.islice(source, CHUNK)):
        items = ray.data.from_items([{"task": task} for task in chunk], override_num_blocks=-(-len(chunk) // each))
        done = items.map_batches(
            _Actor,
            fn_constructor_args=(settings,),
            batch_size=each,
            batch_format="numpy",
            compute=ray.data.ActorPoolStrategy(size=count),
            num_gpus=gpus / count if on_gpu else 0,
            num_cpus=0 if on_gpu else threads,
        )
        for row in done.iter_rows():
            yield row["done"]
            if stop():
                return
