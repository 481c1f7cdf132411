"""Films: times, sound, colours, steadiness, and going on after a kill."""

from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import noise

from styleapp.errors import ImageError, OptionError
from styleapp.images import Picture, from_pil
from styleapp.options import Options
from styleapp.video import Smoother, Stopped, stylize_frames, stylize_video

av = pytest.importorskip("av")
OPTIONS = Options(style_size=64)
NORMS = pytest.mark.parametrize("norm", ["adain", "cin"])


def film(
    path: Path,
    frames: list[np.ndarray],
    times: list[int] | None = None,
    *,
    sound: str = "",
    space: int = 5,
    curve: int = 2,
    pixel: Fraction | None = None,
) -> Path:
    """Frames at multiples of 1/25 s, nearly without loss, and a tone in the codec ``sound``.

    ``space``: 5 for BT.601, 1 for BT.709. ``curve``: number of the transfer characteristics, 2 for none that is said.
    ``pixel``: its width by its height.
    """
    with av.open(str(path), "w") as out:
        out.metadata["title"] = "A walk"
        coder = out.add_stream("libx264", rate=25, options={"crf": "4"})
        coder.height, coder.width = frames[0].shape[:2]
        coder.pix_fmt = "yuv444p" if coder.height % 2 or coder.width % 2 else "yuv420p"
        coder.time_base = Fraction(1, 25)
        coder.codec_context.colorspace, coder.codec_context.color_range = space, 1
        coder.codec_context.color_trc = curve
        if pixel is not None:
            coder.codec_context.sample_aspect_ratio = pixel
        if sound:
            tone = out.add_stream(sound, rate=44100)
            tone.layout = "mono"
        for i, array in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(array, format="rgb24")
            frame = frame.reformat(format=coder.pix_fmt, dst_colorspace=space, src_color_range=2, dst_color_range=1)
            frame.pts = i if times is None else times[i]
            frame.time_base = Fraction(1, 25)
            out.mux(coder.encode(frame))
        out.mux(coder.encode(None))
        if sound:
            wave = np.sin(np.arange(44100) * 0.06).astype(np.float32)[None]
            for start in range(0, 44100, 1024):
                part = np.ascontiguousarray(wave[:, start : start + 1024])
                if sound == "flac":
                    frame = av.AudioFrame.from_ndarray((part * 2**14).astype(np.int16), format="s16", layout="mono")
                else:
                    frame = av.AudioFrame.from_ndarray(part, format="fltp", layout="mono")
                frame.sample_rate, frame.pts = 44100, start
                out.mux(tone.encode(frame))
            out.mux(tone.encode(None))
    return path


def turned(path: Path, quarters: int) -> None:
    """Write into an MP4 file that it is to be turned clockwise by so many right angles."""
    cos, sin = [(1, 0), (0, 1), (-1, 0), (0, -1)][quarters]
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40  # ISO/IEC 14496-12, section 8.3.2: of version 0
    for i, value in enumerate((cos, sin, 0, -sin, cos, 0)):
        data[matrix + 4 * i : matrix + 4 * i + 4] = (value * 2**16).to_bytes(4, "big", signed=True)
    path.write_bytes(data)


def read(path: Path) -> tuple[list[np.ndarray], list[float]]:
    with av.open(str(path)) as opened:
        frames = list(opened.decode(video=0))
        return [f.to_ndarray(format="rgb24").astype(int) for f in frames], [float(f.time) for f in frames]


def pan(count: int, step: int = 2) -> list[np.ndarray]:
    wide = np.asarray(noise(64, 64 + step * count, seed=3))
    return [np.ascontiguousarray(wide[:, step * i : step * i + 64]) for i in range(count)]


def pictures(frames: list[np.ndarray]) -> list[tuple[float, Picture]]:
    return [(i / 25, Picture(torch.from_numpy(f.copy()).permute(2, 0, 1)[None])) for i, f in enumerate(frames)]


