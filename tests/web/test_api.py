"""The endpoints, as gradio_client and plain HTTP see them."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
import zipfile
from pathlib import Path

import httpx
import numpy as np
import pytest
from conftest import noise
from gradio_client import Client, handle_file
from PIL import Image

from styleapp.errors import ImageError, OptionError
from styleapp.web import app, server
from styleapp.web.server import Server, add_user, check_password, hash_password, make_app, read_users


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
    result, _ = call(client, photo, painting=handle_file(tmp_path / "painting.jpg"), size=24, color="luma", norm="wct")
    wanted = transfer.stylize(
        photo, tmp_path / "painting.jpg", alpha=0.6, style_size=64, size=24, color="luma", norm="wct"
    )
    assert np.array_equal(np.asarray(Image.open(result)), np.asarray(wanted))


def test_detail(client, transfer, photo):
    result, _ = call(client, photo, style_size=128, detail=0.25)
    wanted = transfer.stylize(photo, "great-wave", alpha=0.6, style_size=128, detail=0.25)
    assert np.array_equal(np.asarray(Image.open(result)), np.asarray(wanted))
    with pytest.raises(Exception, match="has no detail to set"):
        call(client, photo, norm="adain", detail=0.25)


def test_work_size(client, transfer, photo):
    """Photos are reduced as by everyone else; of the photo's own size on request."""
    result, _ = call(client, photo, style_size=128, work_size=32)
    wanted = transfer.stylize(photo, "great-wave", alpha=0.6, style_size=128, work_size=32)
    assert np.array_equal(np.asarray(Image.open(result)), np.asarray(wanted))
    whole, _ = call(client, photo, style_size=128, work_size=0)
    assert not np.array_equal(np.asarray(Image.open(result)), np.asarray(Image.open(whole)))
    with pytest.raises(Exception, match=r"ork_size must be 0 .* or at least 16 pixels, got 3"):
        call(client, photo, work_size=3)


def test_null_stands_for_what_a_field_is_at_first(client, transfer, photo):
    result, _ = call(client, photo, alpha=None, style_size=None, size=None, norm=None, color=None, detail=None)
    wanted = transfer.stylize(photo, "great-wave", style_size=128)
    assert np.array_equal(np.asarray(Image.open(result)), np.asarray(wanted))


def test_mix(client, transfer, photo):
    weights = {"great-wave": 3, "the-visit": 1}
    result, _ = client.predict(handle_file(photo), weights, 1, 0, api_name="/mix")
    wanted = transfer.stylize(photo, weights, norm="cin", style_size=128)
    assert np.array_equal(np.asarray(Image.open(result)), np.asarray(wanted))
    with pytest.raises(Exception, match="JSON object such as"):
        client.predict(handle_file(photo), ["great-wave"], 1, 0, api_name="/mix")
    with pytest.raises(Exception, match="nknown style"):  # although there is such a file
        client.predict(handle_file(photo), {str(photo): 1}, 1, 0, api_name="/mix")


def test_regions(client, transfer, photo, tmp_path):
    left, right = Image.new("L", (56, 40)), Image.new("L", (56, 40))
    left.paste(255, (0, 0, 28, 40))
    right.paste(255, (28, 0, 56, 40))
    masks = [tmp_path / "left.png", tmp_path / "right.png"]
    left.save(masks[0])
    right.save(masks[1])
    said = [{"style": "great-wave", "alpha": 0.5}, {"style": "the-visit"}]

    def call_regions(regions: object, masks: list[Path] = masks, rest: str = "", feather: float = 4):
        files = [handle_file(m) for m in masks]
        return client.predict(handle_file(photo), files, regions, rest, feather, 0, api_name="/regions")

    result, line = call_regions(said)
    wanted = transfer.stylize(
        photo,
        None,
        regions=[(masks[0], "great-wave", 0.5), (masks[1], "the-visit", 1.0)],
        feather=4,
        norm="cin",
        style_size=128,
    )
    assert np.array_equal(np.asarray(Image.open(result)), np.asarray(wanted)) and line.startswith("56 × 40")
    with_rest, _ = call_regions(said[:1], masks[:1], "wheat-field")
    wanted = transfer.stylize(
        photo, "wheat-field", regions=[(masks[0], "great-wave", 0.5)], feather=4, norm="cin", style_size=128
    )
    assert np.array_equal(np.asarray(Image.open(with_rest)), np.asarray(wanted))
    for regions, message in (
        (["great-wave"], "JSON list such as"),
        (said[:1], "1 entries for 2 masks"),
        ([{"style": str(photo)}, said[1]], "nknown style"),
        ([{"style": "great-wave", "alpha": 2}, said[1]], "must be from 0 to 1"),
        ([{"style": "great-wave", "alpha": "half"}, said[1]], "alpha of a region is a number"),
        ([{"style": "great-wave", "alpha": None}, said[1]], "alpha of a region is a number"),
    ):
        with pytest.raises(Exception, match=message):
            call_regions(regions)


