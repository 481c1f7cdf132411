"""What the verbs share: flags of dataclasses, errors on one line, progress."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from styleapp.errors import DeviceError, OptionError, StyleError

stderr = Console(stderr=True, highlight=False, soft_wrap=True)

Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:1. Only auto falls back.")]
Precision = Annotated[str, typer.Option(help="auto, fp32, bf16, fp16 or int8.")]
Compile = Annotated[
    bool, typer.Option("--compile", help="Use torch.compile; bench --compile tells what it costs and whether it pays.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
MaxPixels = Annotated[float, typer.Option("--max-megapixels", min=0, help="Refuse larger photos and paintings.")]


def tell(error: StyleError, photo: str = "") -> int:
    """Print one line on stderr, which names the photo; the exit code that the error stands for."""
    where = "" if photo in str(error) else f"{photo}: "
    stderr.print(f"error: {where}{error}", markup=False, style="red" if stderr.is_terminal else None)
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


def options_of(cls: type, into: str = "options") -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a verb one flag for each field of a dataclass, and the filled dataclass as its argument ``into``.

    Help texts are the lines of the class's ``Attributes``.
    """
    described: dict[str, str] = {}
    for base in cls.__mro__:
        text = base.__doc__ or ""
        described |= dict(re.findall(r"^ {8}(\w+): (.+?)(?=\n {8}\w|\n\n|\n {4}\S|\Z)", text, re.M | re.S))
    types = typing.get_type_hints(cls)

    def decorate(verb: Callable[..., None]) -> Callable[..., None]:
        # Not typing.get_type_hints: on Python 3.10 it wraps what defaults to None in another Optional.
        parameters = [p for n, p in inspect.signature(verb, eval_str=True).parameters.items() if n != into]
        for field in dataclasses.fields(cls):
            text = " ".join(described.get(field.name, "").split())
            alone = [f"--{field.name.replace('_', '-')}"] if field.default is False else []  # no --no-… beside it
            flag = typer.Option(*alone, help=text)
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
                verb(*args, **{into: cls(**chosen)}, **kwargs)

        wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
        return wrapper

    return decorate


@contextmanager
def progress_bar(text: str) -> Iterator[Callable[..., None]]:
    """Call with (done, total) and perhaps a note. A bar with speed and time left on a terminal, nothing elsewhere."""
    if not stderr.is_terminal:  # some versions of rich end a disabled bar with an empty line
        yield lambda done, total, note="": None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", style="red"),
    )
    with Progress(*columns, console=stderr, transient=True) as bar:
        task = bar.add_task(text, total=None, speed="", note="")

        def advance(done: int, total: int, note: str = "") -> None:
            speed = bar.tasks[0].speed or bar.tasks[0].finished_speed
            bar.update(task, completed=done, total=total or None, speed=f"{speed:.2f}/s" if speed else "", note=note)

        yield advance


def show(table: Table) -> None:
    """Print a table on stdout; as wide as it needs where nobody looks at it."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=500)
    console.print(table)
