"""The page as a visitor in a real Chromium sees it."""

from __future__ import annotations

import io
import json
import re
import threading
import time
import zipfile

import numpy as np
import pytest
from conftest import noise
from PIL import Image


@pytest.mark.parametrize(("name", "width", "dark"), [("desktop", 1280, False), ("phone", 390, True)])
def test_a_visitor_stylizes_a_photo(visit, photo, transfer, name, width, dark):
    visitor = visit(width=width, dark=dark)
    page = visitor.page
    visitor.upload(photo)
    visitor.button("Stylize")
    page.get_by_text("56 × 40 px in").wait_for(timeout=20_000)
    visitor.shot(name)
    with page.expect_download() as download:
        page.get_by_role("button", name="Download", exact=True).locator("visible=true").first.click()
    found = Image.open(download.value.path())
    wanted = transfer.stylize(
        photo, "great-wave", norm="cin", style_size=128
    )  # what the page takes for a style that is learned
    assert np.array_equal(np.asarray(found), np.asarray(wanted))
    said = json.loads(found.getexif()[0x010E])
    assert said["style"] == "great-wave" and said["alpha"] == 1 and said["norm"] == "cin"
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_sliders_preview_and_settings_come_back_from_a_link(visit, photo):
    visitor = visit(query="?style=the-visit&alpha=0.35&color=luma&norm=bad&stroke=1e9&detail=0.3&work=32")
    page = visitor.page
    strength = page.get_by_role("spinbutton", name="number input for Strength").first
    page.wait_for_timeout(500)
    assert float(strength.input_value()) == 0.35
    visitor.upload(photo)
    page.get_by_text("Preview. Press Stylize").wait_for(timeout=20_000)
    strength.fill("0.5")
    strength.press("Enter")
    visitor.button("Copy link")
    page.wait_for_timeout(300)
    assert "alpha=0.5" in page.url and "style=the-visit" in page.url and "color=luma" in page.url
    assert "detail=0.3" in page.url and "work=32" in page.url


def test_a_box_that_is_being_typed_in_is_no_error(visit, photo):
    """Emptied it sends null, and a number outside until it is left."""
    visitor = visit()
    page = visitor.page
    visitor.upload(photo)
    page.get_by_text("Preview. Press Stylize").wait_for(timeout=20_000)
    strength = page.get_by_role("spinbutton", name="number input for Strength").first
    for typed in ("", "1e", "7", "0.4"):
        strength.fill("")
        strength.press_sequentially(typed)
        page.wait_for_timeout(800)
        assert page.get_by_text("Error").count() == 0, typed
        assert page.get_by_text("Preview. Press Stylize").count() == 1, typed


def test_a_late_preview_does_not_take_the_place_of_the_result(visit, service, photo, monkeypatch):
    """The slider is moved twice while a preview is made, so that the page keeps the second back until Stylize is on."""
    previews, go = [], threading.Event()
    preview = service.preview

    def slow(photo, style, options, **more):
        previews.append(options.alpha)
        assert go.wait(20)
        return preview(photo, style, options, **more)

    visitor = visit()
    page = visitor.page
    status = page.locator("#status")
    visitor.upload(photo)
    page.get_by_text("Preview. Press Stylize").wait_for(timeout=20_000)
    monkeypatch.setattr(service, "preview", slow)
    strength = page.get_by_role("spinbutton", name="number input for Strength").first
    for value in ("0.7", "0.4"):
        strength.fill(value)
        strength.press("Enter")
        page.wait_for_timeout(300)
    assert previews == [0.7]
    visitor.button("Stylize")
    page.wait_for_timeout(300)
    go.set()
    page.get_by_text("56 × 40 px in").wait_for(timeout=20_000)
    page.wait_for_timeout(1000)
    assert previews == [0.7] and status.inner_text().startswith("56 × 40 px in")
    strength.fill("0.9")  # and a change after it is previewed
    strength.press("Enter")
    page.get_by_text("Preview. Press Stylize").wait_for(timeout=20_000)
    strength.fill("0.4")  # also back to what there was a result of
    strength.press("Enter")
    page.wait_for_timeout(1000)
    assert previews == [0.7, 0.9, 0.4] and status.inner_text().startswith("Preview.")


