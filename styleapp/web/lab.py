"""The norms, looked at: what shares a mean, and what becomes of features."""

from __future__ import annotations

from typing import Any

import gradio as gr
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from styleapp.controls import parse_norm
from styleapp.errors import OptionError
from styleapp.images import filled
from styleapp.norms import moments, normalize, pool_moments
from styleapp.options import Options
from styleapp.web.fields import photo_field, style_field
from styleapp.web.service import Service

__all__ = ["cube", "lab_tab"]

OVER = {
    "in": ("Instance norm", "each channel of each photo by itself: the axes H and W"),
    "ln": ("Layer norm", "all channels of a photo together: the axes C, H and W"),
    "gn": ("Group norm", "groups of channels of a photo: between layer and instance norm"),
    "bn": ("Batch norm", "each channel over all photos of a batch: the axes N, H and W"),
}
NORMS = {"in": "adain", "ln": "adaln", "gn": "adagn:4", "bn": "adabn"}
SERIES = {"photo": "#888888", "style": "#e9a06f", "result": "#3b6fd4"}
WIDTHS = (2, 5, 2)
"""Of their lines and points: where the result is what the style is, both are seen."""

FIGURES = {
    "Eight channels of relu4_1: the photo's, and with the style's moments": 300,
    "How many channels have which mean and which deviation": 300,
    "Mean and deviation of each channel": 260,
}
"""What is shown, and how high."""

COLOURS = ["#4e79a7", "#f28e2b", "#59a14f", "#e15759", "#76b7b2", "#edc948", "#b07aa1", "#9c755f"]


def cube(norm: str, samples: int = 3, channels: int = 8, groups: int = 4) -> Image.Image:
    """The elements of a batch as squares, samples down and channels across; one colour shares one mean."""
    side, gap = 46, 8
    picture = Image.new("RGB", (70 + channels * (side + gap), 40 + samples * (side + gap)), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size=14)
    draw.text((70, 8), f"{channels} channels of H x W values each", fill="#333", font=font)
    for n in range(samples):
        y = 36 + n * (side + gap)
        draw.text((4, y + side / 2), f"photo {n + 1}", fill="#333", font=font, anchor="lm")
        for c in range(channels):
            shares = {"in": n * channels + c, "ln": n, "gn": n * groups + c * groups // channels, "bn": c}[norm]
            x = 70 + c * (side + gap)
            draw.rectangle((x, y, x + side, y + side), fill=COLOURS[shares % len(COLOURS)])
            draw.text((x + side / 2, y + side / 2), str(shares + 1), fill="white", font=font, anchor="mm")
    return picture


def lab_tab(service: Service) -> None:
    """Build it inside the current tab."""
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=300):
            photo = photo_field(height=220)
            style = style_field(service)
            norm = gr.Radio([(v[0], k) for k, v in OVER.items()], value="in", label="Norm")
            button = gr.Button("Look inside", variant="primary", size="lg")
            gr.Markdown(
                "Every norm is  γ · (x − μ) / √(σ² + ε) + β.  They differ in what shares μ and σ.", elem_classes="hint"
            )
        with gr.Column(scale=3, min_width=320):
            shares = gr.Image(
                cube("in"), label="Squares of one number share a mean", interactive=False, height=240, buttons=[]
            )
            about = gr.Markdown(OVER["in"][1])
            pictures = [
                gr.Image(label=label, interactive=False, format="png", height=height, buttons=["fullscreen"])
                for label, height in FIGURES.items()
            ]

    @torch.inference_mode()
    def look(photo: str | None, style: str | None, norm: str) -> tuple[Image.Image, Image.Image, Image.Image]:
        """What a norm does to the features of a photo.

        Args:
            photo: image file.
            style: name of a built-in style.
            norm: what shares a mean and a deviation: in, ln, gn or bn.

        Returns:
            Eight channels of relu4_1 before and after, histograms of means and deviations of all channels, and each
            channel's mean and deviation as a point.
        """
        with service.turn("lab", photo):
            if photo is None or style is None:
                raise OptionError("choose a photo and a style")
            transfer = service.transfer
            picture = transfer.fit(photo, Options(size=256))
            network = transfer.networks.adain
            features = network.encoder(filled(picture).rgb.to(transfer.device))
            code = transfer.styles.code(style, service.stroke).to(transfer.device)
            code = code.split(network.parts)[network.encoder.last]
            channels = features.shape[1]
            groups = {"gn": next(g for g in (32, 16, 8, 4, 2, 1) if channels % g == 0)}.get(norm)
            matching = parse_norm(f"adagn:{groups}" if groups else NORMS[norm], channels)
            own = moments(features)
            pooled = pool_moments(own, matching.over, matching.num_groups)
            wanted = pool_moments(type(own)(1, code.beta, code.gamma.square()), matching.over, matching.num_groups)
            after = normalize(features, pooled, wanted.var.sqrt(), wanted.mean)
            done = moments(after)
        rows = [t.float().cpu() for t in (features, after)]
        busiest = own.var.flatten().cpu().topk(min(8, channels)).indices
        found = [
            (m.mean.flatten().cpu().numpy(), m.var.clamp_min(0).sqrt().flatten().cpu().numpy()) for m in (own, done)
        ]
        target = code.beta.flatten().cpu().numpy(), code.gamma.flatten().cpu().numpy()
        points = [found[0], target, found[1]]
        return _maps([row[0, busiest] for row in rows]), _histograms(points), _scatter(points)

    private: dict[str, Any] = {"api_visibility": "private"}
    norm.change(lambda norm: (cube(norm), OVER[norm][1]), norm, [shares, about], **private)
    button.click(look, [photo, style, norm], pictures, api_name="look", **service.queue)


