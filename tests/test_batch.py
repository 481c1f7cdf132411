"""Folders in, folders out: nothing lost, nothing done twice, nothing skipped in silence."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import noise
from PIL import Image

from styleapp.batch import JOURNAL, Job, Journal, Photo, Settings, estimate, find_photos, make_jobs
from styleapp.batch.plan import ENLARGING
from styleapp.batch.sheet import contact_sheet
from styleapp.cli.folders import speed_of
from styleapp.errors import ImageError, OptionError
from styleapp.files import read_animation
from styleapp.options import Options
from styleapp.pipeline import StyleTransfer

SIZE = ("--style-size", 64)


@pytest.fixture
def tree(tmp_path) -> Path:
    """Four photos in two levels, two of them with one stem, and files that are no images."""
    root = tmp_path / "photos"
    (root / "deep" / "er").mkdir(parents=True)
    for i, name in enumerate(["a.png", "a.jpg", "deep/b.png", "deep/er/c.webp"]):
        noise(32, 40, seed=i).save(root / name)
    (root / "notes.txt").write_text("no image")
    (root / ".hidden.png").write_bytes(b"x")
    return root


def outputs(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and p.name != JOURNAL)


def test_a_style_that_was_saved_anew_is_done_anew(run, tree, tmp_path):
    for i in range(2):
        noise(60, 70, seed=20 + i).save(tmp_path / f"painting-{i}.png")
    run("styles", "save", "painting-0.png", "--name", "mine")
    again = ("stylize", tree, "--style", "mine", "-o", "out", "--json", *SIZE)
    counts = [json.loads(run(*again)[1].splitlines()[-1]) for _ in range(2)]
    assert [(c["done"], c["skipped"]) for c in counts] == [(4, 0), (0, 4)]
    before = (tmp_path / "out" / "a-mine.png").read_bytes()
    assert run("styles", "save", "painting-1.png", "--name", "mine", "--overwrite")[0] == 0
    counts = [json.loads(run(*again)[1].splitlines()[-1]) for _ in range(2)]
    assert [(c["done"], c["skipped"]) for c in counts] == [(4, 0), (0, 4)]
    assert (tmp_path / "out" / "a-mine.png").read_bytes() != before


class TestPlan:
    def test_folders_keep_their_tree_and_names_never_collide(self, tree):
        jobs = make_jobs(find_photos([str(tree)]), ["great-wave"], "out", suffix=".png")
        assert [j.target.as_posix() for j in jobs] == [
            "out/a-great-wave.png",
            "out/a-great-wave-2.png",
            "out/deep/b-great-wave.png",
            "out/deep/er/c-great-wave.png",
        ]

    def test_a_number_behind_a_name_may_be_a_styles(self, tree):
        """A style mine-2 has the name that the second photo in mine would get."""
        photos = [Photo(tree / name, Path("a.png")) for name in ("a.png", "a.jpg", "deep/b.png")]
        jobs = make_jobs(photos, ["mine", "mine-2"], "out", suffix=".png")
        assert len({j.target for j in jobs}) == len(jobs) == 6
        assert [j.target.name for j in jobs[:3]] == ["a-mine.png", "a-mine-2.png", "a-mine-3.png"]

    def test_patterns_files_and_duplicates(self, tree):
        found = find_photos([str(tree / "*.png"), str(tree / "a.png"), str(tree / "**" / "*.webp")])
        assert [p.path.name for p in found] == ["a.png", "c.webp"]

    def test_output_patterns(self, tree):
        photos = find_photos([str(tree / "deep")])
        jobs = make_jobs(photos, ["x/painting.jpg", "the-visit"], "o/{style}/{parent}/{stem}.{ext}")
        names = [j.target.as_posix() for j in jobs]
        assert names == ["o/painting/b.png", "o/the-visit/b.png", "o/painting/er/c.webp", "o/the-visit/er/c.webp"]
        for pattern, message in (
            ("o/{artist}", "unknown field 'artist'; there are {stem}"),
            ("o/{}.png", "unknown field ''"),
            ("o/{stem.__class__}.png", "unknown field 'stem.__class__'"),
            ("o/{stem!r}.png", "unknown field 'stem'"),
            ("o/{stem:>9}.png", "unknown field 'stem'"),
            ("o/{stem.png", "expected '}'"),
            ("o/{stem}", "must end with .{ext}, or a format"),
            ("o/{stem}.{ext}.txt", "must end with .{ext}, or a format"),
        ):
            with pytest.raises(OptionError, match=re.escape(message)) as told:
                make_jobs(photos, ["a"], pattern)
            assert str(told.value).count(pattern) == 1

    def test_pairs(self):
        photos = [Photo(Path(f"{i}.png"), Path(f"{i}.png")) for i in range(5)]
        styles = ["p", "q", "r"]
        assert len(make_jobs(photos, styles, "o")) == 15
        zipped = make_jobs(photos[:3], styles, "o", pairs="zip")
        assert [(j.photo.stem, j.style) for j in zipped] == [("0", "p"), ("1", "q"), ("2", "r")]
        drawn = [[j.style for j in make_jobs(photos, styles, "o", pairs="random:2", seed=s)] for s in (1, 1, 2)]
        assert drawn[0] == drawn[1] != drawn[2] and len(drawn[0]) == 10
        assert all(len(set(drawn[0][i : i + 2])) == 2 for i in range(0, 10, 2))
        for bad in ("zip", "random:4", "random:0", "some", "all:2"):
            with pytest.raises(OptionError, match="--pairs"):
                make_jobs(photos, styles, "o", pairs=bad)

    @pytest.mark.parametrize(
        "name", ["con.png", "a:b?.png", "..png", "ends. .png", "ü🎨.png", "x" * 240 + ".png", "-o.png"]
    )
    def test_names_are_legal_everywhere_and_stay_in_the_folder(self, name):
        (job,) = make_jobs([Photo(Path(name), Path(name))], ["s"], "out")
        assert job.target.parent == Path("out")
        assert not set(job.target.name) & set('<>:"|?*\\/') and len(job.target.name.encode()) < 255
        assert job.target.stem.split("-")[0].lower() != "con"

    def test_names_that_differ_in_case_alone_do_not_meet(self):
        photos = [Photo(Path(n), Path(n)) for n in ("A.png", "a.png")]
        targets = [j.target.name.casefold() for j in make_jobs(photos, ["s"], "out")]
        assert len(set(targets)) == 2

    def test_nothing_to_do_is_an_error(self, tmp_path):
        (tmp_path / "empty").mkdir()
        for content, message in (
            ("empty", "has no image in it"),
            ("*.png", "matches no image"),
            ("no", "no such file"),
        ):
            with pytest.raises(ImageError, match=message):
                find_photos([str(tmp_path / content)])

    @pytest.mark.skipif(sys.platform == "win32", reason="symbolic links")
    def test_loops_of_links(self, tree):
        (tree / "deep" / "loop").symlink_to(tree, target_is_directory=True)
        assert len(find_photos([str(tree)])) == 4


class TestRun:
    def test_a_folder(self, run, tree, tmp_path):
        code, out, err = run("stylize", tree, "-s", "great-wave", "-o", "out", *SIZE)
        assert code == 0, err
        assert outputs(tmp_path / "out") == [
            "a-great-wave.jpg",
            "a-great-wave.png",
            "deep/b-great-wave.png",
            "deep/er/c-great-wave.webp",
        ]
        assert len(out.splitlines()) == 4 and "4 done, 0 done before, 0 failed" in err
        alone = run("stylize", tree / "a.png", "-s", "great-wave", "-o", "alone.png", *SIZE)
        assert alone[0] == 0
        a, b = (np.asarray(Image.open(tmp_path / f)) for f in ("out/a-great-wave.png", "alone.png"))
        assert np.array_equal(a, b)

    def test_again_does_nothing_and_what_changed_is_done(self, run, tree, tmp_path):
        args = ("stylize", tree, "-s", "great-wave", "-o", "out", *SIZE)
        run(*args)
        before = {p: (tmp_path / "out" / p).stat().st_mtime_ns for p in outputs(tmp_path / "out")}
        assert "0 done, 4 done before" in run(*args)[2]
        noise(32, 40, seed=99).save(tree / "deep" / "b.png")
        (tmp_path / "out" / "a-great-wave.jpg").unlink()
        assert "2 done, 2 done before" in run(*args)[2]
        after = {p: (tmp_path / "out" / p).stat().st_mtime_ns for p in outputs(tmp_path / "out")}
        assert {p for p in before if before[p] != after[p]} == {"a-great-wave.jpg", "deep/b-great-wave.png"}
        assert "4 done, 0 done before" in run(*args, "--alpha", 0.5)[2]
        assert "0 done, 4 done before" in run(*args, "--alpha", 0.5, "--tile", 32)[2]  # the same picture
        assert "4 done" in run(*args, "--alpha", 0.5, "--overwrite")[2]

    @pytest.mark.parametrize("out", ["photos/out", "photos", "photos/{style}/{stem}.{ext}"])
    def test_results_among_the_photos_are_not_stylized_again(self, run, tree, tmp_path, out):
        args = ("stylize", tree.name, "-s", "great-wave", "-o", out, *SIZE)
        assert "4 done, 0 done before, 0 failed" in run(*args)[2]
        before = outputs(tree)
        code, _, err = run(*args)
        assert code == 0 and "0 done, 4 done before, 0 failed" in err and outputs(tree) == before
        if out == "photos/out":  # but they are photos for one who names them
            code, _, err = run("stylize", out, "-s", "the-visit", "-o", "again", *SIZE)
            assert code == 0 and "4 done, 0 done before" in err
            assert "4 done, 0 done before" in run("stylize", tree.name, "-s", "the-visit", "-o", "new", *SIZE)[2]
        if out == "photos":
            pattern = run("stylize", "photos/*.png", "-s", "great-wave", "-o", out, *SIZE)
            assert pattern[0] == 0 and "0 done, 1 done before" in pattern[2], pattern[2]

    def test_films_are_left_out_and_told(self, run, tree):
        for name in ("c.MP4", "deep/d.mov", ".hidden.mp4"):
            (tree / name).touch()
        code, _, err = run("stylize", tree, "-s", "great-wave", "-o", "out", *SIZE)
        assert code == 0 and "4 done, 0 done before, 0 failed" in err
        assert "left out: 2 films; films are named one by one (c.MP4, d.mov)" in err

    def test_the_journal_holds_from_any_folder_and_after_a_move(self, run, tree, tmp_path, monkeypatch):
        assert run("stylize", tree, "-s", "great-wave", "-o", "made/out", *SIZE)[0] == 0
        monkeypatch.chdir(tmp_path / "made")
        code, _, err = run("stylize", tree, "-s", "great-wave", "-o", "out", *SIZE)
        assert code == 0 and "0 done, 4 done before, 0 failed" in err
        monkeypatch.chdir(tree)
        assert run("report", "../made/out", "--sheet", tmp_path / "sheet.png")[0] == 0
        (tmp_path / "made").rename(tmp_path / "moved")
        monkeypatch.chdir(tmp_path / "moved" / "out")
        code, _, err = run("stylize", tree, "-s", "great-wave", "-o", ".", *SIZE)
        assert code == 0 and "0 done, 4 done before, 0 failed" in err
        assert run("report", ".", "--sheet", tmp_path / "sheet2.png")[0] == 0
        assert (tmp_path / "sheet.png").read_bytes() == (tmp_path / "sheet2.png").read_bytes()

    def test_goes_on_with_a_journal_of_0_13(self, run, tree, tmp_path):
        """There outputs were as the command line had them."""
        args = ("stylize", tree, "-s", "great-wave", "-o", "out", *SIZE)
        run(*args)
        journal = tmp_path / "out" / JOURNAL
        records = [json.loads(line) for line in journal.read_text().splitlines() if line]
        assert all(r.pop("place") == Path(r["output"]).name or "deep/" in r["output"] for r in records)
        journal.write_text("".join(json.dumps(r) + "\n" for r in records))
        assert "0 done, 4 done before, 0 failed" in run(*args)[2]

    def test_bad_files_are_named_and_the_others_done(self, run, tree, tmp_path):
        (tree / "text.jpg").write_text("not an image")
        (tree / "empty.png").touch()
        (tree / "cut.png").write_bytes((tree / "a.png").read_bytes()[:200])
        (tree / "gone.png").symlink_to("nowhere.png")
        Image.new("RGB", (3, 3)).save(tree / "tiny.png")
        (tree / "odd\nname.png").write_bytes(b"?")
        code, out, err = run("stylize", tree, "-s", "great-wave", "-o", "out", "--json", *SIZE)
        lines = [json.loads(line) for line in out.splitlines()]
        assert code == 1 and lines[-1]["done"] == 4 and lines[-1]["failed"] == 6
        failed = {Path(r["input"]).name for r in lines[:-1] if r["outcome"] == "failed"}
        assert failed == {"text.jpg", "empty.png", "cut.png", "gone.png", "tiny.png", "odd\nname.png"}
        assert len(outputs(tmp_path / "out")) == 4 and "Traceback" not in err
        noise(32, 32).save(tree / "text.jpg", "JPEG")
        code, _, err = run("stylize", tree, "-s", "great-wave", "-o", "out", *SIZE)
        assert code == 1 and "1 done, 4 done before, 5 failed" in err

    def test_fail_fast(self, run, tree):
        (tree / "a.jpg").write_text("not an image")
        code, _, err = run("stylize", tree, "-s", "great-wave", "-o", "out", "--fail-fast", *SIZE)
        assert code == 1 and "1 failed" in err and "left: the same command goes on" in err

    def test_styles_by_pairs_and_dry_run(self, run, tree, tmp_path):
        args = ("stylize", tree, "-s", "great-wave", "-s", "the-visit", "-o", "out/{style}/{stem}.{ext}", *SIZE)
        code, out, err = run(*args, "--pairs", "random:1", "--dry-run")
        assert code == 0 and len(out.splitlines()) == 4 and "4 results would be written" in err
        assert not (tmp_path / "out").exists()
        assert run(*args)[0] == 0
        assert len(outputs(tmp_path / "out")) == 8

    def test_the_time_of_large_photos_is_that_of_what_the_network_sees(self, tmp_path):
        noise(200, 300).save(tmp_path / "a.png")
        jobs = [Job(tmp_path / "a.png", "great-wave", tmp_path / "b.png")]
        own, reduced = (estimate(jobs, 0, 1.0, work_size=size) for size in (0, 100))
        assert own.megapixels == reduced.megapixels == 0.06 and own.seconds == pytest.approx(0.06)
        assert reduced.seconds == pytest.approx(0.06 * (1 / 4 + ENLARGING))
        assert estimate(jobs, 50, 1.0, work_size=100) == estimate(jobs, 50, 1.0)

    def test_a_folder_of_paintings(self, run, tree, tmp_path):
        (tmp_path / "paintings").mkdir()
        for i in range(2):
            noise(64, 64, seed=20 + i).save(tmp_path / "paintings" / f"p{i}.png")
        assert run("stylize", tree / "a.png", "-s", "paintings", "-o", "out", *SIZE)[0] == 0
        assert outputs(tmp_path / "out") == ["a-p0.png", "a-p1.png"]

    def test_a_file_that_is_not_ours_is_not_replaced(self, run, tree, tmp_path):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "a-great-wave.png").write_text("precious")
        code, _, err = run("stylize", tree, "-s", "great-wave", "-o", "out", *SIZE)
        assert code == 1 and "exists already" in err
        assert (tmp_path / "out" / "a-great-wave.png").read_text() == "precious"
        assert "exists already" in run("stylize", tree, "-s", "great-wave", "-o", "out", *SIZE)[2]  # nor the next time
        assert (tmp_path / "out" / "a-great-wave.png").read_text() == "precious"

    def test_what_is_wrong_is_told_before_the_first_photo(self, run, tree, tmp_path):
        for args, message in (
            (("-s", "grat-wave"), "did you mean 'great-wave'"),
            (("-s", "great-wave", "--pairs", "some"), "--pairs is all, zip, or random:K"),
            (("-s", "great-wave", "--region", "m.png=the-visit"), "are for photos that are named"),
            (("-s", "great-wave", "--format", "xyz"), "unknown format"),
        ):
            code, _, err = run("stylize", tree, *args, "-o", "out", *SIZE)
            assert code == 2 and message in err and not (tmp_path / "out").exists()

    def test_paths_on_standard_input(self, run, tree, tmp_path, monkeypatch):
        monkeypatch.setattr("sys.stdin", io.StringIO(f"{tree / 'a.png'}\n\n{tree / 'deep' / 'b.png'}\n"))
        assert run("stylize", "-", "-s", "great-wave", "-o", "out", *SIZE)[0] == 0
        assert outputs(tmp_path / "out") == ["a-great-wave.png", "b-great-wave.png"]
        monkeypatch.setattr("sys.stdin", io.StringIO(""))
        assert "no path came in" in run("stylize", "-", "-s", "great-wave", "-o", "out", *SIZE)[2]


class TestJournal:
    def test_report(self, run, tree, tmp_path):
        (tree / "text.jpg").write_text("not an image")
        run("stylize", tree, "-s", "great-wave", "-o", "out", *SIZE)
        code, out, _ = run("report", "out")
        assert code == 0 and "4 done in" in out and "1 failed" in out and "text.jpg: not an image" in out
        assert json.loads(run("report", tmp_path / "out" / JOURNAL, "--json")[1])["done"] == 4
        code, _, err = run("report", tmp_path)
        assert code == 1 and "cannot be read" in err
        (tmp_path / "notes.txt").write_text("no journal")
        for name in ("photos/a.png", "notes.txt"):
            code, _, err = run("report", tmp_path / name)
            assert code == 1 and f"{name}: is not the journal of a run" in err and "Traceback" not in err

    def test_a_result_that_a_kill_left_unnoted_is_replaced(self, run, tree, tmp_path):
        args = ("stylize", tree, "-s", "great-wave", "-o", "out", *SIZE)
        run(*args)
        journal = tmp_path / "out" / JOURNAL
        lines = journal.read_text().splitlines()
        journal.write_text("".join(f"{line}\n" for line in lines[:-1]))  # the last is the note of the last result
        last = json.loads(lines[-1])
        assert "seconds" in last and any("started" in ln and last["output"] in ln for ln in lines[:-1])
        assert "1 done, 3 done before, 0 failed" in run(*args)[2]

    def test_a_kill_at_the_very_first_line(self, run, tree, tmp_path):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / JOURNAL).write_bytes(b'\n{"input": "phot')
        assert "0 done in 0.0 s, 0 failed" in run("report", "out")[1]
        assert "4 done, 0 done before, 0 failed" in run("stylize", tree, "-s", "great-wave", "-o", "out", *SIZE)[2]

    def test_two_runs_on_one_output(self, tmp_path):
        with (
            Journal(tmp_path, "s"),
            pytest.raises(OptionError, match="another styleapp is at work"),
            Journal(tmp_path, "s"),
        ):
            pass

    def test_a_line_that_was_cut_off_is_done_again(self, run, tree, tmp_path):
        args = ("stylize", tree, "-s", "great-wave", "-o", "out", *SIZE)
        run(*args)
        journal = tmp_path / "out" / JOURNAL
        journal.write_bytes(journal.read_bytes()[:-30])
        code, _, err = run(*args, "--overwrite")
        assert code == 0 and "4 done" in err
        assert all(json.loads(line) for line in journal.read_text().splitlines() if line.endswith("}"))

    @pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
    @pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
    def test_stopped_and_started_again(self, weights, tmp_path, number):
        (tmp_path / "in").mkdir()
        for i in range(30):
            noise(160, 200, seed=i).save(tmp_path / "in" / f"{i:02}.png")
        env = {**os.environ, "STYLEAPP_WEIGHTS": str(weights)}
        command = [sys.executable, "-m", "styleapp", "stylize", "in", "-s", "great-wave", "-o", "out", *map(str, SIZE)]
        path = f"{Path(__file__).parents[1]}"
        env["PYTHONPATH"] = path
        process = subprocess.Popen(
            command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(3):
            process.stdout.readline()
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
        first = outputs(tmp_path / "out")
        if number == signal.SIGTERM:
            assert process.returncode == 143 and "the same command goes on" in err, err
            assert not any(name.startswith(".styleapp-") for name in first)
        finished = [
            json.loads(line) for line in (tmp_path / "out" / JOURNAL).read_text().splitlines() if line.endswith("}")
        ]
        assert 3 <= len(finished) < 30
        finished = [r for r in finished if "seconds" in r]
        stamps = {r["output"]: (tmp_path / r["output"]).stat().st_mtime_ns for r in finished}
        time.sleep(0.02)
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert outputs(tmp_path / "out") == [f"{i:02}-great-wave.png" for i in range(30)]
        assert all((tmp_path / k).stat().st_mtime_ns == v for k, v in stamps.items())
        for i in range(30):
            Image.open(tmp_path / "out" / f"{i:02}-great-wave.png").load()


class TestMore:
    def test_only_what_failed(self, run, tree, tmp_path):
        (tree / "text.jpg").write_text("not an image")
        args = ("stylize", tree, "-s", "great-wave", "-o", "out", *SIZE)
        run(*args)
        noise(32, 40).save(tree / "text.jpg", "JPEG")
        noise(32, 40, seed=77).save(tree / "a.png")  # changed too, but it had not failed
        code, out, err = run(*args, "--retry-failed")
        assert code == 0 and "1 done, 0 done before, 0 failed" in err and "text-great-wave.jpg" in out
        assert "0 done, 0 done before, 0 failed" in run(*args, "--retry-failed")[2]

    def test_max_failures(self, run, tree):
        for i in range(6):
            (tree / f"0bad{i}.png").write_text("not an image")
        code, _, err = run("stylize", tree, "-s", "great-wave", "-o", "out", "--max-failures", 2, *SIZE)
        assert code == 1 and "left: the same command goes on" in err and "6 failed" not in err

    def test_the_plan_tells_pixels_time_and_disk(self, run, tree, tmp_path):
        (tree / "text.jpg").write_text("not an image")
        args = ("stylize", tree, "-s", "great-wave", "-o", "out", "--dry-run", *SIZE)
        code, out, err = run(*args, "--json")
        found = json.loads(out.splitlines()[-1])
        assert code == 0 and found["results"] == 5 and found["unreadable"] == 1
        assert found["megapixels"] == pytest.approx(4 * 32 * 40 / 1e6) and found["seconds"] > 0
        assert found["disk"] > 4 * 32 * 40 * 0.5 and found["free"] > 0
        twice = json.loads(run(*args, "--json", "--size", 64)[1].splitlines()[-1])
        assert twice["megapixels"] == pytest.approx(4 * found["megapixels"])
        assert "megapixels, about" in err and "GB are free" in err and not (tmp_path / "out").exists()

    @pytest.mark.parametrize(("norm", "by"), [("auto", "cin"), ("cin", "cin"), ("adain", "adain"), ("wct", "adain")])
    def test_the_time_is_that_of_the_network_that_is_asked_for(self, weights, monkeypatch, norm, by):
        asked = []
        picture = StyleTransfer.picture
        monkeypatch.setattr(StyleTransfer, "picture", lambda self, *a: asked.append(a) or picture(self, *a))
        assert speed_of(Settings(Options(norm=norm), "cpu", weights=str(weights))) > 0
        assert [(photo.pixels.dtype, options.norm) for photo, _, options in asked] == 2 * [(torch.uint8, by)]

    def test_an_image_on_standard_input_and_output(self, weights, photo, tmp_path):
        env = {**os.environ, "STYLEAPP_WEIGHTS": str(weights), "PYTHONPATH": f"{Path(__file__).parents[1]}"}
        command = [sys.executable, "-m", "styleapp", "stylize", "-", "--bytes", "-s", "great-wave", *map(str, SIZE)]
        sent = subprocess.run(
            [*command, "-o", "-"], cwd=tmp_path, env=env, input=photo.read_bytes(), capture_output=True, check=True
        )
        received = np.asarray(Image.open(io.BytesIO(sent.stdout)))
        subprocess.run(
            [*command[:4], str(photo), *command[6:], "-o", "file.png"], cwd=tmp_path, env=env, check=True,
            capture_output=True,
        )  # fmt: skip
        assert np.array_equal(received, np.asarray(Image.open(tmp_path / "file.png")))
        bad = subprocess.run([*command, "-o", "-"], cwd=tmp_path, env=env, input=b"text", capture_output=True)
        assert bad.returncode == 1 and b"not an image" in bad.stderr and not bad.stdout
        told = subprocess.run(
            [*command, "-o", "-", "--json"], cwd=tmp_path, env=env, input=b"text", capture_output=True
        )
        assert told.returncode == 1 and not told.stdout  # which is for the picture
        assert "not an image" in json.loads(told.stderr.splitlines()[-1])["error"]

    def test_bytes_and_folders_do_not_go_together(self, run, tree):
        code, _, err = run("stylize", tree, "--bytes", "-s", "great-wave", "-o", "out")
        assert code == 2 and "CONTENT must be -" in err

    def test_contact_sheets(self, run, tree, tmp_path):
        (tree / "text.jpg").write_text("not an image")
        run("stylize", tree, "-s", "great-wave", "-o", "out", *SIZE)
        assert run("report", "out", "--sheet", "sheet.png")[0] == 0
        with Image.open(tmp_path / "sheet.png") as sheet:
            assert sheet.width >= 4 * 160 and np.asarray(sheet).std() > 10
        assert run("report", "out", "--sheet", "sheet.html")[0] == 0
        page = (tmp_path / "sheet.html").read_text()
        assert page.count("<figure>") == 4 and "text.jpg: not an image" in page and "http" not in page
        code, _, err = run("report", "out", "--sheet", "no/sheet.html")
        assert code == 1 and "no: the output folder does not exist" in err
        code, _, err = run("report", "out", "--sheet", "sheet.html")
        assert code == 1 and "exists already" in err

    def test_moving_pictures_keep_their_frames(self, run, tmp_path):
        """As when they are named; where the result cannot hold them, the first frame."""
        (tmp_path / "in").mkdir()
        frames = [noise(40, 40, seed=i) for i in range(3)]
        for name in ("a.gif", "b.png"):
            frames[0].save(tmp_path / "in" / name, save_all=True, append_images=frames[1:], duration=[50, 70, 90])
        frames[0].save(tmp_path / "in" / "still.png")
        assert run("stylize", "in", "-s", "great-wave", "-o", "out", "--batch-size", 2, *SIZE)[0] == 0
        for name in ("a.gif", "b.png"):
            assert run("stylize", f"in/{name}", "-s", "great-wave", "-o", f"alone-{name}", *SIZE)[0] == 0
            made = read_animation(tmp_path / "out" / name.replace(".", "-great-wave."))
            assert list(made.durations) == [50, 70, 90]
            alone = read_animation(tmp_path / f"alone-{name}")
            assert all(torch.equal(a.pixels, b.pixels) for a, b in zip(made.frames, alone.frames, strict=True))
        assert read_animation(tmp_path / "out" / "still-great-wave.png") is None
        assert run("stylize", "in", "-s", "great-wave", "-o", "jpg", "--format", "jpg", *SIZE)[0] == 0
        assert len(outputs(tmp_path / "jpg")) == 3

    def test_a_name_in_no_encoding_is_on_the_sheet(self, tmp_path):
        noise(20, 20).save(tmp_path / "a.png")
        record = {"output": str(tmp_path / "a.png"), "input": os.fsdecode(b"t\xe4xt.png"), "style": "s", "seconds": 1}
        (tmp_path / JOURNAL).write_text(json.dumps(record))
        contact_sheet(tmp_path, tmp_path / "sheet.html")
        assert "t?xt.png, s" in (tmp_path / "sheet.html").read_text(encoding="utf-8")

    def test_a_name_in_no_encoding_is_written_as_it_is(self, weights, tmp_path):
        name = b"t\xe4xt.png"
        try:
            noise(20, 20).save(tmp_path / "a.png")
            (tmp_path / "a.png").rename(tmp_path / os.fsdecode(name))
        except OSError:
            pytest.skip("the file system takes no such names")
        env = {
            **os.environ,
            "STYLEAPP_WEIGHTS": str(weights),
            "PYTHONIOENCODING": "utf-8:strict",
        }
        command = [sys.executable, "-m", "styleapp", "stylize", ".", "-s", "great-wave", "--dry-run"]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, check=False)
        assert done.returncode == 0 and done.stdout.startswith(name), done.stderr

    def test_a_full_disk(self, run, tree, tmp_path, monkeypatch):
        save = Image.Image.save

        def full(self, path, *more, **options):
            if "deep" in str(path):
                raise OSError(28, "No space left on device")
            return save(self, path, *more, **options)

        monkeypatch.setattr(Image.Image, "save", full)
        code, _, err = run("stylize", tree, "-s", "great-wave", "-o", "out", *SIZE)
        assert code == 1 and "2 done" in err and "the disk is full" in err
        assert outputs(tmp_path / "out") == ["a-great-wave.jpg", "a-great-wave.png"]
        monkeypatch.setattr(Image.Image, "save", save)
        assert "2 done, 2 done before" in run("stylize", tree, "-s", "great-wave", "-o", "out", *SIZE)[2]

    def test_a_photo_that_vanishes_during_the_run(self, run, tree, tmp_path, monkeypatch):
        from styleapp.batch import work

        read = work._bytes_of

        def vanishing(job):
            if job.photo.name == "b.png":
                job.photo.unlink()
            return read(job)

        monkeypatch.setattr(work, "_bytes_of", vanishing)
        code, _, err = run("stylize", tree, "-s", "great-wave", "-o", "out", *SIZE)
        assert code == 1 and "3 done, 0 done before, 1 failed" in err and "b.png: cannot be read" in err

    @pytest.mark.skipif(sys.platform == "win32", reason="POSIX names")
    def test_names_of_every_kind(self, run, tmp_path):
        names = ["-o.png", "new\nline.png", "🎨 ü.png", "x" * 250 + ".png", "a b'\".png", "%s{0}.png"]
        (tmp_path / "in").mkdir()
        for i, name in enumerate(names):
            noise(32, 32, seed=i).save(tmp_path / "in" / name)
        code, _, err = run("stylize", "in", "-s", "great-wave", "-o", "out", *SIZE)
        assert code == 0, err
        assert len(outputs(tmp_path / "out")) == len(names)
        assert "0 done, 6 done before" in run("stylize", "in", "-s", "great-wave", "-o", "out", *SIZE)[2]

    @pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root may read everything")
    def test_a_photo_that_may_not_be_read(self, run, tree):
        (tree / "a.png").chmod(0)
        code, _, err = run("stylize", tree, "-s", "great-wave", "-o", "out", *SIZE)
        assert code == 1 and "Permission denied" in err

    def test_batches(self, run, tree, tmp_path):
        args = ("stylize", tree, "-s", "great-wave", *SIZE)
        assert run(*args, "-o", "one", "--batch-size", "auto")[0] == 0
        assert run(*args, "-o", "many", "--batch-size", 4)[0] == 0
        assert outputs(tmp_path / "one") == outputs(tmp_path / "many")
        code, _, err = run(*args, "-o", "bad", "--batch-size", 0)
        assert code == 2 and "batch_size is auto or at least 1" in err

    def test_unknown_engine(self, run, tree):
        code, _, err = run("stylize", tree, "-s", "great-wave", "--engine", "rey")
        assert code == 2 and "did you mean 'ray'" in err

    def test_a_photo_of_too_many_pixels(self, run, tree):
        noise(64, 64).save(tree / "large.png")
        code, _, err = run("stylize", tree, "-s", "great-wave", "-o", "out", "--max-megapixels", 0.002, *SIZE)
        assert code == 1 and "4 done" in err and "large.png: 64x64 is" in err

    def test_an_output_that_cannot_be_written_is_told_first(self, run, tree, tmp_path):
        (tmp_path / "file").write_text("a file, not a folder")
        code, _, err = run("stylize", tree, "-s", "great-wave", "-o", "file/out", *SIZE)
        assert code == 2 and "cannot be written" in err and "done" not in err
