"""The page under load, and how long a visitor waits.

    python scripts/bench_web.py [--clients 32] [--minutes 3] > benchmarks/web.json

The page runs in a process of its own with the shipped weights. First one visitor in a real Chromium: from pressing the
button to the picture, and from letting go of a slider to the preview. Then the clients over plain HTTP, each with its
next request as soon as the last is answered: photos of 128 to 512 px, one in ten requests with a file that is no image.
"""

from __future__ import annotations

import argparse
import functools
import io
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import psutil
import torch
from PIL import Image

from styleapp.files import example_photos

SIZES = (128, 192, 256, 384, 512)


def start() -> tuple[subprocess.Popen[str], str]:
    """The page, once it answers."""
    process = subprocess.Popen(
        [sys.executable, "-m", "styleapp", "web", "--port", "0"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, process.stdout.readline().split()[0]


def visitor(url: str) -> dict[str, float]:
    """Seconds that one visitor waits, each the median of five."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    from visitor import Visitor, chromium

    def timed(act: Any, text: str) -> float:
        begin = time.perf_counter()
        act()
        page.wait_for_function(
            "text => { const said = document.querySelector('#status').innerText;"
            "return said.includes(text) && [...document.querySelectorAll('#result img')].every(i => i.complete) }",
            arg=text,
            polling=10,
        )
        return time.perf_counter() - begin

    browsers = chromium()
    guest = Visitor(next(browsers), url)
    page = guest.page
    photo = Path(tempfile.mkdtemp()) / "photo.jpg"
    Image.open(example_photos()[0]).convert("RGB").resize((512, 512)).save(photo, quality=92)
    guest.upload(photo)
    page.get_by_text("Preview. Press Stylize").wait_for()
    strength = page.get_by_role("slider", name="range slider for Strength").first
    full, previews = [], []
    for key in ("ArrowLeft", "ArrowRight", "ArrowLeft", "ArrowRight", "ArrowLeft"):
        full.append(timed(functools.partial(guest.button, "Stylize"), "px in"))
        page.wait_for_timeout(500)
        previews.append(timed(functools.partial(strength.press, key), "Preview"))
        page.wait_for_timeout(500)
    guest.context.close()
    browsers.close()
    return {
        "first_picture_512": full[0],
        "picture_512": statistics.median(full),
        "preview_256": statistics.median(previews),
    }


def photos() -> dict[int, bytes]:
    found = {}
    for size in SIZES:
        data = io.BytesIO()
        Image.open(example_photos()[0]).convert("RGB").resize((size, size)).save(data, "JPEG", quality=90)
        found[size] = data.getvalue()
    return found


class Load:
    """What the clients do, and what becomes of it."""

    def __init__(self, url: str, seconds: float) -> None:
        self.url = url
        self.end = time.monotonic() + seconds
        self.photos = photos()
        self.waits: list[float] = []
        self.outcomes = {"done": 0, "refused as it should be": 0, "queue full": 0, "wrong": 0}
        self.wrong: list[str] = []
        self.lock = threading.Lock()

    def client(self, number: int) -> None:
        draw = random.Random(number)
        with httpx.Client(base_url=self.url, timeout=180) as http:
            while time.monotonic() < self.end:
                bad = draw.random() < 0.1
                data = b"no image at all" if bad else self.photos[draw.choice(SIZES)]
                begin = time.monotonic()
                try:
                    kind = self.request(http, data, draw.choice(["great-wave", "wheat-field", "the-visit"]), bad)
                except Exception as error:  # a client that dies would leave the others more of the server
                    kind = "wrong"
                    self.wrong.append(f"{type(error).__name__}: {error}"[:200])
                with self.lock:
                    self.outcomes[kind] += 1
                    if kind == "done":
                        self.waits.append(time.monotonic() - begin)
                if kind == "queue full":
                    time.sleep(1)

    def request(self, http: httpx.Client, data: bytes, style: str, bad: bool) -> str:
        path = http.post("/gradio_api/upload", files={"files": ("photo.jpg", data)}).json()[0]
        image = {"path": path, "meta": {"_type": "gradio.FileData"}}
        call = {"data": [image, None, style, 1, 512, 0, "adain", "none", 1]}
        answer = http.post("/gradio_api/call/stylize", json=call)
        if answer.status_code == 503:
            return "queue full"
        lines = http.get(f"/gradio_api/call/stylize/{answer.json()['event_id']}").text.splitlines()
        if "event: complete" in lines:  # after heartbeats, where the wait was long: events too, whose data is null
            result = json.loads(lines[lines.index("event: complete") + 1].removeprefix("data: "))[0]
            received = http.get(result["url"])
            fine = not bad and Image.open(io.BytesIO(received.content)).format == "PNG"
            return "done" if fine else self.note("a bad file was accepted" if bad else "no picture came back")
        if "event: error" in lines and bad:
            return "refused as it should be"
        text = " ".join(lines)
        return "queue full" if "ueue" in text and "full" in text else self.note(text[:200])

    def note(self, text: str) -> str:
        self.wrong.append(text)
        return "wrong"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--minutes", type=float, default=3.0)
    args = parser.parse_args()
    process, url = start()
    try:
        one = visitor(url)
        load = Load(url, 60 * args.minutes)
        clients = [threading.Thread(target=load.client, args=(i,)) for i in range(args.clients)]
        server = psutil.Process(process.pid)
        memory = []
        for client in clients:
            client.start()
        while any(client.is_alive() for client in clients):
            memory.append(server.memory_info().rss)
            time.sleep(2)
        metrics = httpx.get(f"{url}/metrics").text
    finally:
        process.terminate()
        process.wait(20)
    waits = sorted(load.waits)
    result = {
        "command": f"python scripts/bench_web.py --clients {args.clients} --minutes {args.minutes:g}",
        "torch": torch.__version__,
        "cores": os.cpu_count(),
        "one_visitor_seconds": one,
        "clients": args.clients,
        "minutes": args.minutes,
        "outcomes": load.outcomes,
        "wrong": load.wrong[:10],
        "pictures_per_second": len(waits) / (60 * args.minutes),
        "seconds_p50": waits[len(waits) // 2],
        "seconds_p95": waits[len(waits) * 95 // 100],
        "memory_mb": {
            "after_a_third": round(memory[len(memory) // 3] / 1e6),
            "at_the_end": round(memory[-1] / 1e6),
            "most": round(max(memory) / 1e6),
        },
        "metrics": [line for line in metrics.splitlines() if not line.startswith("#")],
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
