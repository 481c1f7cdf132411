"""A run: jobs to workers, outcomes to the journal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from styleapp.batch.journal import Journal
from styleapp.batch.plan import Job
from styleapp.batch.work import Done, Task

__all__ = ["Engine", "run_jobs"]

Engine = Callable[[Iterable[Task]], Iterator[Done]]
"""What does tasks, in any order: :meth:`Worker.run`, or one that has several workers."""


def run_jobs(
    engine: Engine,
    jobs: Iterable[Job],
    journal: Journal,
    *,
    overwrite: bool = False,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[Done]:
    """Do what is not done yet, and note every outcome; every failure is one, and the others go on.

    Args:
        overwrite: do everything anew, and replace files that are not ours.
        stop: asked before each job; what is in hand is finished.
    """
    refused: list[Done] = []

    def tasks() -> Iterator[Task]:
        for job in jobs:
            if stop():
                return
            known = None if overwrite else journal.known(job)
            if known is None:
                if not overwrite and not journal.may_write(job):
                    refused.append(Done(job, error=f"{job.target}: exists already; --overwrite replaces it"))
                    continue
                journal.start(job)
            yield Task(job, known)

    def outcomes() -> Iterator[Done]:
        for done in engine(tasks()):
            yield from refused
            refused.clear()
            yield done
        yield from refused

    for done in outcomes():
        if not done.skipped:
            journal.write(done.job, done.digest, seconds=done.seconds, error=done.error)
        yield done
