"""Fields that several tabs have."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from styleapp.files import example_photos
from styleapp.web.service import Service

__all__ = ["cancels", "photo_field", "previews", "stroke_field", "style_field", "upload"]


def upload(label: str, height: int = 240, **more: Any) -> gr.Image:
    """An image field that hands over the uploaded file as it is.

    Gradio's own decodes it first: without a limit on pixels, in 8 bits, and with errors that show the
    file's place on this machine. (No subclass: Gradio writes a stub beside the source of each.)
    """
    field = gr.Image(label=label, type="filepath", sources=["upload", "clipboard"], height=height, **more)
    field.preprocess = _as_uploaded
    return field


def _as_uploaded(payload: Any) -> str | None:
    if payload is None:
        return None
    if not payload.path:  # an image inlined in the request as a data: URL
        raise gr.Error("Send the image as an uploaded file.", print_exception=False)
    return str(payload.path)


def photo_field(label: str = "Photo", height: int = 260) -> gr.Image:
    """Where a visitor puts a photo, or takes one that comes with us."""
    field = upload(label, height)
    if photos := example_photos():
        gr.Examples(
            [str(p) for p in photos],
            field,
            label="Or try one of these",
            example_labels=[p.stem.capitalize() for p in photos],
            api_visibility="private",
        )
    return field


def previews(
    service: Service, fields: Sequence[Any], preview: Callable[..., Any], inputs: Sequence[Any], outputs: Sequence[Any]
) -> list[Any]:
    """Let a preview follow every change of the fields; of those that come while it works, the last counts.

    Returns:
        The events, to be cancelled by the button: a preview that still waits must not take the place of the result.
    """
    return [
        field.change(
            preview,
            list(inputs),
            list(outputs),
            trigger_mode="always_last",
            show_progress="hidden",
            api_visibility="private",
            **service.queue,
        )
        for field in fields
    ]


def cancels(service: Service, button: gr.Button, *events: Any) -> None:
    """Let the button end these events: what waits at once, what is in work after the tile in hand."""

    def cancel(request: gr.Request) -> None:
        service.cancel(request.session_hash)

    button.click(cancel, cancels=list(events), queue=False, api_visibility="private")


def style_field(service: Service, label: str = "Style", **more: Any) -> gr.Dropdown:
    """A named style."""
    choices = service.choices
    more.setdefault("value", choices[0][1] if choices else None)
    return gr.Dropdown(choices, label=label, filterable=True, **more)


def stroke_field(service: Service) -> gr.Slider:
    """The size at which a painting is measured."""
    sizes = service.transfer.styles.gallery.sizes
    return gr.Slider(sizes[0], sizes[-1], service.stroke, step=1, label="Stroke size")
