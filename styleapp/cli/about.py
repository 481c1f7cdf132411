"""The verbs that tell what is there: styles, weights, info; and web."""

from __future__ import annotations

import dataclasses
import json
import re
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from styleapp import __version__
from styleapp.cli.common import (
    Device,
    Json,
    Precision,
    errors_told,
    progress_bar,
    show,
    stderr,
)
from styleapp.errors import OptionError
from styleapp.options import parse_bytes

styles_app = typer.Typer(help="The styles that have a name.")
weights_app = typer.Typer(help="The shipped weight files.", no_args_is_help=True)


@styles_app.callback(invoke_without_command=True)
def styles(context: typer.Context, as_json: Json = False) -> None:
    """List the built-in styles, and those that were saved."""
    if context.invoked_subcommand:
        return
    with errors_told():
        from styleapp.weights import Weights

        gallery = Weights().gallery()
    known = gallery.styles.values()
    for error in gallery.damaged.values():
        stderr.print(f"left out: {error}", markup=False)
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
    """Measure a painting once, refine its code, and keep it under a name."""
    with errors_told():
        from styleapp.pipeline import StyleTransfer
        from styleapp.process import tune_process

        tune_process()
        with progress_bar("refining") as progress:
            path = StyleTransfer(device, precision).styles.save(painting, name, overwrite=overwrite, progress=progress)
        typer.echo(path)


@styles_app.command("remove")
def styles_remove(name: Annotated[str, typer.Argument(help="A style that was saved or learned.")]) -> None:
    """Delete a style that was saved: its file, and with it its name."""
    with errors_told():
        from styleapp.gallery import remove_style
        from styleapp.weights import Weights

        typer.echo(f"{remove_style(name, Weights().gallery())}  removed")


def info(as_json: Json = False) -> None:
    """Versions, devices, precisions, and where the weights were found."""
    with errors_told():
        import platform
        from importlib.metadata import PackageNotFoundError, version

        import torch

        from styleapp.codes import codes_folder
        from styleapp.devices import find_precision
        from styleapp.gallery import styles_folder
        from styleapp.kernels import convolve, work
        from styleapp.process import tune_process
        from styleapp.weights import Weights, weights_folder

        tune_process()

        def installed(package: str) -> str:
            try:
                return version(package)
            except PackageNotFoundError:
                return "not installed"

        integers = Weights().has_int8
        devices = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        kernels = {}
        for device in map(torch.device, devices[1:]):
            own = "own, convolutions too" if convolve(device, torch.bfloat16) else "own"
            kernels[str(device)] = own if work(device) else "PyTorch's alone"
        facts = {
            "styleapp": __version__,
            "python": platform.python_version(),
            **{name: installed(name) for name in ("torch", "torchvision", "pillow", "safetensors", "gradio")},
            "devices": {name: find_precision("auto", torch.device(name), integers=integers) for name in devices},
            **({"kernels": kernels} if kernels else {}),
            "threads": torch.get_num_threads(),
            "weights": str(weights_folder()),
            "styles": str(styles_folder()),
            "codes": str(codes_folder()),
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
        typer.echo(json.dumps([dataclasses.asdict(e) for e in entries], default=str))
        return
    table = Table("name", "file", "architecture", "config", "licence", "source", box=None, pad_edge=False)
    for e in entries:
        table.add_row(e.name, e.file, e.architecture, json.dumps(e.config), e.licence, e.source)
    show(table)


@weights_app.command("import")
def weights_import(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Checkpoints of other repositories (.pth).")],
    folder: Annotated[
        Path | None, typer.Option(help="A folder of weights to add to; by default one of your own.")
    ] = None,
    name: Annotated[str, typer.Option(help="Of a single network of one style; default: the name of its file.")] = "",
    as_json: Json = False,
) -> None:
    """Convert well-known checkpoints of others: AdaIN encoder and decoder, fast_neural_style, torchvision's VGG-19."""
    with errors_told():
        from styleapp.foreign import import_weights
        from styleapp.weights import IN, imported_folder

        if name and len(files) > 1:
            raise OptionError("--name is for a single file")
        names = import_weights(files, folder, name)
    place = folder or imported_folder()
    if as_json:
        typer.echo(json.dumps({"folder": str(place), "names": names}))
        return
    for made in names:
        if made.startswith(IN):
            typer.echo(f"{place / made}.safetensors  use it: --norm in --style {made.removeprefix(IN)}")
        else:
            typer.echo(f"{place / made}.safetensors  use it, with encoder and decoder: STYLEAPP_WEIGHTS={place}")


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


def web(
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 opens the page to the network.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 7860,
    auth_file: Annotated[
        Path | None, typer.Option(help="Only these users, with passwords; made by styleapp users.")
    ] = None,
    max_upload: Annotated[str, typer.Option(help="Largest upload, such as 20MB.")] = "20MB",
    max_pixels: Annotated[str, typer.Option(help="Largest photo or painting, such as 40MP.")] = "40MP",
    mcp: Annotated[bool, typer.Option("--mcp", help="Serve the endpoints to language models too (extra mcp).")] = False,
    time_limit: Annotated[float, typer.Option(min=1, help="Seconds that one request may take.")] = 300.0,
    device: Device = "auto",
    precision: Precision = "auto",
) -> None:
    """Open the web page."""
    with errors_told():
        parse_bytes(max_upload)
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:MP|megapixels)?", max_pixels.strip(), re.I)
        if not match:
            raise OptionError(f"--max-pixels is a size such as 40MP, got {max_pixels!r}")
        try:
            from styleapp.web.server import launch, read_users
        except ModuleNotFoundError as error:
            raise OptionError(f"the web page needs {error.name}: pip install {error.name}") from None
        from styleapp.pipeline import StyleTransfer
        from styleapp.process import tune_process

        # As docker stop and systemd end it: visitors' files go with the page.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        users = read_users(auth_file) if auth_file is not None else None
        tune_process()
        transfer = StyleTransfer(device, precision, max_pixels=round(float(match[1]) * 1e6))
        server = launch(
            transfer,
            host=host,
            port=port,
            max_upload=max_upload.lower(),
            users=users,
            work_seconds=time_limit,
            mcp=mcp,
        )
        typer.echo(f"{server.url}  Ctrl-C ends")
        try:
            server.wait()
        finally:
            server.close()


def users(
    file: Annotated[Path, typer.Argument(help="The file for styleapp web --auth-file.")],
    name: Annotated[str, typer.Argument(help="The user, new or with a new password.")],
) -> None:
    """Add a user of the web page; asks for the password, of which only a hash is kept."""
    with errors_told():
        from styleapp.web.server import add_user

        add_user(file, name, typer.prompt("Password", hide_input=True, confirmation_prompt=True))
    typer.echo(f"{file}: {name} may enter")