def test_times_size_and_sound_are_kept(transfer, tmp_path):
    times = [0, 1, 2, 5, 6, 9, 14, 15]
    source = film(tmp_path / "a.mp4", pan(8), times, sound="aac")
    made = stylize_video(transfer, source, tmp_path / "b.mp4", "great-wave", OPTIONS)
    frames, found = read(tmp_path / "b.mp4")
    assert made.frames == 8 and made.size == (64, 64) and frames[0].shape == (64, 64, 3)
    assert found == pytest.approx([t / 25 for t in times])
    with av.open(str(source)) as a, av.open(str(tmp_path / "b.mp4")) as b:
        packets = [[(bytes(p), p.pts) for p in f.demux(audio=0) if p.dts is not None] for f in (a, b)]
    assert packets[0] == packets[1] and len(packets[0]) > 40
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mp4", "b.mp4"]


def test_a_sound_that_the_format_cannot_hold_is_told_before_any_work(transfer, tmp_path, monkeypatch):
    source = film(tmp_path / "a.mkv", pan(3), sound="flac")
    monkeypatch.setattr("styleapp.video.stylize_frames", lambda *_: pytest.fail("work was done"))
    message = r"b\.mov: \.mov cannot hold the sound of .*a\.mkv \(flac\); \.mp4, \.mkv can"
    with pytest.raises(ImageError, match=message):
        stylize_video(transfer, source, tmp_path / "b.mov", "great-wave", OPTIONS)
    assert [p.name for p in tmp_path.iterdir()] == ["a.mkv"]


@NORMS
def test_frames_are_the_engines(transfer, tmp_path, norm):
    source = film(tmp_path / "a.mp4", pan(3))
    stylize_video(
        transfer, source, tmp_path / "b.mkv", "great-wave", replace(OPTIONS, norm=norm), smooth=0, quality=100
    )
    decoded, _ = read(source)
    found, _ = read(tmp_path / "b.mkv")
    for a, b in zip(decoded, found, strict=True):
        wanted = transfer.picture(from_pil(_image(a)), "great-wave", replace(OPTIONS, norm=norm))
        blocks = [x.reshape(32, 2, 32, 2, 3).mean((1, 3)) for x in (b, wanted.rgb[0].permute(1, 2, 0).numpy() * 255)]
        assert np.abs(blocks[0] - blocks[1]).mean() < 6  # 4:2:0 has one colour for four pixels


def _image(array: np.ndarray):
    from PIL import Image

    return Image.fromarray(array.astype(np.uint8))


@pytest.mark.parametrize("space", [5, 1])
def test_colours_are_right(transfer, tmp_path, space):
    """At strength 0 the film comes back, in the colour space that it was in."""
    flat = [np.full((64, 64, 3), colour, np.uint8) for colour in ((200, 40, 30), (30, 180, 60), (20, 60, 210))]
    source = film(tmp_path / "a.mp4", flat, space=space)
    for a, b in zip(flat, read(source)[0], strict=True):
        assert np.abs(a - b).max() <= 4  # the film of this test is what it says
    stylize_video(transfer, source, tmp_path / "b.mp4", "great-wave", Options(style_size=64, alpha=0.0))
    for a, b in zip(read(source)[0], read(tmp_path / "b.mp4")[0], strict=True):
        assert np.abs(a - b).max() <= 4


@pytest.mark.parametrize(
    ("space", "curve", "wanted"), [(5, 2, (5, 6)), (1, 2, (1, 1)), (9, 2, (9, 14)), (9, 18, (9, 18)), (9, 16, (9, 16))]
)
def test_what_a_film_says_of_its_colours_is_kept(transfer, tmp_path, space, curve, wanted):
    """Numbers of ITU-T H.273: 18 and 16 are the curves of high dynamic range; 9 would be a logarithm."""
    source = film(tmp_path / "a.mp4", pan(2), space=space, curve=curve)
    stylize_video(transfer, source, tmp_path / "b.mp4", "great-wave", OPTIONS)
    with av.open(str(tmp_path / "b.mp4")) as made:
        stream = made.streams.video[0].codec_context
        assert (stream.color_primaries, stream.color_trc, stream.colorspace) == (*wanted, space)
        assert made.metadata["title"] == "A walk"


