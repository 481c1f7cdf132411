"""The page as gradio_client and as a visitor in a real Chromium see it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import noise
from gradio_client import Client, handle_file
from PIL import Image

from styleapp.web import launch

SCREENSHOTS = Path(__file__).parents[2] / "out" / "screenshots"


@pytest.fixture(scope="module")
def url(transfer) -> Iterator[str]:
    server, address, _ = launch(transfer, port=0, prevent_thread_lock=True, quiet=True)
    yield address
    server.close() if hasattr(server, "close") else None


@pytest.fixture(scope="module")
def client(url) -> Client:
    return Client(url, verbose=False)


def call(client: Client, photo: object, **changes: object):
    arguments = {"painting": None, "style": "great-wave", "alpha": 0.6, "style_size": 64, "size": 0, **changes}
    return client.predict(handle_file(photo) if photo else None, api_name="/stylize", **arguments)


def test_endpoint_gives_what_the_python_api_gives(client, transfer, photo, tmp_path):
    result, status = call(client, photo)
    wanted = transfer.stylize(photo, "great-wave", alpha=0.6, style_size=64)
    assert np.array_equal(np.asarray(Image.open(result)), np.asarray(wanted))
    assert status.startswith("56 × 40 px in ")

    noise(70, 80, seed=8).save(tmp_path / "painting.jpg")
    result, _ = call(client, photo, painting=handle_file(tmp_path / "painting.jpg"), size=24)
    wanted = transfer.stylize(photo, tmp_path / "painting.jpg", alpha=0.6, style_size=64, size=24)
    assert np.array_equal(np.asarray(Image.open(result)), np.asarray(wanted))


def test_16_bit_and_transparent_uploads(client, transfer, tmp_path):
    Image.fromarray(np.linspace(0, 65535, 48 * 48).astype(np.uint16).reshape(48, 48)).save(tmp_path / "deep.png")
    noise(40, 40, channels=4).save(tmp_path / "clear.png")
    for name in ("deep.png", "clear.png"):
        result, _ = call(client, tmp_path / name)
        wanted = transfer.stylize(tmp_path / name, "great-wave", alpha=0.6, style_size=64)
        assert np.array_equal(np.asarray(Image.open(result)), np.asarray(wanted))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"photo": None}, "Choose a photo first"),
        ({"style": None}, "Choose a painting"),
        ({"size": 5}, "at least 16 pixels, got 5"),
        ({"alpha": 2}, "alpha must be from 0 to 1|greater than maximum"),
    ],
)
def test_errors_say_what_to_do(client, photo, changes, message):
    changes = {"photo": photo, **changes}
    with pytest.raises(Exception, match=message):
        call(client, changes.pop("photo"), **changes)


def test_bad_upload_names_the_file_but_not_its_place(client, tmp_path):
    (tmp_path / "text.png").write_text("text")
    with pytest.raises(Exception, match=r"text\.png") as error:
        call(client, tmp_path / "text.png")
    assert "gradio" not in str(error.value) and "/" not in str(error.value)


@pytest.fixture(scope="module")
def browser():
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("needs Chromium (Debian: apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    flags = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path, args=[*flags, "--disable-component-update", "--disable-sync"]
        )
        yield browser
        browser.close()


@pytest.mark.parametrize(("name", "width", "dark"), [("desktop", 1280, False), ("phone", 390, True)])
def test_a_visitor_stylizes_a_photo(url, browser, photo, transfer, name, width, dark):
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light")
    page = context.new_page()
    failures: list[str] = []
    outside: list[str] = []
    page.on("pageerror", lambda error: failures.append(str(error)))
    page.on(
        "request", lambda r: outside.append(r.url) if "127.0.0.1" not in r.url and r.url.startswith("http") else None
    )
    page.goto(url)
    button = page.get_by_role("button", name="Stylize", exact=True)
    button.wait_for()
    page.locator("input[type=file]").first.set_input_files(photo)
    page.locator("img").first.wait_for()
    button.click()
    page.get_by_text("56 × 40 px in").wait_for(timeout=20_000)
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)
    with page.expect_download() as download:
        page.get_by_role("button", name="Download").last.click()
    assert Image.open(download.value.path()).size == (56, 40)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert not failures
    assert not outside, "the page must work with no internet"
    context.close()
