"""Turn the encoder into one of 8-bit integers: weights/vgg19_int8.safetensors.

    python scripts/quantize.py --images PHOTOS PAINTINGS
    python scripts/release.py

The unit of a channel is 1/255 of the most that any of the images, or of some drawn patterns in pure colours, has in it.
Then layer after layer: weights and bias that come nearest, in least squares over places of some images, to what the
layer gives in float, from features that have been rounded so far; and of these weights one after the other rounded, its
error made good by those that are not yet (Frantar et al. 2023, GPTQ), in the end by the bias.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path

import torch
from rich.progress import track
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import v2

from styleapp.devices import has_bf16
from styleapp.files import read_image
from styleapp.models import Encoder
from styleapp.models.int8 import int8_conv2d, packed
from styleapp.models.layers import max_pool2x2, padded
from styleapp.training.data import patterns
from styleapp.weights import Weights, sha256, weights_folder


def most(encoder: Encoder, images: Iterable[Tensor]) -> dict[str, Tensor]:
    """The largest value of each channel over images, by the name of the convolution that gives it."""
    names = [name for name in encoder.names if name != "M"]
    found = {name: torch.zeros(encoder.get_submodule(name).weight.shape[0]) for name in names}
    for image in images:
        for name, x in zip(names, encoder.features(image, [n.replace("conv", "relu") for n in names]), strict=True):
            found[name] = torch.maximum(found[name], x.permute(0, 2, 3, 1).flatten(0, 2).amax(0).float())
    return found


def quantized(
    encoder: Encoder, images: Sequence[Tensor], largest: dict[str, Tensor], places: int = 2000
) -> dict[str, Tensor]:
    """The tensors of :class:`styleapp.models.int8.Int8Encoder`.

    Args:
        images: (1, 3, H, W) with even sides down to the last layer, channels_last, [0,1].
        largest: of each channel, see :func:`most`.
        places: how many of each image are looked at, at each layer.
    """
    exact = [image.to(next(encoder.parameters()).dtype) for image in images]
    rounded = [(image * 255).round().to(torch.uint8) for image in images]
    unit_before = torch.full((3,), 1 / 255)
    tensors: dict[str, Tensor] = {}
    for name in encoder.names:
        if name == "M":
            exact, rounded = [max_pool2x2(x) for x in exact], [max_pool2x2(x) for x in rounded]
            continue
        conv = encoder.get_submodule(name)
        unit = torch.ones_like(largest[name]) if name == encoder.names[-1] else largest[name].clamp(min=1e-6) / 255
        weight = conv.weight.float().contiguous() * unit_before[:, None, None] / unit[:, None, None, None]
        wanted = torch.cat([weight.flatten(1), (conv.bias.float() / unit)[:, None]], 1).double()
        before = [conv(x) for x in exact]
        inputs, outputs = _sums(rounded, [y.float() / unit[:, None, None] for y in before], places)
        ridge = 1e-3 * inputs.diagonal().mean() * torch.eye(len(inputs), dtype=torch.float64)
        nearest = (outputs + wanted @ ridge) @ torch.linalg.inv(inputs + ridge)
        step = nearest[:, :-1].abs().amax(1) / 127
        whole, bias = _rounded(nearest, inputs, step)
        tensors[f"{name}.weight"] = whole.view(weight.shape).to(torch.int8)
        tensors[f"{name}.step"], tensors[f"{name}.bias"] = step.float(), bias.float()
        exact = [F.relu(y) for y in before]
        if name != encoder.names[-1]:
            tensors[f"{name}.unit"] = unit_before = unit
            kernel = packed(tensors[f"{name}.weight"], step.float())
            arguments = (kernel, step.float(), bias.float(), torch.uint8)
            rounded = [int8_conv2d(padded(x, "reflect"), *arguments) for x in rounded]
    return tensors


def _sums(inputs: Sequence[Tensor], outputs: Sequence[Tensor], places: int) -> tuple[Tensor, Tensor]:
    """Σ p·pᵀ and Σ y·pᵀ over random places: p is what a 3x3 kernel sees there, and 1; y what it is to give."""
    channels = 9 * inputs[0].shape[1] + 1
    ours = torch.zeros(channels, channels, dtype=torch.float64)
    theirs = torch.zeros(outputs[0].shape[1], channels, dtype=torch.float64)
    for x, y in zip(inputs, outputs, strict=True):
        row, column = (torch.randint(side, (places,)) for side in x.shape[-2:])
        whole = padded(x, "reflect")[0].permute(1, 2, 0)
        seen = torch.stack([whole[row + i, column + j] for i in range(3) for j in range(3)], -1).flatten(1).float()
        seen = torch.cat([seen, torch.ones(places, 1)], 1)
        ours += seen.T @ seen
        theirs += y[0].permute(1, 2, 0)[row, column].T @ seen
    return ours, theirs


def _rounded(weight: Tensor, inputs: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    """Whole numbers for all but the last column, which is the bias and stays as exact as it is.

    Each column's error goes to those behind it, in proportion to how they can make up for it.
    """
    count = weight.shape[1] - 1
    order = torch.cat([inputs.diagonal()[:count].argsort(descending=True), torch.tensor([count])])
    weight, inputs = weight[:, order], inputs[order][:, order]
    inputs = inputs + 1e-4 * inputs.diagonal().mean() * torch.eye(count + 1, dtype=inputs.dtype)
    upper = torch.linalg.cholesky(torch.linalg.inv(inputs), upper=True)
    whole = torch.empty_like(weight[:, :count])
    for k in range(count):
        whole[:, order[k]] = rounded = (weight[:, k] / step).round().clamp(-127, 127)
        weight[:, k + 1 :] -= ((weight[:, k] - rounded * step) / upper[k, k])[:, None] * upper[k, k + 1 :]
    return whole, weight[:, count]


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, nargs="+", required=True, help="folders of JPEG")
    parser.add_argument("--every", type=int, default=1, help="take every n-th of them")
    parser.add_argument("--size", type=int, default=384, help="their short side")
    parser.add_argument("--crops", type=int, default=80, help="how many of them for the weights")
    parser.add_argument("--out", type=Path, default=Path("weights/vgg19_int8.safetensors"))
    args = parser.parse_args()
    torch.manual_seed(0)
    encoder = Weights().encoder().to(torch.bfloat16 if has_bf16(torch.device("cpu")) else torch.float32)
    encoder.to(memory_format=torch.channels_last)
    files = sorted(file for folder in args.images for file in folder.glob("*.jpg"))[:: args.every]
    crop = v2.CenterCrop(args.size // 16 * 16)

    def load(file: Path) -> Tensor:
        image = v2.functional.resize(read_image(file).rgb, [args.size], antialias=True)
        return image.clamp(0, 1).contiguous(memory_format=torch.channels_last)

    drawn = patterns(100, args.size // 2).contiguous(memory_format=torch.channels_last).split(1)
    largest = most(encoder, chain(drawn, map(load, track(files, "ranges"))))
    chosen = files[:: max(1, len(files) // args.crops)]
    crops = [crop(load(file)).contiguous(memory_format=torch.channels_last) for file in chosen]
    tensors = quantized(encoder, crops, largest)
    made_with = {"encoder_sha256": sha256(weights_folder() / "vgg19_relu4_1.safetensors")}
    save_file({k: v.contiguous() for k, v in tensors.items()}, args.out, made_with)
    print(f"{args.out}: {args.out.stat().st_size / 1e6:.1f} MB, ranges of {len(files)} images")


if __name__ == "__main__":
    main()