def test_batch(client, transfer, photo, tmp_path):
    (tmp_path / "text.png").write_text("text")
    photos = [handle_file(p) for p in (photo, tmp_path / "text.png")]
    archive, failures = client.predict(photos, ["great-wave", "the-visit"], 1, 64, 0, api_name="/batch")
    assert len(failures) == 2 and failures[0].startswith("text.png: not an image")
    with zipfile.ZipFile(archive) as zipped:
        assert len(zipped.namelist()) == 2
        found = np.asarray(Image.open(io.BytesIO(zipped.read(zipped.namelist()[0]))).convert("RGB"), dtype=float)
    wanted = np.asarray(transfer.stylize(photo, "great-wave", norm="cin", style_size=64), dtype=float)
    assert np.abs(found - wanted).mean() < 6  # JPEG
    for files, names, message in (
        (photos, "great-wave", "JSON list such as"),
        (photos, [str(photo)], "nknown style"),
        (photos, [], "at least one style"),
    ):
        with pytest.raises(Exception, match=message):
            client.predict(files, names, 1, 64, 0, api_name="/batch")


def test_look(client, photo):
    pictures = client.predict(handle_file(photo), "great-wave", "gn", api_name="/look")
    assert len(pictures) == 3 and all(Image.open(p).width > 300 for p in pictures)


def test_compare(client, photo):
    found = client.predict(handle_file(photo), "great-wave", ["adain", "cin", "wct"], 32, api_name="/compare")
    assert [c["method"] for c in found] == ["adain", "cin", "wct"]
    assert found[0]["style_loss"] > 0 and found[0]["seconds"] > 0 and "needs a painting" in found[2]["reason"]
    given = handle_file(photo)
    found = client.predict(given, None, ["wct", "efdm", "in"], 32, given, api_name="/compare")
    assert all(c["style_loss"] > 0 and not c["reason"] for c in found[:2])
    assert all(c["style"] == "photo.png" for c in found) and "/" not in str(found)


def test_styles(client):
    found = client.predict(api_name="/styles")
    assert [s["name"] for s in found] == ["great-wave", "wheat-field", "the-visit"]
    assert found[0]["artist"] == "A" and found[0]["learned"] == "true"


def test_only_the_documented_endpoints_are_named(client):
    named = client.view_api(return_format="dict")["named_endpoints"]
    assert set(named) == {"/stylize", "/mix", "/regions", "/compare", "/look", "/batch", "/styles"}
    page = (Path(__file__).parents[2] / "docs" / "api.md").read_text(encoding="utf-8")
    for name, about in named.items():
        assert name in page
        for parameter in about["parameters"]:
            assert f"`{parameter['parameter_name']}`" in page, (name, parameter["parameter_name"])


