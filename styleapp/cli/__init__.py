"""The command line: verbs as words, results on stdout, progress on stderr.

Exit codes: 0 all done, 1 an input failed, 2 usage. Heavy imports stand inside the verbs.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from styleapp import __version__
from styleapp.cli.about import info, styles_app, users, web, weights_app
from styleapp.cli.export import export
from styleapp.cli.folders import report
from styleapp.cli.measure import bench, compare, evaluate
from styleapp.cli.stylize import stylize
from styleapp.cli.train import app as train_app
from styleapp.cli.train import learn

__all__ = ["app", "main"]

app = typer.Typer(
    name="styleapp",
    help="Style transfer built on adaptive norms: a photo, a painting, a stylized photo.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for verb in (stylize, report, compare, learn, export, evaluate, bench, web, users, info):
    app.command()(verb)
app.add_typer(styles_app, name="styles")
app.add_typer(train_app, name="train")
app.add_typer(weights_app, name="weights")


SPINS = 4000
"""How often a thread of OpenMP looks for work before it sleeps; of itself GCC's does so 300,000 times. While another
program is at work they keep each other from the cores: small photos took ten times as long beside a training. A
quarter of this, and they sleep between two operations: 512 px by CIN then take a fifth longer."""


def main(arguments: Sequence[str] | None = None) -> None:
    """The entry point ``styleapp``; ``arguments`` in the place of those of the process."""
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = str(SPINS)  # is looked at when PyTorch is imported, which verbs do
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files may be in no encoding: they come out as they are
        sys.stdout.reconfigure(errors="surrogateescape" if "utf" in sys.stdout.encoding else "backslashreplace")
    app(arguments)


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
