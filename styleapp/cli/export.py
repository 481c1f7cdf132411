"""The verb export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from styleapp.cli.common import Json, errors_told
from styleapp.cli.stylize import parse_weights
from styleapp.options import Options


def export(
    out: Annotated[Path, typer.Option("--out", "-o", help="The ONNX file.")],
    style: Annotated[
        list[str] | None,
        typer.Option(
            "--style",
            "-s",
            help="A painting or the name of a style, which the file then has inside; repeat to mix. Without one the "
            "file takes a painting with each photo.",
        ),
    ] = None,
    weights: Annotated[str, typer.Option(help="Weights of the styles, such as 0.7,0.3; equal if not given.")] = "",
    alpha: Annotated[float, typer.Option(help="Strength, 0 to 1.")] = 1.0,
    norm: Annotated[str, typer.Option(help="auto, cin, adain or in; as for stylize.")] = "auto",
    style_size: Annotated[int, typer.Option(help="Short side at which the styles are measured.")] = Options.style_size,
    refine: Annotated[int | None, typer.Option(min=0, help="Steps of refining the code of a painting.")] = None,
    detail: Annotated[float, typer.Option(help="With a style: how much fine texture of photos it sees, 0 to 1.")] = 1.0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that exists.")] = False,
    as_json: Json = False,
) -> None:
    """Write a network as an ONNX file, to be used without StyleApp: styleapp export --style great-wave -o wave.onnx"""
    with errors_told():
        options = Options(alpha=alpha, norm=norm, style_size=style_size, refine=refine, detail=detail)
        from styleapp.export import check_onnx_output, export_onnx
        from styleapp.pipeline import StyleTransfer

        check_onnx_output(out, overwrite)
        styles = style or []
        shares = parse_weights(weights, len(styles))
        chosen = styles[0] if len(styles) == 1 else list(zip(styles, shares, strict=True)) or None
        about = export_onnx(StyleTransfer("cpu", "fp32"), out, chosen, options, overwrite=overwrite)
        typer.echo(json.dumps({"output": str(out), **about}) if as_json else out)
