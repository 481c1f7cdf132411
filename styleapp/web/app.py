"""The page: its tabs, its look."""

from __future__ import annotations

from importlib import resources

import gradio as gr

from styleapp.web.api import endpoints
from styleapp.web.batch import batch_tab
from styleapp.web.compare import compare_tab
from styleapp.web.lab import lab_tab
from styleapp.web.mix import mix_tab
from styleapp.web.regions import regions_tab
from styleapp.web.service import Service
from styleapp.web.stylize import stylize_tab

__all__ = ["build", "css", "head", "theme"]

SESSIONS = 500
"""Of how many visitors Gradio keeps what it knows, those seen last: 0.4 MB each, and each call of an endpoint is one.
Who is forgotten makes a picture anew before it can be had in another format."""


def build(service: Service) -> gr.Blocks:
    """All tabs and endpoints, ready to be served."""
    with gr.Blocks(title="StyleApp", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gr.Markdown("# StyleApp\nYour photo, in the style of a painting.", elem_id="title")
        with gr.Tabs():
            with gr.Tab("Stylize"):
                stylize_tab(service, page)
            with gr.Tab("Compare"):
                compare_tab(service)
            with gr.Tab("Mix"):
                mix_tab(service)
            with gr.Tab("Regions"):
                regions_tab(service)
            with gr.Tab("Norm lab"):
                lab_tab(service)
            with gr.Tab("Batch"):
                batch_tab(service)
        endpoints(service)
    page.state_session_capacity = SESSIONS
    return page.queue(max_size=32, api_open=False)


def theme() -> gr.themes.Base:
    """Warm greys and one accent; no font from elsewhere."""
    base = gr.themes.Base(
        primary_hue="orange",
        neutral_hue="stone",
        radius_size="lg",
        font=["system-ui", "sans-serif"],
        font_mono=["monospace"],
    )
    # Contrasts of at least 4.5 : 1 (WCAG 2.2, 1.4.3).
    themed: gr.themes.Base = base.set(
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_hover_dark="*primary_800",
        button_primary_text_color="white",
        button_primary_text_color_dark="white",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_label_text_color="*neutral_700",
        block_label_text_color_dark="*neutral_200",
        input_placeholder_color="*neutral_600",
        input_placeholder_color_dark="*neutral_300",
        slider_color="*primary_600",
    )
    return themed


def head() -> str:
    """Names and descriptions that Gradio's own widgets lack for screen readers."""
    script = resources.files("styleapp").joinpath("web/describe.js").read_text(encoding="utf-8")
    return f"<script>{script}</script>"


def css() -> str:
    """What the theme does not say."""
    return resources.files("styleapp").joinpath("web/style.css").read_text(encoding="utf-8")