def _maps(rows: list[torch.Tensor]) -> Image.Image:
    """Feature maps as grey pictures, each channel on one scale in both rows."""
    high = torch.stack([r.flatten(1).amax(1) for r in rows]).amax(0).view(-1, 1, 1).clamp_min(1e-6)
    low = torch.stack([r.flatten(1).amin(1) for r in rows]).amin(0).view(-1, 1, 1)
    side = 96
    sheet = Image.new("L", (len(rows[0]) * (side + 4), len(rows) * (side + 4)), 255)
    for y, row in enumerate(rows):
        grey = ((row - low) / (high - low).clamp_min(1e-6) * 255).clamp(0, 255).byte().numpy()
        for x, channel in enumerate(grey):
            sheet.paste(Image.fromarray(channel).resize((side, side)), (x * (side + 4), y * (side + 4)))
    return sheet.convert("RGB")


def _limits(points: list[tuple[NDArray[Any], NDArray[Any]]]) -> list[float]:
    """Up to where means and deviations are shown: a few channels are far out."""
    return [max(float(np.quantile(p[i], 0.995)) for p in points) or 1.0 for i in (0, 1)]


def _histograms(points: list[tuple[NDArray[Any], NDArray[Any]]], bins: int = 40) -> Image.Image:
    """Of the channels' means, and of their deviations, for photo, style and result, on one scale."""
    width, height, pad = 420, 300, 34
    picture = Image.new("RGB", (2 * width, height), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size=13)
    for i, (text, limit) in enumerate(zip(("mean", "deviation"), _limits(points), strict=True)):
        left, right, bottom = i * width + pad, (i + 1) * width - 12, height - pad
        counts = [np.histogram(np.clip(p[i], 0, limit), bins, (0, limit))[0] for p in points]
        scale = (bottom - 40) / np.sqrt(max(c.max() for c in counts))  # roots: the tail is what differs
        step = (right - left) / bins
        for k, (count, colour) in enumerate(zip(counts, SERIES.values(), strict=True)):
            line = []
            for b, c in enumerate(count):
                y = bottom - scale * float(np.sqrt(c))
                line += [(left + b * step, y), (left + (b + 1) * step, y)]
            draw.line([(left, bottom), *line, (right, bottom)], fill=colour, width=WIDTHS[k])
        draw.line((left, bottom, right, bottom), fill="#999")
        draw.text((right, bottom + 6), f"{text}, 0 to {limit:.2f}", fill="#333", font=font, anchor="ra")
        draw.text((left, 8), "channels (square root)", fill="#333", font=font)
    for k, (name, colour) in enumerate(SERIES.items()):
        x = width - 12 - 76 * (len(SERIES) - k)
        draw.rectangle((x, 10, x + 10, 20), fill=colour)
        draw.text((x + 15, 8), name, fill="#333", font=font)
    return picture


def _scatter(points: list[tuple[NDArray[Any], NDArray[Any]]]) -> Image.Image:
    """Each channel a point, its mean across and its deviation up, for photo, style and result."""
    width, height, pad = 640, 300, 40
    picture = Image.new("RGB", (width, height), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size=13)
    most = _limits(points)
    draw.line((pad, 10, pad, height - pad, width - 10, height - pad), fill="#999")
    draw.text((width - 10, height - pad + 6), "mean", fill="#333", font=font, anchor="ra")
    draw.text((6, height // 2), "dev.", fill="#333", font=font)  # the label of the field lies at the top
    for i, ((mean, deviation), (name, colour)) in enumerate(zip(points, SERIES.items(), strict=True)):
        r = WIDTHS[i]
        for x, y in zip(mean, deviation, strict=True):
            at = (
                pad + (width - pad - 20) * min(1, x / most[0]),
                height - pad - (height - pad - 20) * min(1, y / most[1]),
            )
            draw.ellipse((at[0] - r, at[1] - r, at[0] + r, at[1] + r), fill=colour)
        y = height - pad - 62 + 18 * i
        draw.ellipse((width - 80, y, width - 72, y + 8), fill=colour)
        draw.text((width - 66, y - 4), name, fill="#333", font=font)
    return picture
