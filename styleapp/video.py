"""Films: frame by frame through the engine, with moments that are smoothed over time so that nothing pumps.

A film is done in segments of some seconds, each written whole or not at all beside the target; a run that was stopped
goes on after the last one. At the end they are joined, without coding again, with the sound of the original.
"""

from __future__ import annotations

import hashlib
import heapq
import io
import itertools
import json
import math
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from styleapp.controls import parse_norm
from styleapp.errors import ImageError, OptionError, StyleError
from styleapp.files import atomic_path, check_output
from styleapp.images import Picture, quantized, to_pil
from styleapp.models import StyleCode
from styleapp.norms import Moments
from styleapp.options import Options
from styleapp.pipeline import Style, StyleTransfer
from styleapp.weights import sha256

if TYPE_CHECKING:
    import av

__all__ = ["OUTPUTS", "Film", "Smoother", "Stopped", "stylize_frames", "stylize_video"]

OUTPUTS = (".mp4", ".mov", ".mkv")
CUT = 0.12
"""Mean difference of two frames, in [0,1] at 16 x 16 pixels, above which they are taken to be of two scenes, if it is
also several times the difference before: a fast pan differs as much, but steadily."""


class Stopped(StyleError):  # noqa: N818 - it is no error
    """The run was asked to stop; what is done is kept."""


@dataclass(frozen=True)
class Film:
    """What was made.

    Attributes:
        frames: in the film.
        before: of them, how many an earlier run had made.
        size: (height, width).
    """

    frames: int
    before: int
    size: tuple[int, int]


