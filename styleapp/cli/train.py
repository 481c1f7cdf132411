"""The verbs that train: train adain, train cin, learn."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from styleapp.cli.common import (
    Device,
    Json,
    Precision,
    errors_told,
    options_of,
    progress_bar,
    stderr,
)
from styleapp.options import ConditionalOptions, DecoderOptions

app = typer.Typer(help="Train networks.", no_args_is_help=True)


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


@app.command("adain")
@options_of(DecoderOptions)
def train_adain(
    content: Photographs,
    style: Annotated[Path, typer.Option(help="Folder of paintings.")],
    out: Annotated[Path, typer.Option(help="Where to write the decoder (.safetensors).")],
    options: DecoderOptions,
    init: Annotated[Path | None, typer.Option(help="A decoder of this width or less to start from.")] = None,
    minutes: Minutes = float("inf"),
    sample_minutes: SampleMinutes = 10.0,
    device: Device = "auto",
) -> None:
    """Train a decoder for AdaIN.

    Ctrl-C and SIGTERM end it after the step in hand. Given again, the command goes on from its checkpoint beside OUT.
    """
    from styleapp.devices import find_device
    from styleapp.process import stopping, tune_process
    from styleapp.training.decoder import train_decoder
    from styleapp.weights import Weights

    tune_process()
    with training_told(options.steps) as report, stopping() as stopped:
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
            stop=stopped,
            report=report,
        )
    typer.echo(done)
    if stopped():
        raise typer.Exit(128 + stopped())


@app.command("cin")
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
    further: Annotated[
        Path | None,
        typer.Option(help="Folder of any paintings: a predictor of codes for those without a row is trained too."),
    ] = None,
    init: Annotated[
        Path | None, typer.Option(help="A decoder, or a network of this kind, of this width or less, to start from.")
    ] = None,
    minutes: Minutes = float("inf"),
    sample_minutes: SampleMinutes = 10.0,
    device: Device = "auto",
) -> None:
    """Train a network of conditional instance norm: decoder and one code a painting.

    Ctrl-C and SIGTERM end it after the step in hand. Given again, the command goes on from its checkpoint beside OUT.
    """
    from styleapp.devices import find_device
    from styleapp.process import stopping, tune_process
    from styleapp.training.cin import train_conditional
    from styleapp.weights import Weights

    tune_process()
    with training_told(options.steps) as report, stopping() as stopped:
        done = train_conditional(
            Weights().encoder(),
            content,
            gallery,
            out,
            options,
            styles=style or [],
            further=further,
            device=find_device(device),
            init=init,
            minutes=minutes,
            sample_minutes=sample_minutes,
            stop=stopped,
            report=report,
        )
    typer.echo(done)
    if stopped():
        raise typer.Exit(128 + stopped())


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
        from styleapp.learn import learn_style
        from styleapp.pipeline import StyleTransfer
        from styleapp.process import tune_process

        tune_process()
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
                f"{name}: style loss {learned.before[1]:.2f} at first, {learned.after[1]:.2f} as learned "
                f"(content {learned.before[0]:.2f}, {learned.after[0]:.2f}); {seconds:.0f} s; {path}"
            )
