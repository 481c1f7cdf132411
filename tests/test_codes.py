import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import noise

from styleapp import codes
from styleapp.codes import CodeCache, CodeKey, codes_folder, digest_of
from styleapp.images import from_pil
from styleapp.models import StyleCode
from styleapp.pipeline import StyleTransfer
from styleapp.styles import Styles

KEY = CodeKey("painting", 512, "network", 3, "cpu fp32")
CODE = StyleCode(torch.rand(1, 8, 1, 1), torch.rand(1, 8, 1, 1))


def find() -> StyleCode:
    return CODE


def never() -> StyleCode:
    raise AssertionError("it is known")


def equal(a: StyleCode, b: StyleCode) -> bool:
    return torch.equal(a.gamma, b.gamma) and torch.equal(a.beta, b.beta)


def test_found_once_in_a_process_and_once_for_all(tmp_path):
    first = CodeCache(tmp_path / "codes")
    assert KEY not in first and equal(first.code(KEY, find), CODE) and KEY in first
    assert equal(first.code(KEY, never), CODE)
    assert equal(CodeCache(tmp_path / "codes").code(KEY, never), CODE)
    with pytest.raises(AssertionError, match="it is known"):
        CodeCache().code(KEY, never)  # without a folder nothing outlives it


@pytest.mark.parametrize(
    "change", [{"painting": "x"}, {"style_size": 256}, {"network": "x"}, {"refine": 4}, {"arithmetic": "cuda bf16"}]
)
def test_all_that_a_code_depends_on_is_in_its_key(tmp_path, change):
    cache = CodeCache(tmp_path)
    cache.code(KEY, find)
    with pytest.raises(AssertionError, match="it is known"):
        cache.code(replace(KEY, **change), never)


def test_what_cannot_be_found_leaves_no_trace(tmp_path):
    cache = CodeCache(tmp_path)
    with pytest.raises(AssertionError):
        cache.code(KEY, never)
    assert KEY not in cache and not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"no code", None])
def test_a_damaged_file_is_found_anew(tmp_path, content):
    CodeCache(tmp_path).code(KEY, find)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-9] if content is None else content)
    assert equal(CodeCache(tmp_path).code(KEY, find), CODE)
    assert equal(CodeCache(tmp_path).code(KEY, never), CODE)


def test_a_folder_that_cannot_be_written_is_gone_without(tmp_path):
    (tmp_path / "file").write_text("")
    assert equal(CodeCache(tmp_path / "file" / "codes").code(KEY, find), CODE)


def test_those_used_longest_ago_go_first(tmp_path, monkeypatch):
    monkeypatch.setattr(codes, "FILED", 3)
    monkeypatch.setattr(codes, "KEPT", 2)
    cache = CodeCache(tmp_path)
    keys = [replace(KEY, refine=i) for i in range(4)]
    for i, key in enumerate(keys[:3]):
        cache.code(key, find)
        os.utime(tmp_path / key.filename, (i, i))
    CodeCache(tmp_path).code(keys[0], never)  # used again
    cache.code(keys[3], find)
    assert {file.name for file in tmp_path.iterdir()} == {keys[i].filename for i in (0, 2, 3)}
    assert [key in cache for key in keys] == [False, False, True, True]


def test_a_picture_is_known_by_its_content():
    picture = from_pil(noise(20, 30))
    pixels = picture.pixels
    digest = digest_of(pixels, picture.weight)
    assert digest == digest_of(from_pil(noise(20, 30)).pixels)
    other = pixels.clone()
    other[..., 3, 4] ^= 1
    assert digest not in (digest_of(other), digest_of(pixels.reshape(1, 3, 30, 20)), digest_of(pixels, pixels))


def test_where_they_are(monkeypatch, tmp_path):
    assert codes_folder() == Path(os.environ["STYLEAPP_CODES"])
    monkeypatch.delenv("STYLEAPP_CODES")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert codes_folder() == tmp_path / "styleapp" / "codes"


class TestByTheCommand:
    """With the shipped layout: the second run of ``stylize`` measures no painting."""

    @pytest.fixture
    def given(self, tmp_path: Path) -> list[object]:
        noise(40, 48, seed=1).save(tmp_path / "photo.png")
        noise(50, 60, seed=2).save(tmp_path / "painting.png")
        return ["stylize", tmp_path / "photo.png", "--style", tmp_path / "painting.png", "--size", 32, "--overwrite"]

    @pytest.mark.parametrize("norm", ["auto", "adain"])
    def test_the_second_run_gives_the_same_and_measures_nothing(self, run, given, tmp_path, monkeypatch, norm):
        arguments = [*given, "--norm", norm, "--json", "-o"]
        assert run(*arguments, "a.png")[0] == 0
        assert len(list((tmp_path / "codes").iterdir())) == 1

        def measure(*_: object) -> StyleCode:
            raise AssertionError("it is known")

        monkeypatch.setattr(Styles, "measure", measure)
        code, out, _ = run(*arguments, "b.png")
        assert code == 0 and json.loads(out)["output"] == "b.png"
        assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()

    def test_not_where_it_is_not_wanted(self, run, given, tmp_path):
        assert run(*given, "--no-code-cache", "-o", "a.png")[0] == 0
        assert not (tmp_path / "codes").exists()

    def test_a_folder_of_photos_keeps_them_too(self, run, given, tmp_path):
        (tmp_path / "photos").mkdir()
        (tmp_path / "photo.png").rename(tmp_path / "photos" / "photo.png")
        arguments = ["stylize", tmp_path / "photos", *given[2:], "-o"]
        for name in ("a", "b"):
            assert run(*arguments, tmp_path / name)[0] == 0
        assert len(list((tmp_path / "codes").iterdir())) == 1
        a, b = (next((tmp_path / name).rglob("*.png")).read_bytes() for name in ("a", "b"))
        assert a == b

    def test_python_keeps_nothing_unless_told_where(self, weights, given, tmp_path):
        photo, painting = given[1], given[3]
        plain = StyleTransfer("cpu", "fp32", weights=weights).stylize(photo, painting, size=32)
        kept = [
            StyleTransfer("cpu", "fp32", weights=weights, code_cache=tmp_path / "mine").stylize(
                photo, painting, size=32
            )
            for _ in range(2)
        ]
        assert all(np.array_equal(plain, picture) for picture in kept)
        assert len(list((tmp_path / "mine").iterdir())) == 1


def test_a_file_that_cannot_be_touched_is_read_all_the_same(tmp_path, monkeypatch):
    CodeCache(tmp_path).code(KEY, find)

    def utime(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "utime", utime)
    assert equal(CodeCache(tmp_path).code(KEY, never), CODE)