def test_result_as_photo_earlier_results_and_another_format(visit, photo):
    visitor = visit()
    page = visitor.page
    visitor.upload(photo)
    visitor.button("Stylize")
    page.get_by_text("56 × 40 px in").wait_for(timeout=20_000)
    visitor.button("Use result as photo")
    page.get_by_text("Preview. Press Stylize").wait_for(timeout=20_000)
    visitor.button("Stylize")
    page.get_by_text("56 × 40 px in").wait_for(timeout=20_000)
    page.locator("#earlier button.thumbnail-item, #earlier .thumbnail-item").first.click()
    page.get_by_text("An earlier result of this visit.").wait_for(timeout=10_000)
    page.get_by_role("combobox", name="Format").click()
    page.get_by_role("option", name="webp").click()
    page.wait_for_timeout(1500)
    with page.expect_download() as download:
        page.get_by_role("button", name="Download", exact=True).locator("visible=true").first.click()
    assert Image.open(download.value.path()).format == "WEBP"


def test_an_example_is_a_photo(visit):
    visitor = visit()
    visitor.page.get_by_role("button", name="Cat").locator("visible=true").first.click()
    visitor.page.get_by_text("Preview. Press Stylize").wait_for(timeout=20_000)
    visitor.button("Stylize")
    visitor.page.get_by_text("451 × 300 px in").wait_for(timeout=20_000)


def test_cancel_ends_what_is_in_work_and_the_queue_shows_the_place(visit, service, monkeypatch, tmp_path):
    """The first visitor's rendering hangs until it is cancelled; the second waits in the queue, then has a picture."""
    started, ended = threading.Event(), threading.Event()
    render = service.transfer.picture

    def slow(photo, style, options, *, progress=lambda share: None, **more):
        if photo.size != (72, 96):
            return render(photo, style, options, progress=progress, **more)
        started.set()
        try:
            for i in range(600):
                progress(i / 600)
                time.sleep(0.05)
        finally:
            ended.set()
        raise AssertionError("was not cancelled")

    monkeypatch.setattr(service.transfer, "picture", slow)
    noise(72, 96, seed=1).save(tmp_path / "slow.png")
    noise(48, 32, seed=2).save(tmp_path / "quick.png")
    first, second = visit(query="?size=72"), visit()
    second.upload(tmp_path / "quick.png")
    second.page.get_by_text("Preview. Press Stylize").wait_for(timeout=20_000)
    first.upload(tmp_path / "slow.png")
    first.button("Stylize")
    assert started.wait(20)
    first.page.get_by_text(re.compile(r"Stylizing - \d+")).first.wait_for(timeout=10_000)
    second.button("Stylize")
    second.page.get_by_text(re.compile(r"queue: 1/1")).first.wait_for(timeout=10_000)
    assert not ended.is_set()
    first.button("Cancel")
    second.page.get_by_text("32 × 48 px in").wait_for(timeout=20_000)
    assert ended.is_set()
    assert service.counts["stylize", "cancelled"] == 1


def test_a_thumbnail_picks_a_style(visit):
    visitor = visit()
    visitor.page.locator("#styles button.thumbnail-item, #styles .thumbnail-item").nth(2).click()
    visitor.page.wait_for_timeout(800)
    assert "T · A" in visitor.page.get_by_role("combobox", name="Style by name").first.input_value()


def test_errors_are_friendly(visit, tmp_path):
    visitor = visit()
    visitor.button("Stylize")
    visitor.page.get_by_text("Choose a photo first").wait_for(timeout=10_000)
    (tmp_path / "text.png").write_text("text")
    visitor.upload(tmp_path / "text.png")
    visitor.page.get_by_text("text.png").first.wait_for(timeout=10_000)


def test_a_photo_may_be_dropped(visit, photo):
    visitor = visit()
    data = list(photo.read_bytes())
    transfer = visitor.page.evaluate_handle(
        """bytes => { const d = new DataTransfer();
        d.items.add(new File([new Uint8Array(bytes)], 'dropped.png', {type: 'image/png'})); return d }""",
        data,
    )
    target = visitor.page.get_by_role("tabpanel").locator("visible=true").get_by_text("Drop Image Here").first
    target.dispatch_event("drop", {"dataTransfer": transfer})
    visitor.page.get_by_text("Preview. Press Stylize").wait_for(timeout=20_000)


