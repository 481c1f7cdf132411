"""Requests that meet: batches, time limits, errors that stay with their owner."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import numpy as np
import pytest
from conftest import noise

from styleapp.errors import OptionError
from styleapp.images import from_pil, to_pil
from styleapp.options import Options
from styleapp.web import Service
from styleapp.web.batch import stylize_all
from styleapp.web.fields import slider, upload
from styleapp.web.mix import mixed
from styleapp.web.server import upload_folder
from styleapp.web.service import BUSY

OPTIONS = Options(style_size=64, tile="off")


@pytest.fixture
def photos(tmp_path):
    """Four of one size, one of another, one that is none."""
    paths = []
    for i, size in enumerate([(40, 48)] * 4 + [(32, 32)]):
        paths.append(tmp_path / f"{i}.png")
        noise(*size, seed=i).save(paths[-1])
    paths.append(tmp_path / "text.png")
    paths[-1].write_text("text")
    return [str(p) for p in paths]


def at_once(service: Service, jobs: list[tuple[str, str]], options: Options = OPTIONS) -> list[object]:
    """The result or the error of each, all asked for while another request holds the device."""
    found: list[object] = [None] * len(jobs)

    def work(i: int, photo: str, style: str) -> None:
        try:
            found[i] = service.stylize(photo, style, options)[1]
        except gr.Error as error:
            found[i] = str(error.message)

    threads = [threading.Thread(target=work, args=(i, *job)) for i, job in enumerate(jobs)]
    with service.turn("other"):
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 10
        readable = sum(not photo.endswith("text.png") for photo, _ in jobs)
        while service.waiting < readable and time.monotonic() < deadline:
            time.sleep(0.01)
    for thread in threads:
        thread.join(20)
    return found


def test_photos_of_one_size_go_together_and_are_as_alone(transfer, photos):
    service = Service(transfer, together=4)
    styles = ["great-wave", "the-visit", "wheat-field", "great-wave", "great-wave"]
    found = at_once(service, list(zip(photos[:5], styles, strict=True)))
    assert service.together.sizes == {1: 1, 4: 1}
    assert 'styleapp_batches_total{photos="4"} 1' in service.metrics()
    for photo, style, result in zip(photos, styles, found, strict=False):
        alone = transfer.stylize(photo, style, style_size=64)
        difference = np.asarray(result, dtype=int) - np.asarray(alone, dtype=int)
        assert np.abs(difference).max() <= 1


def test_what_goes_wrong_with_one_is_its_own(transfer, photos, monkeypatch):
    service = Service(transfer, together=4)
    alone = transfer.picture

    def fragile(photo, style, options, **more):
        if style == "the-visit":
            raise OptionError("this one breaks")
        return alone(photo, style, options, **more)

    def broken(*_):
        raise RuntimeError("the batch breaks")

    monkeypatch.setattr(transfer, "pictures", broken)
    monkeypatch.setattr(transfer, "picture", fragile)
    jobs = [(photos[0], "great-wave"), (photos[1], "the-visit"), (photos[2], "wheat-field"), (photos[5], "great-wave")]
    found = at_once(service, jobs)
    assert found[1] == "This one breaks" and str(found[3]).startswith("text.png: not an image")
    for i in (0, 2):
        assert found[i] == to_pil(alone(transfer.fit(photos[i], OPTIONS), jobs[i][1], OPTIONS))
    assert service.counts["stylize", "done"] == 2 and service.counts["stylize", "refused"] == 2


def test_what_was_left_out_of_a_photo_is_told(service, tmp_path):
    frames = [noise(40, 40, seed=i) for i in range(3)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "b.gif")
    assert "; this is the first of 3 frames" in service.stylize(str(tmp_path / "a.gif"), "great-wave", OPTIONS)[2]
    assert service.stylize(str(tmp_path / "b.gif"), "great-wave", OPTIONS)[2].endswith(")")


def test_one_at_a_time_on_a_cpu(transfer, photos):
    service = Service(transfer)
    assert service.queue == {"concurrency_id": "model", "concurrency_limit": 1}
    found = at_once(service, [(p, "great-wave") for p in photos[:3]])
    assert all(not isinstance(f, str) for f in found) and not service.together.sizes


def test_who_waits_too_long_is_told(transfer, photos):
    for together in (1, 4):
        service = Service(transfer, wait_seconds=0.05, together=together)
        with service.turn("other"), pytest.raises(gr.Error, match="Many people"):
            service.stylize(photos[0], "great-wave", OPTIONS)
        assert service.counts["stylize", "busy"] == 1 and BUSY.startswith("Many people")
        assert service.stylize(photos[0], "great-wave", OPTIONS)[1].size == (48, 40)  # nothing is left behind


def test_a_request_may_take_so_long(transfer, tmp_path):
    noise(300, 200).save(tmp_path / "large.png")
    for together in (1, 4):
        service = Service(transfer, work_seconds=0.0, together=together)
        with pytest.raises(gr.Error, match="longer than the 0 seconds"):
            service.stylize(str(tmp_path / "large.png"), "great-wave", Options(style_size=64, tile="48"))
        assert service.counts["stylize", "refused"] == 1


def test_cancel_is_for_what_began_before(transfer, photos):
    service = Service(transfer)
    service.cancel("ada")
    assert service.stylize(photos[0], "great-wave", OPTIONS, session="ada")[1].size == (48, 40)
    with pytest.raises(gr.Error), service.turn("stylize", session="ada") as watch:
        watch(0.1)
        service.cancel("bob")
        watch(0.2)
        service.cancel("ada")
        watch(0.3)
    assert service.counts["stylize", "cancelled"] == 1


def test_only_names_of_styles_are_names(transfer, photos):
    service = Service(transfer)
    service.check_names("great-wave", "the-visit")
    for name in (photos[0], "../weights/styles.safetensors", "great-wav"):
        with pytest.raises(OptionError, match="unknown style"):
            service.check_names("great-wave", name)
    assert service.network("great-wave") == "cin" and service.network("great-wave", color="coral") == "adain"
    assert service.network(str(photos[0])) == "adain"


def test_with_a_predictor_uploads_go_through_cin(foreseeing, photos):
    service = Service(foreseeing)
    assert service.network(str(photos[0])) == "cin" and service.network("great-wave", str(photos[0])) == "cin"
    assert service.network(str(photos[0]), color="palette") == "adain" and service.network("great-wav") == "adain"
    assert from_pil(service.thumbnails[0][0]).size[0] >= 160


def test_a_preview_does_not_wait_for_a_code_to_be_refined(foreseeing, photos, monkeypatch):
    service = Service(foreseeing)
    asked: list[int] = []
    measure = foreseeing.styles.measure
    monkeypatch.setattr(foreseeing.styles, "measure", lambda *args: asked.append(args[3]) or measure(*args))
    assert service.preview(photos[0], photos[1], replace(OPTIONS, refine=2)) is not None
    service.stylize(photos[0], photos[1], replace(OPTIONS, refine=2))
    assert asked == [0, 2]


def test_a_mix_does_not_jump_where_a_corner_is_empty():
    """At the edge between empty corners it is what it is just beside."""
    above = ["a", "b", None, None]
    for y in (0, 0.5, 1):
        weights = dict(mixed(above, 0.25, y))
        assert weights["b"] / sum(weights.values()) == pytest.approx(0.25)
    corner = dict(mixed(above, 1, 1))
    assert corner["b"] / sum(corner.values()) == pytest.approx(0.999)
    assert dict(mixed(["a", None, None, "d"], 1, 0)) == pytest.approx({"a": 1e-3 * 0.999, "d": 1e-3 * 0.999})
    assert mixed(["a", "b", "c", "d"], 0, 0) == [("a", 1)] and mixed([None] * 4, 0.5, 0.5) == []


@pytest.mark.usefixtures("url")
def test_uploads_are_not_shared_by_pages_of_a_machine(tmp_path):
    """Gradio names them by content and deletes its own when a page is stopped: the other page's were gone."""
    parent = tmp_path / "not there yet"
    code = "from styleapp.web.server import upload_folder as f; print(f()); assert f() == f()"
    said = [
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"GRADIO_TEMP_DIR": str(parent)},
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
        for _ in range(2)
    ]
    assert said[0] != said[1] and all(Path(folder).parent == parent for folder in said)
    assert list(parent.iterdir()) == []  # gone with the process
    assert os.environ["GRADIO_TEMP_DIR"] == upload_folder()


