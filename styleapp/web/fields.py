"""Fields that several tabs have."""

from __future__ import annotations

import hashlib
import math
import os
import pickle
from abc import ABCMeta
from collections.abc import Callable, Sequence
from typing import Any, cast

import gradio as gr
from gradio.components import Component

from styleapp.files import example_photos
from styleapp.web.service import Service

__all__ = ["cancels", "number", "photo_field", "renders", "slider", "stroke_field", "style_field", "upload", "variant"]


def variant(base: type[Component], preprocess: Callable[[Any, Any], Any]) -> Any:
    """A class as this component's, with another ``preprocess``, (self, payload) to what handlers are given.

    (A method set on one field would be lost: Gradio makes it anew, by its class, for a visitor whose field a handler
    has changed. And of a subclass that is written down Gradio writes a stub beside the source.)
    """
    return ABCMeta.__new__(type(base), base.__name__, (base,), {"preprocess": preprocess})


def upload(label: str, height: int = 240, **more: Any) -> gr.Image:
    """An image field that hands over the uploaded file as it is.

    Gradio's own decodes it first: without a limit on pixels, in 8 bits, and with errors that show the
    file's place on this machine.
    """
    kind = variant(gr.Image, lambda field, payload: _as_uploaded(payload))
    return cast(gr.Image, kind(label=label, type="filepath", sources=["upload", "clipboard"], height=height, **more))


def _as_uploaded(payload: Any) -> str | None:
    if payload is None:
        return None
    if not payload.path:  # an image inlined in the request as a data: URL
        raise gr.Error("Send the image as an uploaded file.", print_exception=False)
    try:
        os.utime(payload.path)  # the hour for which it is kept begins anew
    except FileNotFoundError:
        raise gr.Error(
            "This picture is no longer here: uploads are kept for an hour. Drop it again.", print_exception=False
        ) from None
    except OSError:  # not ours to touch, nor to delete
        pass
    return str(payload.path)


def slider(least: float, most: float, value: float, **more: Any) -> gr.Slider:
    """A slider whose box may be typed in: empty for a moment it stands for ``value``, and far out for its end.

    Gradio's own raises an error then, which would stand over the result.
    """
    kind = variant(gr.Slider, lambda field, payload: min(max(_number(payload, value, field.label), least), most))
    return cast(gr.Slider, kind(least, most, value, **more))


def number(base: type[gr.Slider] | type[gr.Number], value: float, label: str, **more: Any) -> Any:
    """A field of an endpoint: null stands for ``value``, and what is no number is told."""
    kind = variant(base, lambda field, payload: base.preprocess(field, _number(payload, value, label)))
    return kind(value=value, label=label, **more)


def _number(payload: Any, value: float, label: str) -> float:
    if payload is None:
        return value
    if isinstance(payload, bool) or not isinstance(payload, (int, float)) or not math.isfinite(payload):
        raise gr.Error(f"{label} is a number, got {payload!r}", print_exception=False)
    return payload


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


def renders(
    service: Service,
    button: gr.Button,
    render: Callable[..., Any],
    outputs: Sequence[Any],
    inputs: Sequence[Any],
    preview: Callable[..., Any],
    shows: Sequence[Any],
    *,
    moved: Sequence[Any] | None = None,
    more: Sequence[Any] = (),
    **options: Any,
) -> list[Any]:
    """Let the button make the result, and every change a preview; of changes while one is made, the last counts.

    A preview never takes the place of the result: one that the page has kept back while another was made comes behind
    the button's turn, asks for what the result is of, and is left out. (Cancelled by the button, as Gradio can do it,
    the next one came all the same, and at times "Error" stood over the result.)

    Args:
        render: given the request, the progress, the values of ``inputs`` and then of ``more``; makes ``outputs``.
        preview: given the values of ``inputs``; makes ``shows``.
        moved: the fields whose changes count, if not all of ``inputs``.
        options: of the button's event.

    Returns:
        The events, that of the button first.
    """
    rendered = gr.State([])  # what the last result is of, until there is a preview of something else
    private: dict[str, Any] = {"api_visibility": "private", **service.queue}

    # What Gradio puts in by itself comes first: behind *given it would not find its place.
    def begin(
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 - how Gradio finds it
        last: list[Any] | None = None,
        *given: Any,
    ) -> Any:
        assert last is not None
        last[:] = [_digest(given[: len(inputs)])]
        return render(request, progress, *given)

    def follow(last: list[Any], *given: Any) -> Any:
        if last and last == [_digest(given)]:
            return _nothing(shows)
        last.clear()
        found = preview(*given)
        return _nothing(shows) if last else found

    run = button.click(begin, [rendered, *inputs, *more], list(outputs), **options, **private)
    follows: dict[str, Any] = {"trigger_mode": "always_last", "show_progress": "hidden", **private}
    fields = inputs if moved is None else moved
    return [run, *(field.change(follow, [rendered, *inputs], list(shows), **follows) for field in fields)]


def _digest(given: Sequence[Any]) -> bytes:
    """Of the values of fields: pictures among them are not kept for it."""
    found = hashlib.blake2b()
    for value in given:  # each by itself: two equal strings of one tuple are pickled once or twice
        found.update(pickle.dumps(value))
    return found.digest()


def _nothing(outputs: Sequence[Any]) -> Any:
    """For a handler with these outputs: they stay as they are."""
    return gr.skip() if len(outputs) == 1 else tuple(gr.skip() for _ in outputs)


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
    return slider(sizes[0], sizes[-1], service.stroke, step=1, label="Stroke size")