def test_compare(visit, photo):
    visitor = visit()
    visitor.tab("Compare")
    visitor.upload(photo)
    visitor.button("Compare")
    frame = visitor.page.frame_locator("iframe[title='Results side by side']")
    frame.get_by_role("button", name="adaln").wait_for(timeout=30_000)
    assert frame.locator("button.tile").count() == 1 + 4
    frame.get_by_role("button", name="cin").click()
    assert frame.locator("#rn").inner_text().startswith("cin")
    frame.locator("#slider").fill("20")
    assert frame.locator("#over").evaluate("e => e.style.width") == "20%"
    frame.get_by_role("button", name="Larger").click()
    scales = frame.locator("#left, #right, .view img").evaluate_all(
        "all => all.map(e => new DOMMatrix(getComputedStyle(e).transform).a)"
    )
    assert len(scales) == 2 + 5 and set(scales) == {1.5}, "all pictures are enlarged in step"
    visitor.shot("compare")
    visitor.button("All numbers of groups")
    frame.get_by_role("button", name="adagn:16").wait_for(timeout=30_000)


def test_mix(visit, photo):
    visitor = visit()
    visitor.tab("Mix")
    visitor.upload(photo)
    visitor.page.locator("#pad img").wait_for(timeout=60_000)
    visitor.button("Mix")
    visitor.page.get_by_text("56 × 40 px in").wait_for(timeout=20_000)
    pad = visitor.page.locator("#pad img")
    pad.scroll_into_view_if_needed()
    box = pad.bounding_box()
    pad.click(position={"x": box["width"] * 0.92, "y": box["height"] * 0.5})
    across = visitor.page.get_by_role("spinbutton", name="number input for Left to right")
    for _ in range(100):
        if float(across.input_value()) > 0.9:
            break
        visitor.page.wait_for_timeout(100)
    assert float(across.input_value()) > 0.9
    visitor.shot("mix")