def test_an_upload_that_is_used_is_kept_and_one_that_is_gone_asked_for_again(photos):
    field, photo = upload("Photo"), Path(photos[0])
    os.utime(photo, (1, 1))
    assert field.preprocess(SimpleNamespace(path=str(photo))) == str(photo)
    assert photo.stat().st_mtime > time.time() - 60
    photo.unlink()
    with pytest.raises(gr.Error, match=r"no longer here.*Drop it again"):
        field.preprocess(SimpleNamespace(path=str(photo)))


def test_a_field_that_gradio_makes_anew_is_ours_still(photos):
    """It does so for a visitor whose field a handler has changed, or has said to leave as it is."""
    for field in (upload("Photo"), slider(0, 1, 0.3, label="Strength")):
        anew = type(field)(**{k: v for k, v in field.constructor_args.items() if k != "value"}, render=False)
        assert anew.get_block_name() == field.get_block_name() == type(field).__base__.__name__.lower()
        if isinstance(field, gr.Image):
            assert anew.preprocess(SimpleNamespace(path=photos[-1])) == photos[-1]  # not decoded
        else:
            assert [anew.preprocess(given) for given in (None, -1, 0.7, 8)] == [0.3, 0, 0.7, 1]


def test_uploads_are_kept_while_a_batch_goes_on(service, photos):
    """It may take longer than the hour."""
    files, kept = [str(p) for p in photos[:2]], []
    for file in files:
        os.utime(file, (1, 1))
    for _ in stylize_all(service, files, ["great-wave"], Options(style_size=64)):
        kept.append(min(Path(file).stat().st_mtime for file in files))
        for file in files:
            os.utime(file, (1, 1))
    assert len(kept) == 2 and min(kept) > time.time() - 60


def test_what_was_made_an_hour_ago_is_removed_whoever_tidies(service):
    old, new = service.scratch(), service.scratch()
    (old / "deep").mkdir()
    (old / "picture.png").touch()
    os.utime(old, (1, 1))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: service.scratch(), range(40)))
    assert not old.exists() and new.exists()
