"""The pictures of docs/norms.md: which elements share a mean, and what norms do to real features.

python scripts/norm_pictures.py [--folder docs/images]     (needs matplotlib: pip install '.[docs]')
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor

from styleapp import norms as n
from styleapp.models import Stylizer
from styleapp.pipeline import Options, StyleTransfer

N, C, POSITIONS, GROUPS = 3, 6, 5, 3
WHITE = {"facecolor": "white", "edgecolor": "none", "pad": 1}
SHARED, REST = "#3b6fd4", "#e9edf5"


def shared_elements() -> dict[str, np.ndarray]:
    """For each norm, True where an element of the N x C x positions cube shares its mean with the marked corner."""
    i, c, p = np.indices((N, C, POSITIONS))
    first, group, top = i == 0, c >= C - C // GROUPS, c == C - 1
    return {
        "batch": top,
        "layer (images): C, H, W": first,
        "instance, CIN, AdaIN": first & top,
        f"group, G = {GROUPS}": first & group,
        "layer (text): each position": first & (p == 0),
        "IBN: half instance, half batch": (first & (c == C - 1)) | (c == 0),
    }


def draw_cubes(file: Path) -> None:
    shared = shared_elements()
    figure = plt.figure(figsize=(12, 7.6))
    for k, (title, marked) in enumerate(shared.items()):
        axes = figure.add_subplot(2, 3, k + 1, projection="3d")
        # axes of the plot: positions to the right, images to the back, channels up
        cube = marked.transpose(2, 0, 1)
        colours = np.where(cube, SHARED, REST)
        axes.voxels(np.ones_like(cube), facecolors=colours, edgecolors="#8a94a6", linewidth=0.5, shade=False)
        axes.set_xlabel("H, W", labelpad=-12)
        axes.set_ylabel("N", labelpad=-12)
        axes.set_zlabel("C", labelpad=-12)
        axes.set(xticks=[], yticks=[], zticks=[])
        axes.set_box_aspect((POSITIONS, N, C))
        axes.view_init(elev=22, azim=-58)
        axes.set_title(title, fontsize=13)
    figure.subplots_adjust(left=0, right=1, bottom=0.02, top=0.94, wspace=0, hspace=0.12)
    figure.savefig(file, dpi=80)
    plt.close(figure)


@torch.inference_mode()
def draw_features(file: Path, transfer: StyleTransfer, photos: list[Path], channels: int = 2) -> None:
    """Channels of relu3_1 of a batch of two photos, before and after each norm, on one scale."""
    pictures = [transfer.fit(p, Options(size=256)).rgb for p in photos]
    images = torch.cat([p[..., :256, :256] for p in pictures])
    x = features_of(transfer.networks.adain, images)[2]
    # channels that vary, and vary differently in the two photos, show the most
    m = n.moments(x)
    interest = (m.std().mean(0) * (1 + (m.mean[0] - m.mean[1]).abs())).flatten()
    best = interest.argsort(descending=True)[:channels]
    num_channels = x.shape[1]
    columns: dict[str, Tensor] = {"features (÷ their σ)": x / x.std()}
    for title, name in (
        ("batch", "bn"),
        ("layer", "ln"),
        ("instance", "in"),
        ("group:16", "gn:16"),
        ("layer, each position", "ln2d"),
    ):
        norm = n.make_norm(name, num_channels, affine=False).train()
        columns[title] = norm(x)
    rows = [(i, int(c)) for c in best for i in range(len(photos))]
    figure, grid = plt.subplots(len(rows), len(columns), figsize=(2 * len(columns), 2 * len(rows)))
    for r, (i, c) in enumerate(rows):
        for k, (title, y) in enumerate(columns.items()):
            axes = grid[r, k]
            axes.imshow(y[i, c].numpy(), cmap="RdBu_r", vmin=-3, vmax=3)
            axes.set(xticks=[], yticks=[])
            if r == 0:
                axes.set_title(title, fontsize=10)
            if k == 0:
                axes.set_ylabel(f"photo {i + 1}, channel {c}", fontsize=9)
            mean = float(y[i, c].mean())
            text = f"μ {mean:+.2f}  σ {float(y[i, c].std()):.2f}"
            axes.text(0.03, 0.05, text, transform=axes.transAxes, fontsize=8, bbox=WHITE)
    figure.tight_layout(pad=0.4)
    figure.savefig(file, dpi=80)
    plt.close(figure)


def features_of(stylizer: Stylizer, images: Tensor) -> list[Tensor]:
    features: list[Tensor] = stylizer.encoder.features(images)
    return features


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("docs/images"))
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    draw_cubes(folder / "norms_cube.png")
    examples = [Path("examples/astronaut.jpg"), Path("examples/cat.jpg")]
    draw_features(folder / "norms_features.png", StyleTransfer(device="cpu", precision="fp32"), examples)


if __name__ == "__main__":
    main()