def test_regions(visit, service, tmp_path, monkeypatch):
    noise(200, 160, seed=4).save(tmp_path / "photo.png")
    visitor = visit()
    visitor.tab("Regions")
    visitor.page.wait_for_timeout(1000)
    visitor.upload(tmp_path / "photo.png")
    visitor.page.wait_for_timeout(1500)
    box = visitor.page.locator("#editor canvas").first.bounding_box()
    mouse, middle = visitor.page.mouse, (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    mouse.move(*middle)
    mouse.down()
    mouse.move(middle[0] + 30, middle[1] + 20, steps=6)
    mouse.up()
    visitor.page.get_by_text("Preview. Press Stylize regions").wait_for(timeout=20_000)
    visitor.button("Stylize regions")
    visitor.page.get_by_text("160 × 200 px").wait_for(timeout=20_000)
    visitor.shot("regions")

    fit, made, go = service.transfer.fit, [], threading.Event()  # a late preview is left out here too

    def slow(*given, **more):
        made.append(given)
        assert go.wait(20)
        return fit(*given, **more)

    monkeypatch.setattr(service.transfer, "fit", slow)
    softness = visitor.page.get_by_role("spinbutton", name="number input for Softness").first
    for value in ("10", "20"):
        softness.fill(value)
        softness.press("Enter")
        for _ in range(100):
            if made:
                break
            visitor.page.wait_for_timeout(100)
    visitor.page.wait_for_timeout(500)
    assert len(made) == 1
    visitor.button("Stylize regions")
    visitor.page.wait_for_timeout(500)
    before = service.counts["regions", "done"]
    go.set()
    for _ in range(200):  # the preview that was in work shows too briefly to be waited for
        if service.counts["regions", "done"] > before:
            break
        visitor.page.wait_for_timeout(100)
    visitor.page.wait_for_timeout(1500)
    assert len(made) == 1 and visitor.page.get_by_text("160 × 200 px").is_visible()


def test_norm_lab(visit, photo):
    visitor = visit()
    visitor.tab("Norm lab")
    visitor.page.get_by_label("Layer norm").check()
    visitor.page.get_by_text("the axes C, H and W").wait_for(timeout=10_000)
    visitor.upload(photo)
    visitor.button("Look inside")
    visitor.page.wait_for_function(
        "[...document.querySelectorAll('[role=tabpanel] img')].filter(i => i.offsetParent && i.naturalWidth > 600)"
        ".length >= 1",
        timeout=20_000,
    )
    visitor.shot("lab")


def test_batch(visit, photo, tmp_path):
    for i in range(3):
        noise(48, 40, seed=i).save(tmp_path / f"p{i}.png")
    (tmp_path / "text.png").write_text("text")
    visitor = visit()
    page = visitor.page
    visitor.tab("Batch")
    visitor.upload(*(tmp_path / f"p{i}.png" for i in range(3)), tmp_path / "text.png")
    box = page.get_by_role("combobox", name="Styles: one result for each")
    box.click()
    page.get_by_role("option").first.click()
    page.keyboard.press("Escape")
    visitor.button("Stylize all")
    page.get_by_text("4 of 4").wait_for(timeout=30_000)
    assert page.get_by_text("text.png: not an image").count()
    with page.expect_download() as download:
        page.get_by_role("button", name="Download all (zip)").click()
    with zipfile.ZipFile(download.value.path()) as zipped:
        assert len(zipped.namelist()) == 3
        assert Image.open(io.BytesIO(zipped.read(zipped.namelist()[0]))).size == (40, 48)
    visitor.shot("batch")


def test_cancel_of_a_batch_keeps_what_is_done(visit, service, monkeypatch, tmp_path):
    for i in range(6):
        noise(48, 40, seed=i).save(tmp_path / f"p{i}.png")
    render, done = service.transfer.picture, []
    going_on = threading.Event()

    def slow(*args, **more):
        if len(done) == 2:  # the third waits until there was time to press the button
            going_on.wait(20)
        done.append(1)
        return render(*args, **more)

    visitor = visit()
    page = visitor.page
    visitor.tab("Batch")
    visitor.upload(*(tmp_path / f"p{i}.png" for i in range(6)))
    box = page.get_by_role("combobox", name="Styles: one result for each")
    box.click()
    page.get_by_role("option").first.click()
    page.keyboard.press("Escape")
    monkeypatch.setattr(service.transfer, "picture", slow)
    visitor.button("Stylize all")
    page.get_by_text("2 of 6").first.wait_for(timeout=20_000)
    visitor.button("Cancel")
    page.wait_for_timeout(800)
    going_on.set()
    page.wait_for_timeout(1500)
    assert len(done) == 3 and not page.get_by_text("3 of 6").count()
    with page.expect_download() as download:
        page.get_by_role("button", name="Download all (zip)").click()
    with zipfile.ZipFile(download.value.path()) as zipped:
        assert len(zipped.namelist()) == 2 and zipped.testzip() is None


def test_by_keyboard_alone(visit, photo):
    """The file is chosen with the dialog, everything else with keys."""
    visitor = visit()
    page = visitor.page
    visitor.upload(photo)
    page.get_by_text("Preview. Press Stylize").wait_for(timeout=20_000)
    reached = []
    for _ in range(120):
        page.keyboard.press("Tab")
        focus = page.evaluate("(e => [e.innerText || e.ariaLabel || '', e.role || e.tagName])(document.activeElement)")
        reached.append(focus)
        if focus[0].strip() == "Stylize" and focus[1] != "tab":
            break
    else:
        raise AssertionError(f"Tab does not lead to the button: {reached}")
    assert (
        page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
        or page.evaluate("getComputedStyle(document.activeElement).boxShadow") != "none"
    )
    page.keyboard.press("Enter")
    page.get_by_text("56 × 40 px in").wait_for(timeout=20_000)


@pytest.mark.parametrize("tab", ["Compare", "Mix", "Regions", "Norm lab", "Batch"])
def test_every_tab_fits_a_phone(visit, photo, tab):
    visitor = visit(width=390, dark=True)
    visitor.tab(tab)
    visitor.page.wait_for_timeout(500)
    assert visitor.page.evaluate("document.documentElement.scrollWidth") <= 390
    outside = visitor.page.evaluate(
        """[...document.querySelectorAll('[role=tabpanel] .block, [role=tabpanel] button, [role=tabpanel] input')]
        .filter(e => e.offsetParent && (r => r.width && (r.right > 392 || r.left < -2))(e.getBoundingClientRect()))
        .filter(e => getComputedStyle(e).position !== 'absolute')
        .map(e => e.outerHTML.slice(0, 120))"""
    )
    assert not outside
    visitor.shot(f"phone-{tab.lower().replace(' ', '-')}")


@pytest.mark.parametrize("width", [390, 800, 1280])
def test_no_picture_of_a_gallery_is_cut_off(visit, photo, width):
    """And the names of the styles can be read as a whole."""
    cut = """id => { const box = document.querySelector(id).getBoundingClientRect()
        return [...document.querySelectorAll(id + ' .thumbnail-item')].filter(e =>
            (r => r.right > box.right || r.left < box.left)(e.getBoundingClientRect()) ||
            [...e.querySelectorAll('.caption-label')].some(c => c.scrollWidth > c.clientWidth)
        ).map(e => e.innerText) }"""
    visitor = visit(width=width)
    page = visitor.page
    assert page.locator("#styles .thumbnail-item").count() > 1
    assert page.evaluate(cut, "#styles") == []
    visitor.upload(photo)
    earlier = page.locator("#earlier .thumbnail-item")
    for count, strength in enumerate(("1", "0.7", "0.5", "0.2")):
        field = page.get_by_role("spinbutton", name="number input for Strength").first
        field.fill(strength)
        field.press("Enter")
        page.get_by_text("Preview. Press Stylize").wait_for(timeout=20_000)
        visitor.button("Stylize")
        page.get_by_text("56 × 40 px in").wait_for(timeout=20_000)
        if count:  # one alone is not shown
            earlier.nth(count).wait_for(timeout=20_000)
    assert earlier.count() == 4
    assert page.evaluate(cut, "#earlier") == []


def test_two_visitors_keep_their_pictures_apart(visit, tmp_path):
    noise(40, 56, seed=1).save(tmp_path / "a.png")
    noise(48, 32, seed=2).save(tmp_path / "b.png")
    first, second = visit(), visit()
    first.upload(tmp_path / "a.png")
    second.upload(tmp_path / "b.png")
    first.button("Stylize")
    second.button("Stylize")
    first.page.get_by_text("56 × 40 px in").wait_for(timeout=20_000)
    second.page.get_by_text("32 × 48 px in").wait_for(timeout=20_000)
    assert not first.page.get_by_text("32 × 48").count() and not second.page.get_by_text("56 × 40").count()


@pytest.mark.parametrize("tab", ["Stylize", "Compare", "Mix", "Regions", "Norm lab", "Batch"])
def test_no_serious_barrier(visit, tab):
    """axe-core, of what this page decides itself; Gradio's own widgets have an issue tracker."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    visitor = visit()
    if tab != "Stylize":
        visitor.tab(tab)
    found = axe.Axe().run(visitor.page).response["violations"]
    serious = [v for v in found if v["impact"] in ("serious", "critical")]
    assert not serious, [(v["id"], v["nodes"][0]["html"][:300]) for v in serious]


def test_a_painting_of_ones_own(visit, photo, transfer, tmp_path):
    noise(64, 64, seed=9).save(tmp_path / "painting.png")
    visitor = visit()
    visitor.upload(photo)
    visitor.page.get_by_text("Or your own painting").first.click()
    visitor.page.wait_for_timeout(500)
    visitor.upload(tmp_path / "painting.png", nth=-1)
    visitor.button("Stylize")
    visitor.page.get_by_text("56 × 40 px in").wait_for(timeout=20_000)
    with visitor.page.expect_download() as download:
        visitor.page.get_by_role("button", name="Download", exact=True).locator("visible=true").first.click()
    wanted = transfer.stylize(photo, tmp_path / "painting.png", style_size=128)
    assert np.array_equal(np.asarray(Image.open(download.value.path())), np.asarray(wanted))
