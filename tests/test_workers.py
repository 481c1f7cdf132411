"""Several workers, several processes, a cluster: the same results as one, whatever ends in the middle."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import noise
from PIL import Image

from styleapp.batch import Settings, Task, Worker, find_photos, make_jobs
from styleapp.batch.processes import run_processes, settings_of_workers
from styleapp.cli import folders
from styleapp.errors import DeviceError
from styleapp.options import Options

OPTIONS = Options(style_size=64)
ROOT = Path(__file__).parents[1]


@pytest.fixture
def photos(tmp_path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(12):
        noise(*[(40, 48), (48, 40), (32, 32)][i % 3], seed=i).save(folder / f"{i:02}.png")
    (folder / "05.png").write_text("no image")
    return folder


def tasks_of(folder: Path, out: Path) -> list[Task]:
    return [Task(job) for job in make_jobs(find_photos([str(folder)]), ["great-wave"], str(out))]


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.glob("*.png"))}


def settings(weights: Path) -> Settings:
    """One thread: for pictures as small as these the convolution that is chosen depends on their number."""
    return Settings(OPTIONS, "cpu", "fp32", weights=str(weights), threads=1)


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_two_processes_make_the_same_bytes(weights, photos, tmp_path):
    one = list(Worker(settings(weights)).run(tasks_of(photos, tmp_path / "one")))
    two = list(run_processes(settings_of_workers(settings(weights), 2), tasks_of(photos, tmp_path / "two")))
    assert len(one) == len(two) == 12
    assert contents(tmp_path / "one") == contents(tmp_path / "two") and len(contents(tmp_path / "one")) == 11
    for found in (one, two):
        assert [Path(d.job.photo).name for d in found if d.error] == ["05.png"]
        assert all(d.seconds > 0 and len(d.digest) == 16 for d in found if not d.error)


@pytest.mark.parametrize("batch_size", [2, 5])
def test_batches_are_as_single_photos(weights, photos, tmp_path, batch_size):
    list(Worker(settings(weights)).run(tasks_of(photos, tmp_path / "one")))
    worker = Worker(replace(settings(weights), batch_size=batch_size))
    network = worker.transfer.networks.of("cin")
    most, forward = [0], network.forward

    def counting(image, *more, **named):
        most[0] = max(most[0], len(image))
        return forward(image, *more, **named)

    network.forward = counting
    done = list(worker.run(tasks_of(photos, tmp_path / "many")))
    assert len(done) == 12 and most[0] == min(batch_size, 4)
    a, b = (contents(tmp_path / name) for name in ("one", "many"))
    assert a.keys() == b.keys()
    for name in a:
        x, y = (np.asarray(Image.open(tmp_path / f / name)).astype(int) for f in ("one", "many"))
        assert np.abs(x - y).max() <= 1


def test_one_that_fails_in_a_batch_does_not_take_the_others_along(weights, photos, tmp_path, monkeypatch):
    worker = Worker(replace(settings(weights), batch_size=4))
    picture = worker.transfer.picture

    def fails(photo, *more):
        if float(photo.rgb.mean()) == bad:
            raise RuntimeError("no luck")
        return picture(photo, *more)

    bad = float(worker.transfer.fit(photos / "03.png", OPTIONS).rgb.mean())
    monkeypatch.setattr(worker.transfer, "picture", fails)
    monkeypatch.setattr(worker.transfer, "_at_once", lambda *a: (_ for _ in ()).throw(RuntimeError("no luck")))
    done = {Path(d.job.photo).name: d.error for d in worker.run(tasks_of(photos, tmp_path / "out"))}
    assert {name for name, error in done.items() if error} == {"03.png", "05.png"}
    assert "RuntimeError: no luck" in done["03.png"]


def test_no_more_tasks_are_taken_than_may_be_in_hand(weights, photos, tmp_path):
    worker = Worker(settings(weights))
    taken = 0

    def counted():
        nonlocal taken
        for task in tasks_of(photos, tmp_path / "out"):
            taken += 1
            yield task

    for given, _ in enumerate(worker.run(counted())):
        assert taken <= given + worker.ahead


def test_a_worker_that_is_killed_is_replaced(weights, photos, tmp_path):
    """Its tasks are done by another; nothing is lost, nothing given twice."""
    seen, killed = [], False
    for done in run_processes(settings_of_workers(settings(weights), 2), tasks_of(photos, tmp_path / "out")):
        seen.append(Path(done.job.photo).name)
        if not killed:
            children = subprocess.run(
                ["pgrep", "-P", str(os.getpid()), "-f", "spawn_main"], capture_output=True, text=True, check=True
            ).stdout.split()
            os.kill(int(children[0]), signal.SIGKILL)
            killed = True
    assert sorted(seen) == [f"{i:02}.png" for i in range(12)]
    assert len(contents(tmp_path / "out")) == 11


def test_what_kills_every_worker_is_told(weights, photos, tmp_path, monkeypatch):
    monkeypatch.setattr("styleapp.batch.processes._work", _poisoned)
    found = list(run_processes(settings_of_workers(settings(weights), 2), tasks_of(photos, tmp_path / "again")))
    errors = {Path(d.job.photo).name: d.error for d in found if d.error}
    assert sorted(Path(d.job.photo).name for d in found) == [f"{i:02}.png" for i in range(12)]
    assert "the worker process ended with code 9, 2 times" in errors["03.png"]
    assert len(contents(tmp_path / "again")) >= 8


def _poisoned(connection, given):
    """A worker that ends at one photo, as a crash in a library would make it."""
    from styleapp.batch import processes, work

    read = work.Worker._read

    def ends(self, task):
        if task.job.photo.name == "03.png":
            os._exit(9)
        return read(self, task)

    work.Worker._read = ends
    processes._work(connection, given)


def _ends(connection, given):
    os._exit(3)


def test_a_worker_that_ends_at_once_is_not_started_for_ever(weights, photos, tmp_path, monkeypatch):
    monkeypatch.setattr("styleapp.batch.processes._work", _ends)
    with pytest.raises(DeviceError, match="end with code 3 before they begin"):
        list(run_processes([settings(weights)] * 2, tasks_of(photos, tmp_path / "out")))


def test_shares_of_the_machine(monkeypatch):
    given = Settings(OPTIONS, "cpu")
    assert [s.threads for s in settings_of_workers(given, 0)] == [0]
    monkeypatch.setattr("styleapp.batch.processes.cores", lambda: 8)
    assert [s.threads for s in settings_of_workers(given, 4)] == [2] * 4
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    auto = replace(given, device="auto")
    assert [s.device for s in settings_of_workers(auto, 0)] == ["cuda:0", "cuda:1", "cuda:2"]
    assert [s.device for s in settings_of_workers(replace(given, device="cuda:1"), 0)] == ["cuda:1"]
    assert [s.device for s in settings_of_workers(given, 0)] == ["cpu"]


def test_a_worker_that_cannot_start_is_an_error(weights, photos, tmp_path, run):
    code, _, err = run("stylize", photos, "-s", "great-wave", "-o", "out", "--workers", 2, "--style-size", 64)
    assert code == 1 and "11 done" in err and "05.png: not an image" in err
    bad = replace(settings(weights), weights=str(tmp_path / "nowhere"))
    with pytest.raises(Exception, match="no such file"):
        list(run_processes([bad, bad], tasks_of(photos, tmp_path / "out")))


@pytest.mark.long
def test_ray():
    """In a process of its own: Ray ends a process in which a cluster was lost or shut down a minute ago."""
    pytest.importorskip("ray")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"{__file__}::TestRay"]
    env = {**os.environ, "STYLEAPP_TEST_RAY": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0 and "2 passed" in done.stdout, done.stdout + done.stderr


@pytest.mark.skipif("STYLEAPP_TEST_RAY" not in os.environ, reason="test_ray runs these")
class TestRay:
    @pytest.fixture(autouse=True)
    def _cluster(self, monkeypatch):
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
        monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        monkeypatch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
        ray = pytest.importorskip("ray")
        yield
        ray.shutdown()

    def test_the_same_bytes_and_a_lost_worker(self, weights, tmp_path):
        from styleapp.batch.cluster import run_ray

        folder = tmp_path / "in"
        folder.mkdir()
        for i in range(60):
            noise(40, 48, seed=i).save(folder / f"{i:02}.png")
        list(Worker(settings(weights)).run(tasks_of(folder, tmp_path / "one")))
        seen, killed = [], 0
        for done in run_ray(settings(weights), tasks_of(folder, tmp_path / "ray"), workers=2):
            assert not done.error, done.error
            seen.append(done.job.photo.name)
            if not killed:
                killed = kill_one("ray::MapWorker")
        assert killed
        assert sorted(set(seen)) == [f"{i:02}.png" for i in range(60)]
        for leftover in (tmp_path / "ray").glob(".styleapp-*"):  # of the killed one; a journal would sweep it
            leftover.unlink()
        assert contents(tmp_path / "one") == contents(tmp_path / "ray")

    def test_it_stops_when_it_is_told(self, weights, tmp_path):
        from styleapp.batch.cluster import run_ray

        folder = tmp_path / "in"
        folder.mkdir()
        for i in range(60):
            noise(40, 48, seed=i).save(folder / f"{i:02}.png")
        seen: list[str] = []
        run = run_ray(settings(weights), tasks_of(folder, tmp_path / "ray"), workers=1, stop=lambda: len(seen) >= 3)
        for done in run:
            seen.append(done.job.photo.name)
        assert len(seen) == 3


def kill_one(name: str) -> int:
    found = subprocess.run(["pgrep", "-f", name], capture_output=True, text=True, check=False).stdout.split()
    if found:
        os.kill(int(found[0]), signal.SIGKILL)
    return len(found)


class TestWatch:
    pytest.importorskip("watchfiles")

    def test_what_comes_in_is_stylized_until_stopped(self, weights, tmp_path):
        (tmp_path / "in").mkdir()
        noise(40, 40, seed=1).save(tmp_path / "in" / "a.png")
        command = [sys.executable, "-m", "styleapp", "stylize", "in", "-s", "great-wave", "-o", "out", "--watch"]
        process = subprocess.Popen(
            [*command, "--style-size", "64"],
            cwd=tmp_path,
            env={**os.environ, "STYLEAPP_WEIGHTS": str(weights), "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            wait_for(tmp_path / "out" / "a-great-wave.png", process)
            noise(40, 40, seed=2).save(tmp_path / "in" / "b.png")
            wait_for(tmp_path / "out" / "b-great-wave.png", process)
            (tmp_path / "in" / "deep").mkdir()
            noise(40, 40, seed=3).save(tmp_path / "in" / "deep" / "c.png")
            wait_for(tmp_path / "out" / "deep" / "c-great-wave.png", process)
            before = (tmp_path / "out" / "a-great-wave.png").read_bytes()
            noise(40, 40, seed=4).save(tmp_path / "in" / "a.png")
            end = time.monotonic() + 60
            while (tmp_path / "out" / "a-great-wave.png").read_bytes() == before and time.monotonic() < end:
                time.sleep(0.1)
            assert (tmp_path / "out" / "a-great-wave.png").read_bytes() != before
        finally:
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=60)
        assert process.returncode == 130, err

    @pytest.mark.parametrize(("pause", "looked"), [(1e9, 3), (0, 6)])
    def test_is_looked_through_at_notices_and_now_and_then(self, run, photos, monkeypatch, pause, looked):
        """Not at each of the moments at which nothing is told: a large folder would keep a core busy."""
        looks = 0

        def plan_of(*_):
            nonlocal looks
            looks += 1
            return []

        def watch(*_, **__):
            yield from (set(), set(), {"b.png"}, set())
            signal.raise_signal(signal.SIGINT)
            yield set()

        monkeypatch.setattr("watchfiles.watch", watch)
        monkeypatch.setattr(folders, "plan_of", plan_of)
        monkeypatch.setattr(folders, "LOOKING", pause)
        assert run("stylize", photos, "-s", "great-wave", "-o", "out", "--watch")[0] == 130
        assert looks == looked  # the first for the styles

    def test_results_must_not_lie_in_the_watched_folder(self, run, photos):
        code, _, err = run("stylize", photos, "-s", "great-wave", "-o", photos / "out", "--watch")
        assert code == 2 and "would be stylized again" in err


def wait_for(path: Path, process: subprocess.Popen) -> None:
    end = time.monotonic() + 60
    while not path.exists():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end, f"{path} did not come"
        time.sleep(0.1)


class TestStore:
    upath = pytest.importorskip("upath")

    def test_from_store_to_store(self, run, photos, tmp_path):
        source = self.upath.UPath("memory://photos")
        for path in photos.glob("*.png"):
            (source / "deep" / path.name).parent.mkdir(parents=True, exist_ok=True)
            (source / "deep" / path.name).write_bytes(path.read_bytes())
        args = ("stylize", "memory://photos", "-s", "great-wave", "-o", "memory://results", "--style-size", 64)
        code, _, err = run(*args)
        assert code == 1 and "11 done" in err and "05.png: not an image" in err
        run("stylize", photos, "-s", "great-wave", "-o", "out", "--style-size", 64)
        for path in (tmp_path / "out").glob("*.png"):
            stored = self.upath.UPath("memory://results/deep") / path.name
            assert stored.read_bytes() == path.read_bytes()
        assert "0 done, 11 done before, 1 failed" in run(*args)[2]

    def test_an_unknown_store_is_told(self, run, photos):
        code, _, err = run("stylize", "nostore://x", "-s", "great-wave", "-o", "out")
        assert code == 2 and "nostore" in err


@pytest.mark.long
@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_a_thousand_images_and_twenty_kills(weights, tmp_path):
    """950 results and 50 named errors, each made once, however often the run is killed."""
    folder = tmp_path / "in"
    bad = fill(folder)
    env = {**os.environ, "STYLEAPP_WEIGHTS": str(weights), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "styleapp", "stylize", "in", "-s", "great-wave", "-o", "out"]
    command += ["--style-size", "64", "--workers", "1", "--json"]
    draw = np.random.default_rng(7)
    in_hand = 0
    for _ in range(20):
        process = subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert process.stdout is not None
        for _ in range(int(draw.integers(1, 45))):
            process.stdout.readline()
        process.kill()
        process.communicate()
        in_hand += 3
    last = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert last.returncode == 1, last.stderr
    summary = json.loads(last.stdout.splitlines()[-1])
    assert summary["done"] + summary["skipped"] == 950 and summary["failed"] == 50
    assert {Path(r["input"]).name for r in map(json.loads, last.stdout.splitlines()[:-1]) if "error" in r} == bad

    records = [json.loads(ln) for ln in (tmp_path / "out" / ".styleapp-journal.jsonl").read_text().splitlines() if
               ln.endswith("}")]  # fmt: skip
    made = [r["output"] for r in records if "seconds" in r]
    begun = [r["output"] for r in records if "started" in r and Path(r["input"]).name not in bad]
    assert len(made) == len(set(made)) == 950
    assert len(begun) - 950 <= in_hand
    results = sorted(p for p in (tmp_path / "out").rglob("*") if p.is_file() and p.name != ".styleapp-journal.jsonl")
    assert len(results) == 950 and not [p for p in results if p.name.startswith(".styleapp-")]
    for path in results[::10]:
        Image.open(path).load()


def fill(folder: Path) -> set[str]:
    """950 images of several formats and sizes in a tree, and 50 files of all kinds that are none."""
    (folder / "deep" / "er").mkdir(parents=True)
    places = [folder, folder / "deep", folder / "deep" / "er"]
    for i in range(950):
        suffix = ("png", "jpg", "webp", "bmp")[i % 4]
        noise(32 + 8 * (i % 3), 32, seed=i).save(places[i % 3] / f"p{i:03}.{suffix}")
    good = (folder / "p000.png").read_bytes()
    for i in range(50):
        path = places[i % 3] / f"bad{i:02}.png"
        if i % 5 == 0:
            path.write_text("not an image")
        elif i % 5 == 1:
            path.touch()
        elif i % 5 == 2:
            path.write_bytes(good[: len(good) // 2])
        elif i % 5 == 3:
            path.symlink_to("nowhere.png")
        else:
            Image.new("RGB", (3, 300)).save(path)
    return {f"bad{i:02}.png" for i in range(50)}


@pytest.mark.long
def test_memory_does_not_grow(weights, tmp_path):
    """Of this process, between the 100th and the 1,000th image."""
    import psutil

    noise(96, 96).save(tmp_path / "a.png")
    photos = [tmp_path / f"{i}.png" for i in range(1000)]
    for path in photos:
        path.hardlink_to(tmp_path / "a.png")
    worker, sizes = Worker(settings(weights)), {}
    jobs = make_jobs([*find_photos([str(p) for p in photos])], ["great-wave"], str(tmp_path / "out"))
    for i, done in enumerate(worker.run(Task(job) for job in jobs)):
        assert not done.error
        if i in (100, 999):
            sizes[i] = psutil.Process().memory_info().rss
    assert sizes[999] - sizes[100] < 100e6


def test_readers_see_nothing_of_a_stopped_run(weights, photos, tmp_path):
    """A run that is not read to its end leaves no thread behind."""
    before = threading.active_count()
    run = Worker(settings(weights)).run(tasks_of(photos, tmp_path / "out"))
    next(run)
    run.close()
    assert threading.active_count() <= before
