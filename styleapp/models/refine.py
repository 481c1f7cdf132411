"""A code made better by gradient steps, while the network stays as it is (Dumoulin et al. 2017, section 3.2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from styleapp.models.losses import content_loss, grid_loss, style_loss

if TYPE_CHECKING:
    from styleapp.models.decoder import Skips
    from styleapp.models.stylizer import StyleCode, Stylizer

__all__ = ["code_losses", "refined"]

SCALE = 1024.0
"""Of the loss: gradients of single pixels are too small for float16, and Adam does not mind the factor."""


def refined(
    stylizer: Stylizer,
    code: StyleCode,
    wanted: Sequence[StyleCode],
    photos: Sequence[Tensor],
    *,
    steps: int | Callable[[float], int],
    lr: float = 0.05,
    style_weight: float = 1.0,
    grid_weight: float = 0.0,
    damping: float = 0.0,
    progress: Callable[[int, float, StyleCode], None] | None = None,
) -> StyleCode:
    """``code`` after some steps against content + ``style_weight`` · style + ``grid_weight`` · grid loss on ``photos``.

        γ = γ' · exp(a),   β = β' + γ' · b

    with (γ', β') as given and Adam on (a, b) from 0, its rate falling from ``lr`` to 0 in a straight line: so a step
    is the same share of a channel's deviation in every layer. Adam's ε is ``damping`` times the root mean square of the
    first gradient. Of an AdaIN decoder only what it is told changes, and the deviation is that of the convolution's
    output for the first photo, of all its channels: what is normalised has the painting's own moments, as ever.
    Bit-identical from run to run. Works in inference mode.

    Args:
        stylizer: conditional, or one whose decoder is told something; its weights are not changed.
        code: (N, C, 1, 1), each refined by itself.
        wanted: codes of the N paintings at relu1_1, relu2_1, relu3_1, relu4_1.
        photos: (1, 3, H, W) each, in [0,1], sides of at least ``stylizer.min_size``; taken in turn.
        steps: how many; or how many for the style loss of the first picture, at most over N, at least one.
        grid_weight: of :func:`styleapp.models.losses.grid_loss`, which many steps of the style loss alone make rise.
        damping: at 0 all channels move alike, also those that hardly matter and whose sign is an accident of rounding;
            at 1 these hardly move, and bfloat16 finds nearly what float32 does.
        progress: called with each step, its loss (mean over N), and the code after it.
    """
    cudnn = torch.backends.cudnn
    same = cudnn.flags(enabled=cudnn.enabled, benchmark=False, deterministic=True, allow_tf32=cudnn.allow_tf32)
    with torch.inference_mode(False), torch.enable_grad(), same:
        # Copies, because what inference mode has made cannot take part in a gradient.
        first, wanted = _copy(code), [_copy(c) for c in wanted]
        a, b = (torch.zeros_like(t, requires_grad=True) for t in (first.gamma, first.beta))
        optimizer = torch.optim.Adam([a, b], lr=lr, betas=(0.8, 0.95), eps=max(damping, 1e-8))
        unit: Tensor | None = None
        units, looks = None, []
        with torch.no_grad():  # each photo is encoded once
            for photo in photos if callable(steps) else photos[:steps]:
                features, skips = stylizer.encode(photo.clone())
                units = units or _units(stylizer, first, features, skips)
                target = stylizer.apply_code(features, wanted[-1])
                looks.append((_painter(stylizer, first, photo.clone(), features, skips), target))
        assert units is not None
        step, count = 0, 1 if callable(steps) else steps
        while step < count:
            for group in optimizer.param_groups:
                group["lr"] = lr * (1 - step / count)
            painter, target = looks[step % len(looks)]
            picture = painter(_changed(first, a, b, units))
            content, style = _losses(stylizer, picture, target, wanted)
            if step == 0 and callable(steps):
                count = steps(float(style.detach().max()))
            loss = content + style_weight * style
            if grid_weight:
                loss = loss + grid_weight * grid_loss(picture)
            gradient = torch.stack(torch.autograd.grad(SCALE * loss.sum(), (a, b), materialize_grads=True))
            if unit is None:  # of each code by itself
                unit = gradient.square().mean((0, 2), keepdim=True).sqrt().clamp_min(1e-8)
            a.grad, b.grad = gradient / unit
            optimizer.step()
            step += 1
            if progress is not None:
                progress(step, float(loss.detach().mean()), _copy(_changed(first, a, b, units)))
        return _copy(_changed(first, a, b, units))


def code_losses(
    stylizer: Stylizer,
    photo: Tensor,
    seen: tuple[Tensor, Skips],
    code: StyleCode,
    wanted: Sequence[StyleCode],
) -> tuple[Tensor, Tensor, Tensor]:
    """Content and style loss of a photo in each of N codes, (N,) each, and the pictures, (N, 3, H, W).

    Args:
        photo: (1, 3, H, W).
        seen: what ``stylizer.encode`` finds in it.
        code: (N, C, 1, 1), of the network.
        wanted: codes of the N paintings at relu1_1, relu2_1, relu3_1, relu4_1.
    """
    features, skips = seen
    with torch.no_grad():
        target = stylizer.apply_code(features, wanted[-1])
    picture = stylizer.stylized(features.expand(len(code.gamma), -1, -1, -1), code, photo, skips=skips)
    return *_losses(stylizer, picture, target, wanted), picture


def _losses(stylizer: Stylizer, picture: Tensor, target: Tensor, wanted: Sequence[StyleCode]) -> tuple[Tensor, Tensor]:
    """Content and style loss, (N,) each, of what is shown of the picture."""
    found = stylizer.encoder.features(picture.clamp(0, 1))
    return content_loss(found[-1], target), style_loss([stylizer.code_of(f) for f in found], wanted)


def _painter(
    stylizer: Stylizer, code: StyleCode, photo: Tensor, features: Tensor, skips: Skips
) -> Callable[[StyleCode], Tensor]:
    """What makes the photo's picture in a code that is ``code`` but for what is refined; what stays is done once."""
    features = features.expand(len(code.gamma), -1, -1, -1)
    if stylizer.shifts is None:
        return lambda changed: stylizer.stylized(features, changed, photo, skips=skips)
    x, inside = stylizer.inputs(features, skips, code.split(stylizer.parts))
    return lambda changed: stylizer.decode(x, photo, inside, stylizer.told(changed.split(stylizer.parts)))


def _units(stylizer: Stylizer, code: StyleCode, features: Tensor, skips: Skips) -> StyleCode:
    """What one of (a, b) is for each channel; 0 for what is not to change."""
    if stylizer.shifts is None:
        return type(code)(torch.ones_like(code.gamma), code.gamma)
    parts = code.split(stylizer.parts)
    features = features.expand(len(code.gamma), -1, -1, -1)
    units = {name: torch.zeros_like(part.beta) for name, part in parts.items()}

    def listen(name: str, x: Tensor) -> Tensor:
        units[name] = x.float().std((1, 2, 3), keepdim=True).expand_as(parts[name].beta)
        return x

    x, skips = stylizer.inputs(features, skips, parts)
    stylizer.decoder(x, listen, skips=skips, shifts=stylizer.told(parts))
    beta = torch.cat([units[name] for name in parts], 1)
    return type(code)(torch.zeros_like(beta), beta)


def _changed(code: StyleCode, a: Tensor, b: Tensor, units: StyleCode) -> StyleCode:
    return type(code)(code.gamma * (units.gamma * a).exp(), code.beta + units.beta * b)


def _copy(code: StyleCode) -> StyleCode:
    return type(code)(code.gamma.detach().clone(), code.beta.detach().clone())