class Smoother:
    """Moments that follow those of the frames with a delay: s ← s + (m - s) · (1 - exp(-Δt / τ)).

    At a cut they are those of the new frame at once.

    Args:
        seconds: τ; 0 for each frame's own moments.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.state: dict[str, Tensor] = {}

    def share(self, rgb: Tensor, time: float) -> float:
        """How much of its own moments the next frame has: 1 - exp(-Δt / τ), and 1 at a cut.

        Args:
            rgb: (1, 3, H, W) in [0,1], to see cuts.
            time: in seconds.
        """
        state, small = self.state, F.adaptive_avg_pool2d(rgb, 16)
        first = "small" not in state
        change = 0.0 if first else float((small - state["small"]).abs().mean())
        cut = first or (change > CUT and change > 3 * float(state["change"]))
        passed = 0.0 if first else max(0.0, time - float(state["time"]))
        state |= {"small": small, "time": torch.tensor([time], dtype=torch.float64), "change": torch.tensor([change])}
        return 1.0 if cut or self.seconds <= 0 else 1 - math.exp(-passed / self.seconds)

    def __call__(self, name: str, found: Moments, share: float) -> Moments:
        """The moments to be used at the norm ``name`` for a frame with that :meth:`share`.

        Args:
            found: its own.
        """
        steady = {"mean": found.mean, "var": found.var}
        for part, new in steady.items():
            key = f"{part} {name}"
            if share < 1 and key in self.state:
                steady[part] = self.state[key].to(new.device) + (new - self.state[key].to(new.device)) * share
            self.state[key] = steady[part]
        return Moments(found.count, **steady)


def stylize_frames(
    transfer: StyleTransfer,
    frames: Iterable[tuple[float, Picture]],
    style: Style,
    options: Options,
    smoother: Smoother,
    batch_size: int = 0,
) -> Iterator[Picture]:
    """Frames, with their times in seconds, in a style, in order; a few at a time, so that memory does not grow.

    Args:
        batch_size: frames that go through the network at once; 0 for what suits the device.

    Raises:
        OptionError: for what an animation does not take, see :meth:`StyleTransfer.animate`.
    """
    options = check_options(transfer, style, options)
    code = transfer.styles.code(style, options.style_size, options.norm, options.refine).to(transfer.device)
    count = batch_size or (8 if transfer.device.type == "cuda" else 1)
    source = iter(frames)
    while some := list(itertools.islice(source, count)):
        photos = [transfer.fit(frame, options) for _, frame in some]
        shares = [smoother.share(photo.rgb, time) for photo, (time, _) in zip(photos, some, strict=True)]
        if len(photos) > 1 and transfer.fits_at_once(photos, options):
            yield from _at_once(transfer, photos, shares, code, options, smoother)
            continue
        for photo, share in zip(photos, shares, strict=True):
            content = transfer.measure_content(photo, options)
            steady = partial(smoother, share=share)
            besides = {name: steady(name, found) for name, found in content.besides.items()}
            content = replace(content, moments=steady("", content.moments), besides=besides)
            yield transfer.picture(photo, code, options, content=content, steady=[steady])


@torch.inference_mode()
def _at_once(
    transfer: StyleTransfer,
    photos: list[Picture],
    shares: list[float],
    code: StyleCode,
    options: Options,
    smoother: Smoother,
) -> list[Picture]:
    """Frames of one size, each normalised with its smoothed moments."""
    network = transfer.networks.of(options.norm, detail=options.detail)
    first = next(iter(network.norms))

    def steady(name: str, x: Tensor) -> Moments:
        found = network.moments_of(name, x)
        own = [Moments(found.count, *both) for both in zip(found.mean.split(1), found.var.split(1), strict=True)]
        used = [smoother("" if name == first else name, m, share) for m, share in zip(own, shares, strict=True)]
        return Moments(found.count, torch.cat([m.mean for m in used]), torch.cat([m.var for m in used]))

    image = torch.cat([photo.rgb for photo in photos]).to(transfer.device, memory_format=torch.channels_last)
    result = network(image, code, options.alpha, steady)
    pixels = quantized(result, photos[0].pixels.dtype).cpu()
    return [replace(photo, pixels=p) for photo, p in zip(photos, pixels.split(1), strict=True)]


def check_options(transfer: StyleTransfer, style: Style, options: Options) -> Options:
    """Refuse what looks at one picture alone; "auto" becomes the norm that suits the style.

    Raises:
        OptionError: for norms that match more than moments, and for colours that are matched to each frame.
    """
    options = transfer.styles.settled(options, [style])
    matching = parse_norm(options.norm, transfer.networks.adain.encoder.num_channels)
    if matching.kind != "moments" or options.norm == "in" or options.color not in ("none", "luma"):
        raise OptionError("a film takes the norms cin, adain, adaln, adabn and adagn, and the colors none and luma")
    transfer.networks.of(options.norm, detail=options.detail)  # tells at once what it does not take
    return options


def stylize_video(
    transfer: StyleTransfer,
    source: Path,
    target: Path,
    style: Style,
    options: Options,
    *,
    smooth: float = 0.5,
    quality: int = 95,
    segment_seconds: float = 5.0,
    overwrite: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
    stop: Callable[[], Any] = lambda: False,
) -> Film:
    """A film in a style: frame times, sound, rotation and colour space are kept. Given again, it goes on.

    Args:
        target: .mp4, .mov or .mkv.
        smooth: seconds over which moments are smoothed.
        quality: 1 to 100; 95 is hardly to be told from the uncoded pictures.
        segment_seconds: what a kill loses at most.
        progress: called with frames done and in all (0 where the file does not say).
        stop: asked after each frame.

    Raises:
        ImageError: for a film that cannot be read or written.
        OptionError: if PyAV is not installed, or for options that a film does not take.
        Stopped: if ``stop`` said so.
    """
    try:
        import av
    except ImportError:
        raise OptionError("films need PyAV; pip install 'styleapp[video]'") from None
    if target.suffix.lower() not in OUTPUTS:
        raise OptionError(f"{target}: a film is written as {', '.join(OUTPUTS)}")
    if target.is_dir() or (target.exists() and not overwrite):
        raise ImageError(f"{target}: exists already; --overwrite replaces it")
    check_output(target.with_suffix(".png").with_name(f"{target.name}.png"), overwrite=True)  # the folder
    if not source.is_file():
        raise ImageError(f"{source}: no such file")
    options = check_options(transfer, style, options)
    work = target.with_name(f".styleapp-{target.name}")
    try:
        return _in_segments(
            av, transfer, source, target, style, options, smooth, quality, segment_seconds, work, progress, stop
        )
    except av.error.FFmpegError as error:
        raise ImageError(f"{source}: cannot be made into a film ({error.strerror or error})") from None
    except OSError as error:
        raise ImageError(f"{target}: cannot be written ({error.strerror or error})") from None
    finally:
        if not any(work.glob("*.nut")):  # nothing that a next time could go on from
            shutil.rmtree(work, ignore_errors=True)


def _in_segments(
    av: Any,
    transfer: StyleTransfer,
    source: Path,
    target: Path,
    style: Style,
    options: Options,
    smooth: float,
    quality: int,
    segment_seconds: float,
    work: Path,
    progress: Callable[[int, int], None],
    stop: Callable[[], Any],
) -> Film:
    code = transfer.styles.code(style, options.style_size, options.norm, options.refine)
    numbers = torch.cat([code.gamma, code.beta]).float().cpu().numpy().tobytes()
    settings = [asdict(options), smooth, quality, segment_seconds, transfer.precision]
    key = json.dumps([sha256(source), *settings, transfer.networks.checksum_of(options.norm)])
    _keep_if(work, hashlib.sha256(key.encode() + numbers).hexdigest())
    segments: list[Path] = []
    smoother = Smoother(smooth)
    count, before, size = 0, 0, (0, 0)
    with av.open(str(source)) as film:
        if not film.streams.video:
            raise ImageError(f"{source}: has no pictures in it")
        _check_sound(av, film, source, target)
        stream = film.streams.video[0]
        stream.thread_type = "AUTO"
        total = stream.frames
        shown = _in_time(film.decode(stream), stream)
        for _, frames in itertools.groupby(shown, lambda f: int(float(f.time or 0) // segment_seconds)):
            path = work / f"{len(segments):06}.nut"
            if path.exists():
                some = sum(1 for _ in frames)
                before += some
                smoother.state = load_file(path.with_suffix(".safetensors"))
            else:
                some = _write_segment(av, path, transfer, frames, stream, style, options, smoother, quality, stop, work)
            count += some
            segments.append(path)
            progress(count, total)
        if not segments:
            raise ImageError(f"{source}: has no pictures in it")
        with av.open(str(segments[0])) as first:
            size = first.streams.video[0].height, first.streams.video[0].width
        with atomic_path(target) as temporary:
            _join(av, segments, source, temporary)
    shutil.rmtree(work)
    return Film(count, before, size)


def _in_time(frames: Iterable[av.VideoFrame], stream: Any) -> Iterator[av.VideoFrame]:
    """The frames, each with a time after that of the one before.

    AVI has no times of display, so what is coded out of order comes with those of other frames: a few frames late then.
    """
    rate, last = stream.average_rate, None
    step = max(1, round(1 / (rate * stream.time_base))) if rate else 1
    for frame in frames:
        if frame.pts is None or (last is not None and frame.pts <= last):
            frame.pts = 0 if last is None else last + step
        last = frame.pts
        yield frame


def _check_sound(av: Any, film: Any, source: Path, target: Path) -> None:
    """Refuse a sound that the target's format cannot hold, before hours of work are done.

    Raises:
        ImageError: with the formats that can.
    """

    def holds(suffix: str) -> bool:
        try:
            with av.open(io.BytesIO(), "w", format=_FORMATS[suffix]) as trial:
                for stream in film.streams.audio:
                    trial.add_stream_from_template(stream)
                trial.start_encoding()
        except av.error.FFmpegError:
            return False
        return True

    if film.streams.audio and not holds(target.suffix.lower()):
        codecs = ", ".join(dict.fromkeys(stream.codec_context.name for stream in film.streams.audio))
        others = ", ".join(suffix for suffix in OUTPUTS if holds(suffix)) or "none of the formats that are written"
        raise ImageError(f"{target}: {target.suffix} cannot hold the sound of {source} ({codecs}); {others} can")


def _keep_if(work: Path, key: str) -> None:
    """Begin anew unless the segments that are there were made of the same film with the same settings."""
    note = work / "made-of"
    if not note.exists() or note.read_text() != key:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        note.write_text(key)


def _write_segment(
    av: Any,
    path: Path,
    transfer: StyleTransfer,
    frames: Iterator[av.VideoFrame],
    stream: Any,
    style: Style,
    options: Options,
    smoother: Smoother,
    quality: int,
    stop: Callable[[], Any],
    work: Path,
) -> int:
    """One segment in NUT, which keeps every time base; how many frames it has."""
    temporary = work / "unfinished"
    first = next(frames)
    space, stamps, count = _space(first), deque[int](), 0

    def pictures() -> Iterator[tuple[float, Picture]]:
        for frame in itertools.chain([first], frames):
            stamps.append(frame.pts)
            yield float(frame.time or 0), _picture(frame, space)

    with av.open(str(temporary), "w", format="nut") as out:
        coder = None
        for picture in stylize_frames(transfer, pictures(), style, options, smoother):
            if coder is None:
                coder = _coder(av, out, stream, picture.size, _pixel(first, stream), space, quality)
            coded = av.VideoFrame.from_ndarray(np.asarray(to_pil(picture).convert("RGB")), format="rgb24")
            coded = coded.reformat(
                format=coder.pix_fmt, dst_colorspace=space[0], src_color_range=2, dst_color_range=1
            )  # full range to that of television
            coded.pts, coded.time_base = stamps.popleft(), stream.time_base
            out.mux(coder.encode(coded))
            count += 1
            if stop():
                raise Stopped("stopped; the same command goes on")
        assert coder is not None
        out.mux(coder.encode(None))
    with atomic_path(path.with_suffix(".safetensors")) as state:
        save_file({k: v.cpu().contiguous() for k, v in smoother.state.items()}, state)
    temporary.replace(path)
    return count


def _space(frame: av.VideoFrame) -> tuple[int, int]:
    """(swscale's, the standard's) number of the colour matrix; where the file does not say, by the height."""
    if frame.colorspace in (1, 5, 6, 9):
        return {1: (1, 1), 5: (5, 5), 6: (5, 6), 9: (9, 9)}[frame.colorspace]
    return (1, 1) if frame.height >= 720 else (5, 6)


def _picture(frame: av.VideoFrame, space: tuple[int, int]) -> Picture:
    """RGB, upright."""
    rgb = frame.reformat(format="rgb24", src_colorspace=space[0], dst_color_range=2).to_ndarray()
    upright = np.ascontiguousarray(np.rot90(rgb, round(frame.rotation / 90)))
    return Picture(torch.from_numpy(upright).permute(2, 0, 1)[None])


def _pixel(frame: av.VideoFrame, stream: Any) -> Fraction | None:
    """The width of a pixel by its height, upright."""
    lying = stream.sample_aspect_ratio
    return 1 / lying if lying and round(frame.rotation / 90) % 2 else lying


def _coder(
    av: Any,
    out: Any,
    stream: Any,
    size: tuple[int, int],
    pixel: Fraction | None,
    space: tuple[int, int],
    quality: int,
) -> Any:
    """H.264, 4:2:0 where the size allows it."""
    crf = 18 + (95 - quality) * 0.4
    asked = {"crf": f"{crf:.1f}", "bf": "0"}  # without B-frames no segment begins before its first picture
    coder = out.add_stream("libx264", rate=stream.average_rate or Fraction(25), options=asked)
    coder.height, coder.width = size
    coder.pix_fmt = "yuv420p" if size[0] % 2 == 0 and size[1] % 2 == 0 else "yuv444p"
    coder.time_base = coder.codec_context.time_base = stream.time_base
    coder.codec_context.flags |= av.codec.context.Flags.global_header
    theirs, ours = stream.codec_context, coder.codec_context
    ours.color_range, ours.colorspace = 1, space[1]
    primaries, curve = _PRIMARIES_AND_CURVE[space[1]]
    ours.color_primaries = primaries if theirs.color_primaries in _UNSAID else theirs.color_primaries
    ours.color_trc = curve if theirs.color_trc in _UNSAID else theirs.color_trc
    if pixel:
        coder.codec_context.sample_aspect_ratio = pixel
    return coder


def _join(av: Any, segments: list[Path], source: Path, target: Path) -> None:
    """The segments one after another and the sound of the original, as they are coded, and what it says of itself."""
    with av.open(str(target), "w", format=_FORMATS[target.suffix.lower()]) as out, av.open(str(source)) as original:
        out.metadata.update(original.metadata)
        with av.open(str(segments[0])) as first:
            video = out.add_stream_from_template(first.streams.video[0])
        sounds = {s.index: out.add_stream_from_template(s) for s in original.streams.audio}

        def pictures() -> Iterator[Any]:
            for path in segments:
                with av.open(str(path)) as segment:
                    for packet in segment.demux(video=0):
                        if packet.dts is not None:
                            packet.stream = video
                            yield packet

        def sound() -> Iterator[Any]:
            if sounds:
                for packet in original.demux(list(original.streams.audio)):
                    if packet.dts is not None:
                        packet.stream = sounds[packet.stream.index]
                        yield packet

        for packet in heapq.merge(pictures(), sound(), key=lambda p: float(p.dts * p.time_base)):
            out.mux(packet)


_UNSAID = (0, 2)
_PRIMARIES_AND_CURVE = {1: (1, 1), 5: (5, 6), 6: (6, 6), 9: (9, 14)}
"""What goes with a colour matrix, by their numbers in ITU-T H.273, where a film does not say."""

_FORMATS = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska"}