def test_frames_out_of_order_in_avi_become_a_film_in_order(transfer, tmp_path):
    """AVI has no times of display: the decoder gives frames that are coded out of order those of other frames."""
    frames = pan(20)
    source = film(tmp_path / "a.avi", frames)
    with av.open(str(source)) as opened:
        stamps = [frame.pts for frame in opened.decode(video=0)]
    assert stamps != sorted(stamps)
    stylize_video(transfer, source, tmp_path / "b.mp4", "great-wave", replace(OPTIONS, alpha=0.0))
    found, times = read(tmp_path / "b.mp4")
    assert times == sorted(times) and len(set(times)) == 20
    assert times[-1] - times[0] == pytest.approx(19 / 25, abs=0.13)
    assert all(np.abs(a - b).mean() < 12 for a, b in zip(read(source)[0], found, strict=True))


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_a_film_taken_with_the_phone_on_its_side_is_upright(transfer, tmp_path, quarters):
    """Its frames lie, its file says how to turn them: the result needs no turning, its pixels are turned too."""
    lying = np.zeros((48, 64, 3), np.uint8)
    lying[:16, :32], lying[-16:, -32:] = (220, 30, 30), (30, 60, 220)
    source = film(tmp_path / "a.mp4", [lying] * 2, pixel=Fraction(4, 3))
    turned(source, quarters)
    stylize_video(transfer, source, tmp_path / "b.mp4", "great-wave", Options(style_size=64, alpha=0.0))
    upright = np.rot90(lying, -quarters)  # clockwise, as the matrix has it
    found = read(tmp_path / "b.mp4")[0][0]
    assert found.shape == upright.shape and np.abs(found - upright).mean() < 4
    with av.open(str(tmp_path / "b.mp4")) as made:
        stream = made.streams.video[0]
        assert stream.sample_aspect_ratio == (Fraction(3, 4) if quarters % 2 else Fraction(4, 3))
        assert next(made.decode(stream)).rotation == 0


def test_odd_sizes_stay(transfer, tmp_path):
    odd = [np.asarray(noise(45, 51, seed=i)) for i in range(2)]
    stylize_video(transfer, film(tmp_path / "a.mp4", odd), tmp_path / "b.mp4", "great-wave", OPTIONS)
    assert read(tmp_path / "b.mp4")[0][0].shape == (45, 51, 3)


@NORMS
def test_a_film_that_stands_still_stands_still(transfer, norm):
    still = [np.asarray(noise(64, 64, seed=1))] * 5
    for seconds in (0.0, 0.5):
        done = list(
            stylize_frames(transfer, pictures(still), "great-wave", replace(OPTIONS, norm=norm), Smoother(seconds))
        )
        assert all(torch.equal(d.pixels, done[0].pixels) for d in done)


def test_a_slow_pan_flickers_less_than_with_each_frames_own_moments(transfer):
    """The same places of the scene, found again 8 pixels (one feature) further, change less."""
    wide = np.asarray(noise(40, 120, seed=3).resize((420, 160)))
    frames = [np.ascontiguousarray(wide[:, 8 * i : 8 * i + 256]) for i in range(16)]

    def flicker(seconds: float) -> float:
        done = [d.rgb for d in stylize_frames(transfer, pictures(frames), "great-wave", OPTIONS, Smoother(seconds))]
        inner = slice(56, 104), slice(80, 160)  # as far from the borders as the networks see
        moved = [(b[..., inner[0], inner[1]] - a[..., inner[0], 88:168]).abs().mean() for a, b in pairwise(done)]
        return float(torch.stack(moved).mean())

    assert flicker(0.5) < 0.7 * flicker(0.0)


@NORMS
@pytest.mark.parametrize("alpha", [1.0, 0.6])
def test_batches_are_as_single_frames(transfer, norm, alpha):
    frames, options = pictures(pan(7)), Options(style_size=64, alpha=alpha, norm=norm)
    one, many = (
        list(stylize_frames(transfer, frames, "great-wave", options, Smoother(0.5), batch_size=n)) for n in (1, 3)
    )
    assert len(one) == len(many) == 7
    assert max(float((a.rgb - b.rgb).abs().max()) for a, b in zip(one, many, strict=True)) <= 1.01 / 255