def test_plain_http(url, photo, transfer):
    """Upload, call, wait, fetch, as docs/api.md says it for curl."""
    with httpx.Client(base_url=url, timeout=30) as http:
        path = http.post("/gradio_api/upload", files={"files": photo.read_bytes()}).json()[0]
        image = {"path": path, "meta": {"_type": "gradio.FileData"}}
        data = [image, None, "great-wave", 1, 64, 0, "adain", "none", 1, 1080]
        event = http.post("/gradio_api/call/stylize", json={"data": data}).json()["event_id"]
        lines = http.get(f"/gradio_api/call/stylize/{event}").text.splitlines()
        assert "event: complete" in lines
        result = json.loads(lines[lines.index("event: complete") + 1].removeprefix("data: "))[0]
        received = http.get(result["url"]).content

    wanted = np.asarray(transfer.stylize(photo, "great-wave", norm="adain", style_size=64))
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(received))), wanted)


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
        ({"alpha": 2}, "lpha must be from 0 to 1|greater than maximum"),
        ({"norm": "adin"}, "did you mean 'adain'"),
        ({"norm": "efdm"}, "needs a painting"),
        ({"alpha": "x"}, "alpha is a number, got 'x'"),
        ({"style_size": [64]}, r"style_size is a number, got \[64\]"),
        ({"work_size": True}, "work_size is a number, got True"),
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


def test_a_photo_of_too_many_pixels_is_refused_before_it_is_decoded(client, tmp_path, transfer, monkeypatch):
    monkeypatch.setattr(transfer, "max_pixels", 1000)
    noise(60, 60).save(tmp_path / "large.png")
    with pytest.raises(Exception, match=r"large\.png.*megapixels"):
        call(client, tmp_path / "large.png")


def test_health_metrics_and_headers(url, client, photo):
    call(client, photo)
    assert httpx.get(f"{url}/healthz").json()["status"] == "ok"
    metrics = httpx.get(f"{url}/metrics").text
    done = next(line for line in metrics.splitlines() if 'kind="stylize",outcome="done"' in line)
    assert int(done.split()[-1]) >= 1 and "styleapp_memory_bytes" in metrics
    headers = httpx.get(url).headers
    assert headers["x-content-type-options"] == "nosniff" and "default-src 'self'" in headers["content-security-policy"]
    assert "server" not in headers


@pytest.mark.parametrize("path", ["/etc/passwd", "../../../../etc/passwd", "pyproject.toml", "/proc/self/environ"])
def test_no_file_of_the_machine_is_served(url, path):
    for route in ("/gradio_api/file=", "/file="):
        assert httpx.get(f"{url}{route}{path}").status_code in (403, 404)
    data = {
        "data": [{"path": path, "meta": {"_type": "gradio.FileData"}}, None, "great-wave", 1, 64, 0, "adain", "none", 1]
    }
    answer = httpx.post(f"{url}/gradio_api/call/stylize", json=data)
    if answer.status_code == 200:
        event = answer.json()["event_id"]
        assert "event: error" in httpx.get(f"{url}/gradio_api/call/stylize/{event}").text


@pytest.mark.skipif(not socket.has_ipv6, reason="IPv6")
def test_an_address_of_ipv6(service):
    try:
        served = Server(make_app(service), "::1", 0)
    except OptionError:
        pytest.skip("this machine has no IPv6")
    with served:
        assert served.url.startswith("http://[::1]:") and httpx.get(f"{served.url}/healthz").status_code == 200


def test_uploads_are_limited_in_bytes(service):
    with Server(make_app(service, max_upload="2kb"), "127.0.0.1", 0) as server:
        answer = httpx.post(f"{server.url}/gradio_api/upload", files={"files": b"x" * 5000})
        assert answer.status_code == 413


def test_what_is_kept_of_visitors_does_not_add_up(service, monkeypatch):
    """Gradio keeps all settings of the page for each of them, and takes each call of an endpoint for a new one."""
    pages = []
    monkeypatch.setattr(app, "SESSIONS", 3)
    monkeypatch.setattr(server, "build", lambda service: pages.append(app.build(service)) or pages[-1])
    with Server(make_app(service), "127.0.0.1", 0) as served, httpx.Client(base_url=served.url) as http:
        for count in (1, 2, 3, 3, 3):
            event = http.post("/gradio_api/call/styles", json={"data": []}).json()["event_id"]
            assert "event: complete" in http.get(f"/gradio_api/call/styles/{event}").text
            assert len(pages[0].state_holder.session_data) == count


