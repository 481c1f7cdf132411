"""The verb stylize for folders and streams of photos, and report."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from styleapp.cli.common import Json, errors_told, progress_bar, stderr
from styleapp.errors import OptionError
from styleapp.options import BatchOptions

if TYPE_CHECKING:
    from styleapp.batch import Done, Job, Journal, Settings
    from styleapp.batch.run import Engine
    from styleapp.pipeline import StyleTransfer


@dataclass(frozen=True)
class Wanted:
    """What was asked for on the command line, besides options."""

    content: list[str]
    style: list[str]
    out: str
    fmt: str
    overwrite: bool
    as_json: bool
    to_stdout: bool = False

    @property
    def folder(self) -> str:
        """The folder of the results, before the first field of a pattern."""
        if "{" not in self.out:
            return self.out
        return self.out.split("{", maxsplit=1)[0].rpartition("/")[0] or "."


def plan_of(wanted: Wanted, many: BatchOptions, left_out: Callable[[Path], None] = lambda film: None) -> list[Job]:
    """The jobs; ``left_out`` is called with each film in a folder, which makes none.

    Raises:
        OptionError: for an output or a format that does not fit.
        ImageError: if there is nothing to do.
    """
    from styleapp.batch import find_photos, find_styles, make_jobs
    from styleapp.files import SUFFIXES

    if Path(wanted.out).suffix.lower() in SUFFIXES and "{" not in wanted.out:
        raise OptionError(
            f"{wanted.content[0]}: is a folder or many photos, so -o must be a folder or a pattern such as "
            f"out/{{style}}/{{stem}}.{{ext}}, got {wanted.out}"
        )
    suffix = f".{wanted.fmt.lower().lstrip('.')}" if wanted.fmt else ""
    if suffix and suffix not in SUFFIXES:
        raise OptionError(f"--format: unknown format {wanted.fmt!r}; choices: {', '.join(s[1:] for s in SUFFIXES)}")
    made = {key for key, record in journal_at(wanted).items() if "error" not in record}  # what was refused is a user's
    photos = find_photos(wanted.content, made, left_out)
    styles = find_styles(wanted.style)
    return make_jobs(photos, styles, wanted.out, pairs=many.pairs or "all", seed=many.seed, suffix=suffix)


def journal_at(wanted: Wanted) -> dict[str, dict[str, Any]]:
    """The records of earlier runs into the same folder, by their outputs."""
    from styleapp.batch import journal_of, place
    from styleapp.batch.journal import read_journal

    path = journal_of(place(wanted.folder))
    return read_journal(path) if path.exists() else {}


def stylize_many(wanted: Wanted, settings: Settings, many: BatchOptions, *, dry_run: bool) -> None:
    """Folders in, folders out: plan, run, report. Given again, the command does what is left."""
    from styleapp.batch import Journal, place
    from styleapp.batch.plan import output_key
    from styleapp.process import stopping

    films: list[Path] = []
    jobs = plan_of(wanted, many, films.append)
    if films:
        some = ", ".join(film.name for film in films[:3]) + (", …" if len(films) > 3 else "")
        stderr.print(f"left out: {counted(len(films), 'film')}; films are named one by one ({some})", markup=False)
    if many.retry_failed:
        failed = {key for key, record in journal_at(wanted).items() if "error" in record}
        jobs = [job for job in jobs if output_key(job.target) in failed]
    if dry_run:
        tell_plan(wanted, settings, jobs)
        return
    transfer, name = prepared(settings, jobs)
    with Journal(place(wanted.folder), name) as journal, stopping() as stopped:
        failures = work_through(
            wanted, many, jobs, journal, stopped, lambda stop: engine_of(settings, many, transfer, stop)
        )
    if stopped():
        raise typer.Exit(128 + stopped())
    if failures:
        raise typer.Exit(1)


def tell_plan(wanted: Wanted, settings: Settings, jobs: Sequence[Job]) -> None:
    """What would be done, how long it would take and what it would fill, without doing it."""
    from styleapp.batch import estimate

    for job in jobs:
        if wanted.as_json:
            record = {"input": str(job.photo), "style": job.style, "output": str(job.target)}
            typer.echo(json.dumps(record))
        else:
            typer.echo(f"{job.photo}  {job.style}  {job.target}")
    asked = settings.options
    found = estimate(jobs, asked.size, speed_of(settings), work_size=asked.work_size)
    at = Path(wanted.folder).absolute()
    while not at.exists():
        at = at.parent
    free = shutil.disk_usage(at).free
    if wanted.as_json:
        typer.echo(json.dumps({**dataclasses.asdict(found), "free": free}))
    minutes = "" if found.seconds is None else f", about {readable_time(found.seconds)}"
    stderr.print(
        f"{counted(found.results, 'result')} would be written to {wanted.folder}/: "
        f"{found.megapixels:.1f} megapixels{minutes}, about {found.disk / 1e6:.1f} MB ({free / 1e9:.1f} GB are free)",
        markup=False,
    )
    if found.unreadable:
        stderr.print(f"{counted(found.unreadable, 'photo')} of a sample cannot be read", markup=False)
    if found.disk > free:
        stderr.print("the disk is too small for them", markup=False)


def speed_of(settings: Settings) -> float:
    """Megapixels a second of this device, measured with one picture of 256 x 256 by CIN, or AdaIN for other norms."""
    import torch

    from styleapp.images import Picture
    from styleapp.options import Options
    from styleapp.process import tune_process

    tune_process()
    transfer = settings.transfer()
    photo = Picture(torch.randint(256, (1, 3, 256, 256), dtype=torch.uint8))
    learned = sorted(transfer.styles.learned_styles) if settings.options.norm in ("auto", "cin") else []
    options = Options(norm="cin" if learned else "adain")
    if learned:
        code = transfer.styles.code(learned[0], options.style_size, options.norm)
    else:
        code = transfer.networks.adain.measure(photo.rgb.to(transfer.device))
    transfer.picture(photo, code, options)  # the first is slower
    start = time.perf_counter()
    transfer.picture(photo, code, options)
    return photo.size[0] * photo.size[1] / 1e6 / (time.perf_counter() - start)


def counted(count: int, what: str) -> str:
    """ "1 photo" or "2 photos"."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def readable_time(seconds: float) -> str:
    """ "50 s", "12 min" or "3.5 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def prepared(settings: Settings, jobs: Sequence[Job]) -> tuple[StyleTransfer, str]:
    """A network that has seen every style, so that a bad one is told before the first photo; and the settings' hash."""
    from styleapp.batch import settings_hash
    from styleapp.process import tune_process

    tune_process()
    transfer = settings.transfer()
    for name in dict.fromkeys(job.style for job in jobs):
        transfer.prepare(name, settings.options)
    checksum = transfer.networks.checksum_of(settings.options.norm)
    return transfer, settings_hash(settings.options, transfer.precision, settings.quality, checksum)