@NORMS
def test_a_cut_resets_the_moments(transfer, norm):
    a, b = (np.asarray(noise(64, 64, seed=s)) for s in (1, 2))
    b = 255 - a // 2
    alone = list(stylize_frames(transfer, pictures([b]), "great-wave", replace(OPTIONS, norm=norm), Smoother(0.5)))
    after = list(
        stylize_frames(transfer, pictures([a, a, b]), "great-wave", replace(OPTIONS, norm=norm), Smoother(0.5))
    )
    assert torch.equal(after[2].pixels, alone[0].pixels)


@NORMS
def test_goes_on_after_a_stop(transfer, tmp_path, norm):
    source = film(tmp_path / "a.mp4", pan(20), sound="aac")
    whole = stylize_video(
        transfer, source, tmp_path / "whole.mkv", "great-wave", replace(OPTIONS, norm=norm), segment_seconds=0.2
    )
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return asked == 13

    with pytest.raises(Stopped):
        stylize_video(
            transfer,
            source,
            tmp_path / "b.mkv",
            "great-wave",
            replace(OPTIONS, norm=norm),
            segment_seconds=0.2,
            stop=stop,
        )
    assert not (tmp_path / "b.mkv").exists()
    made = stylize_video(
        transfer, source, tmp_path / "b.mkv", "great-wave", replace(OPTIONS, norm=norm), segment_seconds=0.2
    )
    assert (made.frames, made.before, whole.before) == (20, 10, 0)
    a, b = read(tmp_path / "whole.mkv"), read(tmp_path / "b.mkv")
    assert a[1] == b[1] and all(np.array_equal(x, y) for x, y in zip(a[0], b[0], strict=True))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mp4", "b.mkv", "whole.mkv"]


def test_other_settings_begin_anew(transfer, tmp_path):
    source = film(tmp_path / "a.mp4", pan(10))
    with pytest.raises(Stopped):
        stylize_video(
            transfer, source, tmp_path / "b.mp4", "great-wave", OPTIONS, segment_seconds=0.2,
            stop=iter([False] * 6 + [True]).__next__,
        )  # fmt: skip
    made = stylize_video(transfer, source, tmp_path / "b.mp4", "the-visit", OPTIONS, segment_seconds=0.2)
    assert made.before == 0


def test_what_is_wrong_is_told(transfer, tmp_path):
    (tmp_path / "text.mp4").write_text("no film")
    source = film(tmp_path / "a.mp4", pan(2))
    with pytest.raises(ImageError, match="text.mp4: cannot be made into a film"):
        stylize_video(transfer, tmp_path / "text.mp4", tmp_path / "b.mp4", "great-wave", OPTIONS)
    with pytest.raises(OptionError, match=r"written as \.mp4"):
        stylize_video(transfer, source, tmp_path / "b.avi", "great-wave", OPTIONS)
    with pytest.raises(OptionError, match="a film takes the norms"):
        stylize_video(transfer, source, tmp_path / "b.mp4", "great-wave", Options(norm="wct"))
    with pytest.raises(OptionError, match="norm adain has no detail to set"):
        stylize_video(transfer, source, tmp_path / "c.mp4", "great-wave", Options(norm="adain", detail=0.5))
    with pytest.raises(ImageError, match="exists already"):
        stylize_video(transfer, source, source, "great-wave", OPTIONS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "text.mp4"]


def test_on_the_command_line(run, tmp_path):
    film(tmp_path / "clip.mov", pan(5), sound="aac")
    code, out, err = run("stylize", "clip.mov", "-s", "great-wave", "--style-size", 64)
    assert code == 0 and "clip-great-wave.mov  64x64" in out and "5 frames" in err
    assert len(read(tmp_path / "clip-great-wave.mov")[0]) == 5
    code, _, err = run("stylize", "clip.mov", "-s", "great-wave", "--style-size", 64)
    assert code == 1 and "exists already" in err
    code, _, err = run("stylize", "clip.mov", "--region", "m.png=great-wave")
    assert code == 2 and "not for films" in err
    code, _, err = run("stylize", "gone.mp4", "-s", "great-wave", "--style-size", 64)
    assert code == 1 and "gone.mp4: no such file" in err