class TestPasswords:
    def test_hashes(self):
        stored = hash_password("correct horse")
        assert "correct" not in stored and stored != hash_password("correct horse")
        assert check_password("correct horse", stored) and not check_password("wrong horse", stored)

    def test_files(self, tmp_path):
        file = tmp_path / "users"
        add_user(file, "ada", "correct horse")
        add_user(file, "bob", "battery staple")
        add_user(file, "ada", "another one")
        users = read_users(file)
        assert set(users) == {"ada", "bob"} and check_password("another one", users["ada"])
        assert file.stat().st_mode & 0o077 == 0
        for name, password in (("a:b", "long enough"), (" ", "long enough"), ("d\ne", "long enough"), ("c", "short")):
            with pytest.raises(OptionError, match="at least 8"):
                add_user(file, name, password)
        assert read_users(file) == users and [p.name for p in tmp_path.iterdir()] == ["users"]
        file.write_text("nobody\n")
        with pytest.raises(OptionError, match="line 1: not a user"):
            read_users(file)
        with pytest.raises(ImageError, match="cannot be read"):
            read_users(tmp_path / "gone")

    def test_only_users_enter(self, service, photo):
        with Server(make_app(service, users={"ada": hash_password("correct horse")}), "127.0.0.1", 0) as server:
            assert httpx.get(f"{server.url}/gradio_api/info").status_code == 401
            with httpx.Client(base_url=server.url) as http:
                wrong = http.post("/login", data={"username": "ada", "password": "wrong"})
                assert wrong.status_code == 400
                right = http.post("/login", data={"username": "ada", "password": "correct horse"})
                assert right.status_code == 200 and http.get("/gradio_api/info").status_code == 200
            client = Client(server.url, auth=("ada", "correct horse"), verbose=False)
            assert call(client, photo)[1].startswith("56 × 40")
            assert httpx.get(f"{server.url}/healthz").status_code == 200


def test_a_port_that_is_taken_is_told(url, service):
    port = int(url.rsplit(":", 1)[1])
    with pytest.raises(OptionError, match=f"port {port}"):
        Server(make_app(service), "127.0.0.1", port)


def test_nothing_is_bound_to_the_network_unless_told(url):
    assert url.startswith("http://127.0.0.1:")
    assert urllib.request.urlopen(url).status == 200


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_the_command_serves_until_it_is_stopped_and_leaves_no_files(weights, tmp_path, end):
    folder = tmp_path / "tmp"
    folder.mkdir()
    env = {**os.environ, "STYLEAPP_WEIGHTS": str(weights), "PYTHONPATH": str(Path(__file__).parents[2])}
    env |= {"TMPDIR": str(folder), "GRADIO_TEMP_DIR": str(folder)}
    add_user(tmp_path / "users", "ada", "correct horse")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs hand down that it is ignored
    process = subprocess.Popen(
        [sys.executable, "-m", "styleapp", "web", "--port", "0", "--auth-file", "users", "--max-pixels", "1MP"],
        cwd=tmp_path,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        address = process.stdout.readline().split()[0]
        assert httpx.get(f"{address}/healthz").json()["status"] == "ok"
        assert httpx.get(f"{address}/gradio_api/info").status_code == 401
        assert list(folder.glob("styleapp-*"))
    finally:
        process.send_signal(end)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 128 + end and "Traceback" not in err, err
    assert not list(folder.glob("styleapp-*"))


def test_bad_options_of_the_command(run, tmp_path):
    for args, message in (
        (("--max-pixels", "many"), "--max-pixels is a size such as 40MP"),
        (("--max-upload", "lots"), "such as 2GB"),
        (("--auth-file", "gone"), "gone: cannot be read"),
    ):
        code, _, err = run("web", *args)
        assert code in (1, 2) and message in err, err