def engine_of(
    settings: Settings, many: BatchOptions, transfer: StyleTransfer, stop: Callable[[], bool] = lambda: False
) -> Engine:
    """In this process, in several, or on a Ray cluster."""
    from styleapp.batch.processes import run_processes, settings_of_workers
    from styleapp.batch.work import Worker

    if many.engine == "ray":
        from styleapp.batch.cluster import run_ray

        return lambda tasks: run_ray(settings, tasks, workers=many.workers, address=many.address, stop=stop)
    each = settings_of_workers(settings, many.workers)
    if len(each) == 1:
        return Worker(each[0], transfer).run
    return lambda tasks: run_processes(each, (task for task in tasks if task is not None))


def work_through(
    wanted: Wanted,
    many: BatchOptions,
    jobs: Sequence[Job],
    journal: Journal,
    stopped: Callable[[], int],
    engine_with: Callable[[Callable[[], bool]], Engine],
) -> list[Done]:
    """Do the jobs and tell each outcome; the failures."""
    from styleapp.batch import run_jobs

    counts = {"done": 0, "skipped": 0, "failed": 0}
    failures: list[Done] = []
    start = time.perf_counter()

    def enough() -> bool:
        limit = 1 if many.fail_fast else many.max_failures
        return bool(stopped()) or (limit > 0 and len(failures) >= limit)

    with progress_bar("photos") as advance:
        for done in run_jobs(engine_with(enough), jobs, journal, overwrite=wanted.overwrite, stop=enough):
            kind = "failed" if done.error else "skipped" if done.skipped else "done"
            counts[kind] += 1
            advance(sum(counts.values()), len(jobs), f"{counts['failed']} failed" if counts["failed"] else "")
            if done.error:
                failures.append(done)
                stderr.print(f"error: {done.error}", markup=False)
            record = {"input": str(done.job.photo), "style": done.job.style, "output": str(done.job.target)}
            if wanted.as_json:
                outcome = {"error": done.error} if done.error else {"seconds": round(done.seconds, 4)}
                typer.echo(json.dumps({**record, "outcome": kind, **outcome}))
            elif kind == "done":
                typer.echo(f"{done.job.target}  {done.seconds:.2f} s")
    seconds = time.perf_counter() - start
    left = len(jobs) - sum(counts.values())
    if wanted.as_json:
        typer.echo(json.dumps({**counts, "left": left, "seconds": round(seconds, 2)}))
    stderr.print(
        f"{counts['done']} done, {counts['skipped']} done before, {counts['failed']} failed"
        f"{f', {left} left: the same command goes on' if left else ''} "
        f"({counts['done'] / max(seconds, 1e-9):.2f} images/s)",
        markup=False,
    )
    return failures


