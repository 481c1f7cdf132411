"""The verb stylize, for photos that are named."""

from __future__ import annotations

import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from styleapp.cli.common import (
    Compile,
    Device,
    Json,
    MaxPixels,
    Precision,
    options_of,
    progress_bar,
    stderr,
    tell,
)
from styleapp.errors import OptionError, StyleError
from styleapp.options import BatchOptions, Options

if TYPE_CHECKING:
    from styleapp.batch import Settings
    from styleapp.cli.folders import Wanted
    from styleapp.pipeline import StyleTransfer


@options_of(BatchOptions, "many")
@options_of(Options)
def stylize(
    content: Annotated[
        list[str],
        typer.Argument(
            metavar="CONTENT...",
            help="Photos, folders of photos (with theirs), patterns, or - for paths on standard input.",
        ),
    ],
    options: Options,
    many: BatchOptions,
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
        str | None,
        typer.Option(
            "--out",
            "-o",
            help="A file, or a folder for several photos; for folders also a pattern such as "
            "out/{style}/{stem}.{ext}. Default: here.",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Tell what would be done, and do nothing.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Stylize what comes into the folder, until stopped.")] = False,
    smooth: Annotated[
        float, typer.Option(min=0, help="Of films: seconds over which the photo's moments are smoothed.")
    ] = 0.5,
    as_bytes: Annotated[
        bool, typer.Option("--bytes", help="With CONTENT -: one image on standard input; with -o - to standard output.")
    ] = False,
    fmt: Annotated[str, typer.Option("--format", help="Format of results in a folder; default: as the photo.")] = "",
    quality: Annotated[int, typer.Option(min=1, max=100, help="Of JPEG, WebP, AVIF and HEIC.")] = 95,
    device: Device = "auto",
    precision: Precision = "auto",
    compile: Compile = False,
    max_megapixels: MaxPixels = 200,
    code_cache: Annotated[
        bool,
        typer.Option(
            "--code-cache/--no-code-cache",
            help="Keep what is found out about a painting for the next run (numbers, not the picture; "
            "styleapp info says where).",
        ),
    ] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")] = False,
    as_json: Json = False,
) -> None:
    """Stylize photos: styleapp stylize photo.jpg --style great-wave -o out.png"""
    from styleapp.batch.work import Settings
    from styleapp.cli.folders import Wanted, stylize_many, watch_folder
    from styleapp.codes import codes_folder

    style = style or []
    regions = [parse_region(text) for text in region or []]
    if not style and not regions:
        raise OptionError("a --style is needed, or a --region with one")
    for role, given in (("CONTENT", content), ("--style", style)):
        if "" in given:  # as a path it would be the folder that one is in
            raise OptionError(f"{role} is empty: give a photo, a folder or a name")
    if as_bytes and content != ["-"]:
        raise OptionError("--bytes takes one image from standard input: CONTENT must be -")
    batch_size = 0 if many.batch_size == "auto" else int(many.batch_size)
    settings = Settings(
        options,
        device,
        precision,
        round(max_megapixels * 1e6),
        quality,
        batch_size,
        compile=compile,
        code_cache=str(codes_folder()) if code_cache else None,
    )
    wanted = Wanted(content, style, out or "out", fmt, overwrite, as_json)
    folders = any(is_many(text) for text in content if not as_bytes) or any(Path(s).is_dir() for s in style)
    if not (folders or many != BatchOptions() or dry_run or watch):
        sources: list[Path | bytes] = [sys.stdin.buffer.read()] if as_bytes else [Path(text) for text in content]
        with standard_output(out, fmt, as_bytes) as place:
            wanted = dataclasses.replace(wanted, out=place, to_stdout=out == "-")
            shares = parse_weights(weights, len(style))
            stylize_named(wanted, settings, sources, shares, regions, alpha_map, smooth)
        return
    if regions or alpha_map or weights or as_bytes:
        raise OptionError("--region, --alpha-map, --weights and --bytes are for photos that are named, not for folders")
    if watch:
        watch_folder(wanted, settings, many)
    else:
        stylize_many(wanted, settings, many, dry_run=dry_run)


def is_many(text: str) -> bool:
    """Whether it stands for several photos, or for one in a store."""
    path = Path(text)
    return text == "-" or "://" in text or path.is_dir() or (not path.exists() and bool(set("*?[") & set(text)))


@contextmanager
def standard_output(out: str | None, fmt: str, as_bytes: bool) -> Iterator[str]:
    """Where to write: for "-" a scratch file that then goes to standard output."""
    if out != "-":
        yield out or ""
        return
    if not as_bytes:
        raise OptionError("-o - is for --bytes")
    with tempfile.TemporaryDirectory(prefix="styleapp-") as folder:
        place = Path(folder) / f"out.{fmt or 'png'}"
        yield str(place)
        if place.exists():
            sys.stdout.buffer.write(place.read_bytes())
            sys.stdout.buffer.flush()


def stylize_named(
    wanted: Wanted,
    settings: Settings,
    sources: list[Path | bytes],
    shares: list[float],
    regions: list[tuple[str, str, float]],
    alpha_map: Path | None,
    smooth: float,
) -> None:
    """Photos and films that are named one by one, with all controls."""
    from styleapp.files import VIDEOS, check_output
    from styleapp.process import tune_process

    style, options = wanted.style, settings.options
    names = [*style, *(name for _, name, _ in regions)]
    place = Path(wanted.out) if wanted.out else None
    several = len(wanted.content) > 1
    targets = [output_path(Path(text), names, place, several=several, fmt=wanted.fmt) for text in wanted.content]
    if len(set(targets)) < len(targets):
        raise OptionError("two photos of the same name would be written to the same file; stylize them apart")
    films = {text for text in wanted.content if Path(text).suffix.lower() in VIDEOS}
    if films and (regions or alpha_map):
        raise OptionError("--region and --alpha-map are for photos, not for films")
    for text, source, target in zip(wanted.content, sources, targets, strict=True):
        if text not in films and (isinstance(source, bytes) or source.exists()):  # what is not there is told below
            check_output(target, wanted.overwrite)

    tune_process()
    transfer = settings.transfer()
    base = None
    if style:
        base = transfer.prepare(style[0] if len(style) == 1 else list(zip(style, shares, strict=True)), options)
    more = {
        "regions": [(mask, transfer.prepare(name, options), alpha) for mask, name, alpha in regions],
        "alpha_map": alpha_map,
    }
    failed = 0
    to_stdout = wanted.to_stdout
    for photo, source, target in zip(wanted.content, sources, targets, strict=True):
        try:
            if photo in films:
                made = stylize_film(transfer, Path(photo), target, base, settings, smooth, wanted)
            else:
                made = stylize_file(transfer, source, target, base, options, more, settings.quality)
        except StyleError as error:
            failed = tell(error, photo if several else "")
            if wanted.as_json:
                typer.echo(json.dumps({"input": photo, "error": str(error)}), err=to_stdout)
            continue
        for note in made.notes:
            stderr.print(f"{photo}: {note}", markup=False)
        if wanted.as_json:
            record = {
                "input": photo,
                "output": str(target),
                "width": made.size[1],
                "height": made.size[0],
                "styles": dict(zip(style, shares, strict=True)),
                "regions": [{"mask": m, "style": n, "alpha": a} for m, n, a in regions],
                **dataclasses.asdict(options),
                "norm": made.norm,
                "device": str(transfer.device),
                "precision": transfer.precision,
                "seconds": {name: round(value, 4) for name, value in made.seconds.items()},
                "notes": made.notes,
            }
            typer.echo(json.dumps(record), err=to_stdout)
        elif not to_stdout:
            how = f"{made.seconds['stylize']:.2f} s on {transfer.device} in {transfer.precision}, norm {made.norm}"
            typer.echo(f"{target}  {made.size[1]}x{made.size[0]}  {how}")
    if failed:
        raise typer.Exit(failed)


class Made(NamedTuple):
    """A result: (height, width), seconds of each stage, what the user should know, the norm that was taken."""

    size: tuple[int, int]
    seconds: dict[str, float]
    notes: list[str]
    norm: str


def stylize_film(
    transfer: StyleTransfer,
    film: Path,
    target: Path,
    style: Any,
    settings: Settings,
    smooth: float,
    wanted: Wanted,
) -> Made:
    """As :func:`stylize_file` for a film; Ctrl-C and SIGTERM end it after the frame in hand."""
    from styleapp.process import stopping
    from styleapp.video import Stopped, check_options, stylize_video

    options = check_options(transfer, style, settings.options)
    start = time.perf_counter()
    with stopping() as stopped, progress_bar(film.name) as advance:
        try:
            done = stylize_video(
                transfer,
                film,
                target,
                style,
                options,
                smooth=smooth,
                quality=settings.quality,
                overwrite=wanted.overwrite,
                progress=advance,
                stop=stopped,
            )
        except Stopped as stop:
            stderr.print(f"{film}: {stop}", markup=False)
            raise typer.Exit(128 + stopped()) from None
    seconds = time.perf_counter() - start
    note = f"{done.frames} frames" + (f", {done.before} of them done before" if done.before else "")
    speed = f"{(done.frames - done.before) / seconds:.2f} frames/s"
    return Made(done.size, {"stylize": seconds}, [f"{note}; {speed}"], options.norm)


def stylize_file(
    transfer: StyleTransfer,
    photo: Path | bytes,
    target: Path,
    style: Any,
    options: Options,
    more: dict[str, Any],
    quality: int,
) -> Made:
    """Read, stylize, write.

    What has several frames becomes a file of as many where the result can hold them.
    """
    from styleapp.files import ANIMATED, check_size, frames_in, read_animation, save_animation, save_picture
    from styleapp.large import LargePicture, save_large

    notes: list[str] = []
    start = time.perf_counter()
    moving = isinstance(photo, Path) and photo.suffix.lower() in ANIMATED and target.suffix.lower() in ANIMATED
    film = read_animation(photo, transfer.max_pixels) if moving else None
    styles = [*([] if style is None else [style]), *(name for _, name, _ in more["regions"])]
    used = transfer.styles.settled(options, styles)
    if film is not None:
        read = time.perf_counter()
        done = transfer.animate(film, style, used, **more)
        rendered = time.perf_counter()
        save_animation(done, target, quality=quality)
        size = done.frames[0].size
    else:
        picture = transfer.fit(photo, options, on_disk=True)
        check_size(target, picture.size)
        read = time.perf_counter()
        with progress_bar("stylizing") as advance:  # moves tile by tile
            result = transfer.picture(
                picture,
                style,
                used,
                note=notes.append,
                progress=lambda share: advance(round(100 * share), 100),
                **more,
            )
        rendered = time.perf_counter()
        notes.append(picture.metadata.note)
        if isinstance(photo, Path) and not moving and (count := frames_in(photo)) > 1:
            notes.append(f"the first of {count} frames; {', '.join(ANIMATED)} as a result keep them all")
        del picture  # of a large photo there is no room for the copy that an encoder makes besides
        if isinstance(result, LargePicture):
            notes.append(save_large(result, target, quality=quality))
        else:
            notes.append(save_picture(result, target, quality=quality))
        size = result.size
    seconds = {"read": read - start, "stylize": rendered - read, "write": time.perf_counter() - rendered}
    return Made(size, seconds, [note for note in notes if note], used.norm)


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
    from styleapp.files import SUFFIXES, VIDEOS
    from styleapp.video import OUTPUTS

    suffix = photo.suffix if photo.suffix.lower() in (*SUFFIXES, *OUTPUTS) else ".png"
    if photo.suffix.lower() in VIDEOS and suffix == ".png":
        suffix = ".mp4"
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
