"""The tab that most visitors want: a photo, a style, a result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import gradio as gr
from PIL import Image

from styleapp.images import on_white
from styleapp.options import COLOURS, Options
from styleapp.web.fields import cancels, photo_field, renders, slider, stroke_field, style_field, upload
from styleapp.web.service import FORMATS, Service, settings_of, told

__all__ = ["stylize_tab"]

EARLIER = 12
"""Results of this visit that are kept at hand."""

COLOUR_NAMES = {
    "none": "the painting's",
    "luma": "the photo's (stylized brightness)",
    "coral": "the painting, recoloured to the photo",
    "histogram": "the painting, with the photo's histogram",
    "palette": "only the palette, no strokes",
}
NETWORKS = {"auto": "CIN where it can, else AdaIN", "adain": "AdaIN", "cin": "CIN"}


def stylize_tab(service: Service, page: gr.Blocks) -> None:
    """Build it inside the current tab of ``page``."""
    defaults = Options()
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=300):
            photo = photo_field()
            gallery = gr.Gallery(
                service.thumbnails,
                label="Pick a style",
                columns=4,
                height=300,
                object_fit="cover",
                allow_preview=False,
                show_label=True,
                interactive=False,
                elem_id="styles",
                buttons=[],
            )
            style = style_field(service, "Style by name")
            with gr.Accordion("Or your own painting", open=False):
                painting = upload("Painting", 200)
                gr.Markdown("While there is a painting here, it is the style.", elem_classes="hint")
            alpha = slider(0, 1, defaults.alpha, step=0.05, label="Strength")
            style_size = stroke_field(service)
            with gr.Accordion("More", open=False):
                networks = {k: v for k, v in NETWORKS.items() if k != "cin" or service.transfer.styles.learned_styles}
                norm = gr.Dropdown([(v, k) for k, v in networks.items()], value="auto", label="Network")
                color = gr.Dropdown([(COLOUR_NAMES[c], c) for c in COLOURS], value="none", label="Colours")
                detail = slider(0, 1, defaults.detail, step=0.05, label="Fine detail of the photo (CIN)")
                size = gr.Number(defaults.size, label="Short side of the result (0: as the photo)", precision=0)
                work_size = gr.Number(
                    defaults.work_size,
                    label="Large photos: strokes as on one of this short side (0: fine ones)",
                    precision=0,
                )
        with gr.Column(scale=3, min_width=320):
            result = gr.ImageSlider(
                label="Photo and result",
                format="png",
                interactive=False,
                max_height=620,
                buttons=["fullscreen"],
                elem_id="result",
            )
            status = gr.Markdown("Drop a photo, pick a style, press Stylize.", elem_id="status")
            with gr.Row():
                button = gr.Button("Stylize", variant="primary", size="lg", scale=3)
                cancel = gr.Button("Cancel", size="lg", scale=1)
            with gr.Row():
                download = gr.DownloadButton("Download", interactive=False, size="sm")
                fmt = gr.Dropdown(FORMATS, value="png", show_label=False, container=False, min_width=90, label="Format")
                again = gr.Button("Use result as photo", size="sm", interactive=False)
                link = gr.Button("Copy link", size="sm")
            earlier = gr.Gallery(
                [],
                label="Earlier results",
                format="png",
                columns=EARLIER // 2,
                height=150,
                object_fit="cover",
                allow_preview=False,
                interactive=False,
                visible=False,
                elem_id="earlier",
                buttons=[],
            )
    made = gr.State(value=None, time_to_live=3600)  # (path of the result, what it was made with)
    look = [alpha, style_size, norm, color, detail, size, work_size]
    controls = [photo, painting, style, *look]

    does = _Handlers(service)
    outputs = [result, status, download, again, made, earlier]
    private = {"api_visibility": "private"}
    events = renders(
        service,
        button,
        does.render,
        outputs,
        controls,
        does.preview,
        [result, status],
        moved=[alpha, style_size, style, norm, color, detail, photo, painting],
        more=[fmt, earlier],
        show_progress_on=result,
    )
    cancels(service, cancel, *events)
    gallery.select(does.picked, None, style, **private)
    earlier.select(does.show, earlier, [result, status], **private)
    again.click(lambda made: made[0] if made else gr.skip(), made, photo, **private)
    fmt.change(does.other_format, [made, fmt], download, **private)
    link.click(None, [style, *look], None, js=_COPY_LINK, **private)
    page.load(
        _restored(service, alpha, style_size, detail, networks), None, [style, *look], show_progress="hidden", **private
    )


class _Handlers:
    """What the buttons and sliders of the tab do."""

    def __init__(self, service: Service) -> None:
        self.service = service

    def render(
        self,
        request: gr.Request,
        progress: gr.Progress,
        photo: str | None,
        painting: str | None,
        style: str | None,
        alpha: float,
        style_size: float,
        norm: str,
        color: str,
        detail: float,
        size: float | None,
        work_size: float | None,
        fmt: str,
        earlier: list[Any] | None,
    ) -> tuple[Any, ...]:
        norm = self.network(norm, style, painting, color, style_size)
        options = options_of(alpha, style_size, norm, color, detail, size, work_size)
        before, after, line = self.service.stylize(
            photo,
            painting or style,
            options,
            files=(painting,),
            session=request.session_hash,
            progress=lambda share: progress(share, desc="Stylizing"),
        )
        settings = settings_of(options, "a painting" if painting else str(style))
        path = self.service.file(after, "png", settings)
        strip = [*(entry[0] for entry in earlier or []), path][-EARLIER:]
        return (
            self.service.pair(before, path if after.mode == "RGB" else after),
            line,
            gr.DownloadButton(
                value=path if fmt == "png" else self.service.file(after, fmt, settings), interactive=True
            ),
            gr.Button(interactive=True),
            (path, settings),
            gr.Gallery(strip, visible=len(strip) > 1),
        )

    def preview(self, photo: str | None, painting: str | None, style: str | None, *look: Any) -> tuple[Any, Any]:
        alpha, style_size, norm, color, detail, size, work_size = look
        norm = self.network(norm, style, painting, color, style_size)
        options = options_of(alpha, style_size, norm, color, detail, size, work_size)
        found = self.service.preview(photo, painting or style, options)
        return (found, "Preview. Press Stylize for the full size.") if found else (gr.skip(), gr.skip())

    def network(self, norm: str, style: str | None, painting: str | None, color: str, style_size: float) -> str:
        """What "auto" stands for."""
        if norm != "auto":
            return norm
        return self.service.network(painting or style, color=color, style_size=style_size)

    def picked(self, event: gr.SelectData) -> str:
        return self.service.thumbnails[event.index][1]

    def show(self, earlier: list[Any], event: gr.SelectData) -> tuple[Any, str]:
        with Image.open(earlier[event.index][0]) as image:
            chosen = on_white(image)
        return (chosen, chosen), "An earlier result of this visit."

    def other_format(self, made: tuple[str, dict[str, Any]] | None, fmt: str) -> Any:
        if made is None:
            return gr.skip()
        with Image.open(made[0]) as image:
            return gr.DownloadButton(value=self.service.file(image, fmt, made[1]))


def _restored(
    service: Service, alpha: gr.Slider, style_size: gr.Slider, detail: gr.Slider, networks: Mapping[str, str]
) -> Callable[[gr.Request], list[Any]]:
    """What a link says of the settings; what it does not say, or says wrongly, stays."""
    names = {name for _, name in service.choices}

    def restored(request: gr.Request) -> list[Any]:
        given = request.query_params
        found: list[Any] = [given["style"] if given.get("style") in names else gr.skip()]
        for key, field in (("alpha", alpha), ("stroke", style_size)):
            found.append(_number(given.get(key), field.minimum, field.maximum))
        found.append(given["norm"] if given.get("norm") in networks else gr.skip())
        found.append(given["color"] if given.get("color") in COLOURS else gr.skip())
        found.append(_number(given.get("detail"), detail.minimum, detail.maximum))
        found += [_number(given.get(key), 0, 10_000) for key in ("size", "work")]
        return found

    return restored


_COPY_LINK = """(style, alpha, stroke, norm, color, detail, size, work) => {
  const said = new URLSearchParams({style, alpha, stroke, norm, color, detail, size, work});
  const link = location.origin + location.pathname + '?' + said;
  history.replaceState(null, '', link);
  if (navigator.clipboard) navigator.clipboard.writeText(link).catch(() => {});
}"""


def options_of(
    alpha: float,
    style_size: float,
    norm: str | None,
    color: str | None,
    detail: float,
    size: float | None,
    work_size: float | None,
) -> Options:
    """The options that the fields of a tab say.

    Raises:
        gr.Error: for a value outside what is allowed.
    """
    with told():
        return Options(
            alpha=alpha,
            style_size=round(style_size),
            norm=norm or "adain",
            color=color or "none",
            detail=detail if norm == "cin" else 1.0,
            size=round(size or 0),
            work_size=round(work_size or 0),
        )


def _number(text: str | None, least: float, most: float) -> Any:
    try:
        value = float(text or "")
    except ValueError:
        return gr.skip()
    return value if least <= value <= most else gr.skip()