LOOKING = 20
"""So many times what it takes to look through a watched folder passes before that is done without a notice of a change,
which network file systems do not send."""


def watch_folder(wanted: Wanted, settings: Settings, many: BatchOptions) -> None:
    """Stylize what is in the folders and what comes into them, until stopped."""
    try:
        from watchfiles import watch
    except ImportError:
        raise OptionError("--watch needs watchfiles; pip install 'styleapp[watch]'") from None
    from styleapp.batch import Journal, place
    from styleapp.errors import ImageError
    from styleapp.process import stopping

    if any(not Path(c).is_dir() for c in wanted.content):
        raise OptionError(f"--watch takes folders that exist, got {', '.join(wanted.content)}")
    inside = Path(wanted.folder).resolve()
    if any(inside.is_relative_to(Path(c).resolve()) for c in wanted.content):
        raise OptionError(f"-o {wanted.out}: lies in a folder that is watched, so results would be stylized again")

    def jobs() -> list[Job]:
        try:
            return plan_of(wanted, many)
        except ImageError:  # nothing in it yet
            return []

    transfer, name = prepared(settings, jobs())
    engine = engine_of(settings, many, transfer)
    seen: dict[str, tuple[int, int]] = {}
    with Journal(place(wanted.folder), name) as journal, stopping() as stopped:
        stderr.print(f"watching {', '.join(wanted.content)}; Ctrl-C ends", markup=False)
        changes = watch(
            *wanted.content,
            debounce=200,
            step=100,
            rust_timeout=500,
            yield_on_timeout=True,
            raise_interrupt=False,
        )
        while not stopped():
            start = time.monotonic()
            found = {j: _state(j.photo) for j in jobs()}
            new = [j for j, state in found.items() if seen.get(str(j.target)) != state]
            seen |= {str(j.target): state for j, state in found.items()}
            pause = LOOKING * (time.monotonic() - start)
            if new:
                work_through(wanted, many, new, journal, stopped, lambda _: engine)
            until = time.monotonic() + pause
            while not stopped() and not next(changes, None) and time.monotonic() < until:
                pass
        raise typer.Exit(128 + stopped())


def _state(path: Path) -> tuple[int, int]:
    """What changes when a file does."""
    try:
        found = path.stat()
    except OSError:
        return 0, 0
    return found.st_mtime_ns, found.st_size


def report(
    journal: Annotated[Path, typer.Argument(metavar="JOURNAL", help="A folder of results, or the journal in it.")],
    sheet: Annotated[
        Path | None, typer.Option(help="Write a contact sheet: a picture file, or a page (.html) with every result.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the contact sheet.")] = False,
    as_json: Json = False,
) -> None:
    """Tell again what became of a run over folders."""
    with errors_told():
        from styleapp.batch import summarize
        from styleapp.batch.sheet import contact_sheet

        summary = summarize(journal)
        if sheet is not None:
            contact_sheet(journal, sheet, overwrite=overwrite)
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(summary)))
        return
    for output, error in summary.failed.items():
        typer.echo(f"failed  {output}: {error}")
    for output in summary.unfinished:
        typer.echo(f"unfinished  {output}")
    typer.echo(f"{summary.done} done in {summary.seconds:.1f} s, {len(summary.failed)} failed")
    if sheet is not None:
        typer.echo(sheet)
