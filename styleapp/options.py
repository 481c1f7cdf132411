"""What can be asked for, each in one dataclass: the source of CLI flags, web controls and keyword arguments.

Imports nothing heavy, so that ``styleapp --help`` answers at once.
"""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass

from styleapp.errors import OptionError, unknown_name

__all__ = [
    "COLOURS",
    "DEVICES",
    "NORM_EXAMPLES",
    "NORM_NAMES",
    "PRECISIONS",
    "SKIPS",
    "UPSAMPLINGS",
    "BatchOptions",
    "ConditionalOptions",
    "DecoderOptions",
    "Options",
    "TrainOptions",
    "parse_bytes",
]

DEVICES = ("auto", "cpu", "cuda", "cuda:0")
PRECISIONS = ("auto", "fp32", "bf16", "fp16", "int8")
COLOURS = ("none", "luma", "coral", "histogram", "palette")
NORM_NAMES = ("auto", "adain", "cin", "in", "adaln", "adabn", "efdm", "wct", "ot", "adagn", "decoder")
UPSAMPLINGS = ("bilinear", "nearest")
SKIPS = ("relu1_1", "relu2_1", "relu3_1")
NORM_EXAMPLES = (*NORM_NAMES[:-2], "adagn:32", "decoder:bn")


_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def parse_bytes(text: str) -> int:
    """The number of bytes in "2GB", "500 MB" or "1500000000".

    Raises:
        OptionError: for anything else, or nothing.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?\s*", text, re.I)
    if not match or float(match[1]) == 0:
        raise OptionError(f"memory is a size such as 2GB or 500MB, got {text!r}")
    return int(float(match[1]) * _UNITS[match[2].upper()])


@dataclass(frozen=True)
class Options:
    """What can be asked of one stylized photo.

    Attributes:
        alpha: strength of the style, 0 (the photo) to 1.
        size: short side of the result in pixels, 0 for that of the photo.
        style_size: short side at which the painting is measured: larger means broader strokes.
        work_size: short side that the network sees at most: larger photos are reduced for it, and the result is
            enlarged again along the photo's edges. So strokes are as broad on a large photo as on a small one. Smaller
            means broader; 0 is the photo's own size, with fine strokes.
        norm: auto (cin for paintings, and for the styles that its network has learned at this stroke size; else adain),
            or which statistics of the photo become those of the painting: adain (each channel's), adaln (all
            channels'), adagn:G (those of G groups), adabn (each channel's over a batch, which for one photo is adain),
            wct (the covariance too), ot (likewise, with the least change), efdm (every value); the last three need a
            painting, not a built-in style. Or another network: cin (codes at every layer of the decoder, learned, or
            predicted for a painting that it does not know), in (one network for one style), decoder:NORM (adain with a
            small decoder that has none, bn, in, ln, gn or switchable norms inside, which is worse: for comparisons).
        detail: how much of the photo's fine texture (fur, leaves, brickwork) cin and in see: from 0, broad and
            smooth strokes, to 1, as they were trained.
        color: none (the painting's), luma (the photo's colours, stylized brightness), coral or histogram (the
            painting is recoloured to the photo before it is measured), palette (the painting's colours alone, on the
            photo as it is).
        refine: gradient steps on the code of a painting that the network has not learned, once for each painting:
            nearer to it for a sixth (AdaIN) or a fifth of a second (CIN) a step on two CPU cores with bfloat16. 0 for
            none; by default 16 for cin, and for adain 24, or 60 where a painting is far off.
        tile: auto (as large as memory allows, on a CPU of large photos as large as is quick), off (the photo in one
            piece), or the longest side of a tile in pixels. The result is the same.
        max_memory: what the process may occupy in all, such as 2GB; by default half of what is free.
        feather: softness of the borders of masks, in pixels.
    """

    alpha: float = 1.0
    size: int = 0
    style_size: int = 512
    work_size: int = 1080
    norm: str = "auto"
    detail: float = 1.0
    color: str = "none"
    refine: int | None = None
    tile: str = "auto"
    max_memory: str = ""
    feather: float = 0.0

    def __post_init__(self) -> None:
        if self.norm.partition(":")[0] not in NORM_NAMES:
            raise unknown_name("norm", self.norm, NORM_EXAMPLES)
        if self.color not in COLOURS:
            raise unknown_name("color", self.color, COLOURS)
        if self.tile not in ("auto", "off") and not (self.tile.isdigit() and int(self.tile) >= 16):
            raise OptionError(f"tile must be auto, off, or a side of at least 16 pixels, got {self.tile!r}")
        if self.max_memory:
            parse_bytes(self.max_memory)
        if not 0 <= self.feather <= 1000:
            raise OptionError(f"feather must be from 0 to 1000 pixels, got {self.feather:g}")
        if not 0 <= self.alpha <= 1:
            raise OptionError(f"alpha must be from 0 to 1, got {self.alpha:g}")
        if not 0 <= self.detail <= 1:
            raise OptionError(f"detail must be from 0 to 1, got {self.detail:g}")
        if self.size < 0:
            raise OptionError(f"size must be 0 (the photo's own) or more, got {self.size}")
        if self.style_size < 1:
            raise OptionError(f"style_size must be at least 1, got {self.style_size}")
        if self.work_size and self.work_size < 16:
            raise OptionError(f"work_size must be 0 (the photo's own) or at least 16 pixels, got {self.work_size}")
        if self.refine is not None and not 0 <= self.refine <= 1000:
            raise OptionError(f"refine must be from 0 to 1000 steps, got {self.refine}")


ENGINES = ("local", "ray")


@dataclass(frozen=True)
class BatchOptions:
    """How many photos are worked through.

    Attributes:
        pairs: of several styles, one result each instead of a mix: all (every photo in every style), zip (the i-th in
            the i-th), or random:K (K styles for each photo).
        seed: of pairs random.
        workers: processes that stylize; 0 for one on a CPU and one on each GPU.
        batch_size: photos of equal size that go through the network at once; auto for what suits the device.
        engine: local (this machine) or ray (a cluster).
        address: of the Ray cluster; empty to start one on this machine.
        retry_failed: only what failed in the run before.
        fail_fast: end at the first failure.
        max_failures: end after so many; 0 for never.
    """

    pairs: str = ""
    seed: int = 0
    workers: int = 0
    batch_size: str = "auto"
    engine: str = "local"
    address: str = ""
    retry_failed: bool = False
    fail_fast: bool = False
    max_failures: int = 0

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise unknown_name("engine", self.engine, ENGINES)
        if self.batch_size != "auto" and not (self.batch_size.isdigit() and int(self.batch_size) >= 1):
            raise OptionError(f"batch_size is auto or at least 1, got {self.batch_size!r}")
        for name in ("workers", "max_failures"):
            if getattr(self, name) < 0:
                raise OptionError(f"{name} must be 0 or more, got {getattr(self, name)}")


@dataclass(frozen=True)
class TrainOptions:
    """What decides how any network is trained.

    Attributes:
        width: share of the paper's decoder channels.
        upsampling: in the decoder: bilinear, or nearest as in the paper.
        steps: length of the run; the learning rate falls to zero over it by a cosine.
        batch_size: photos a step.
        pairs: styles a photo. The frozen encoding of the photo is shared by them, so 2 costs less than twice
            as much as 1.
        size: crops of this many pixels square.
        lr: learning rate of AdamW at its peak.
        warmup: steps over which the learning rate rises to it.
        style_weight: weight of the style loss; that of the content loss is 1.
        identity_weight: weight of the pixel loss on identity samples.
        grid_weight: weight of the loss against detail that is tied to cells of 4x4 and 8x8 pixels, the encoder's grid.
        equivariance_weight: weight of the loss against detail that does not follow a photo that is turned or shifted.
        equivariance_every: that loss, which costs a pass more, is taken in one step of so many and weighs as much
            more in it (lazily, as in Karras et al. 2020, section 3.1).
        range_weight: weight of the loss against what is painted beyond black and white, where the losses of content and
            style, which see what is shown, have no gradient.
        skips: layers of the encoder that the decoder sees besides, of relu1_1,relu2_1,relu3_1; empty for none.
        identity_share: share of samples in which the photo is its own style.
        clip: largest gradient norm.
        ema: decay of the average of the weights, which is what is saved.
        seed: of everything random; step i depends on it and on i alone, so a resumed run equals an unbroken one.
        bf16: convolutions in bfloat16; weights, statistics and losses stay in float32.
        compile: use torch.compile (pays on a GPU).
    """

    width: float = 1.0
    upsampling: str = "bilinear"
    steps: int = 60_000
    batch_size: int = 8
    pairs: int = 2
    size: int = 256
    lr: float = 1e-3
    warmup: int = 500
    style_weight: float = 10.0
    identity_weight: float = 20.0
    grid_weight: float = 0.0
    equivariance_weight: float = 0.0
    equivariance_every: int = 1
    range_weight: float = 10.0
    skips: str = "relu1_1,relu2_1"
    identity_share: float = 0.15
    clip: float = 5.0
    ema: float = 0.999
    seed: int = 0
    bf16: bool = True
    compile: bool = False

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if name in ("steps", "batch_size", "pairs", "equivariance_every") and value < 1:
                raise OptionError(f"{name} must be at least 1, got {value}")
            if name in ("size", "style_size") and value < 16:
                raise OptionError(f"{name} must be at least 16 pixels, got {value}")
            if name.endswith("share") and not 0 <= value <= 1:
                raise OptionError(f"{name} must be from 0 to 1, got {value:g}")
            if name.endswith(("lr", "weight", "warmup")) and not 0 <= value < math.inf:
                raise OptionError(f"{name} must be 0 or more, got {value:g}")
            if name in ("width", "clip") and not 0 < value < math.inf:
                raise OptionError(f"{name} must be more than 0, got {value:g}")
        if not 0 <= self.ema < 1:
            raise OptionError(f"ema must be from 0 to below 1, got {self.ema:g}")
        if self.upsampling not in UPSAMPLINGS:
            raise unknown_name("upsampling", self.upsampling, UPSAMPLINGS)
        for name in filter(None, self.skips.split(",")):
            if name not in SKIPS:
                raise unknown_name("skip", name, SKIPS)


@dataclass(frozen=True)
class DecoderOptions(TrainOptions):
    """How the decoder of an AdaIN network is trained.

    Attributes:
        mix_share: share of samples whose code is a random mix of two paintings'.
        pattern_share: share of paintings that are drawn by us.
        colour_share: share of the others whose colours are changed at random.
        norm: a norm after each hidden convolution of the decoder: none, which is best, or for comparison bn, in, ln,
            gn:G or switchable.
        shifts: tell the decoder the painting's moments at relu1_1 to relu3_1 too; without, it is the paper's.
        freeze: leave the decoder as it is and train what it is told alone, in half the time.
    """

    mix_share: float = 0.15
    pattern_share: float = 0.05
    colour_share: float = 1.0
    norm: str = "none"
    skips: str = "relu1_1,relu2_1,relu3_1"
    shifts: bool = True
    freeze: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pairs > self.batch_size:  # as many paintings as photos are drawn
            raise OptionError(f"pairs must be at most batch_size ({self.batch_size}), got {self.pairs}")
        if self.freeze and not self.shifts:
            raise OptionError("freeze trains what the decoder is told, which is nothing without shifts")


@dataclass(frozen=True)
class ConditionalOptions(TrainOptions):
    """How a network of conditional instance norm is trained.

    Attributes:
        style_size: short side at which the paintings are measured.
        code_lr: learning rate of the codes at its peak.
        predictor_lr: learning rate of the predictor of codes for further paintings, where there are any; of its first
            layers, a twentieth.
        further_share: share of samples whose style is one of them.
        pattern_share: share of those that are drawn by us.
    """

    steps: int = 30_000
    style_size: int = 512
    code_lr: float = 5e-3
    predictor_lr: float = 3e-4
    further_share: float = 0.7
    pattern_share: float = 0.05
