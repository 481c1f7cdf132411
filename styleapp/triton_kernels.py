"""The kernels of kernels.py, in Triton's language. Imported where a GPU is to run them: that takes 0.1 s."""

import triton
import triton.language as tl


@triton.jit
def forward(
    y,
    x,
    scale,
    shift,
    per_sample,
    per_row,
    per_column,
    height,
    width,
    channels,
    margin: tl.constexpr,
    reflects: tl.constexpr,
    scales: tl.constexpr,
    pixels: tl.constexpr,
    side_by_side: tl.constexpr,
):
    """Each pixel of the result from the one of ``x`` that it repeats."""
    sample = tl.program_id(2).to(tl.int64)
    across = width + 2 * margin
    pixel = tl.program_id(0) * pixels + tl.arange(0, pixels)
    channel = tl.program_id(1) * side_by_side + tl.arange(0, side_by_side)
    row, column = pixel // across - margin, pixel % across - margin
    if reflects:
        row, column = tl.abs(row), tl.abs(column)
        row = tl.where(row < height, row, 2 * height - 2 - row)
        column = tl.where(column < width, column, 2 * width - 2 - column)
    else:
        row = tl.minimum(tl.maximum(row, 0), height - 1)
        column = tl.minimum(tl.maximum(column, 0), width - 1)
    count = (height + 2 * margin) * across
    inside = (pixel < count)[:, None] & (channel < channels)[None, :]
    place = row.to(tl.int64) * per_row + column.to(tl.int64) * per_column
    value = tl.load(x + sample * per_sample + place[:, None] + channel[None, :], mask=inside)
    if scales:
        of_channel = sample * channels + channel
        gamma = tl.load(scale + of_channel, mask=channel < channels)
        beta = tl.load(shift + of_channel, mask=channel < channels)
        value = value.to(tl.float32) * gamma[None, :] + beta[None, :]
    out = (sample * count + pixel).to(tl.int64) * channels
    tl.store(y + out[:, None] + channel[None, :], value.to(y.dtype.element_ty), mask=inside)


@triton.jit
def backward(
    y,
    grad,
    per_sample,
    per_row,
    per_column,
    height,
    width,
    channels,
    repeated: tl.constexpr,
    pixels: tl.constexpr,
    side_by_side: tl.constexpr,
):
    """Each pixel's own gradient, and those of the border, which repeats what is ``repeated`` pixels inside."""
    sample = tl.program_id(2).to(tl.int64)
    pixel = tl.program_id(0) * pixels + tl.arange(0, pixels)
    channel = tl.program_id(1) * side_by_side + tl.arange(0, side_by_side)
    row, column = pixel // width, pixel % width
    inside = (pixel < height * width)[:, None] & (channel < channels)[None, :]
    top, bottom = (row == repeated)[:, None], (row == height - 1 - repeated)[:, None]
    left, right = (column == repeated)[:, None], (column == width - 1 - repeated)[:, None]
    base = tl.broadcast_to(grad + sample * per_sample + channel[None, :], (pixels, side_by_side))
    beside = ((row + 1).to(tl.int64) * per_row)[:, None]
    below = ((column + 1).to(tl.int64) * per_column)[:, None]
    last_row, last_column = tl.cast(height + 1, tl.int64) * per_row, tl.cast(width + 1, tl.int64) * per_column
    total = tl.load(base + beside + below, mask=inside).to(tl.float32)
    total += tl.load(base + below, mask=inside & top, other=0).to(tl.float32)
    total += tl.load(base + last_row + below, mask=inside & bottom, other=0).to(tl.float32)
    total += tl.load(base + beside, mask=inside & left, other=0).to(tl.float32)
    total += tl.load(base + beside + last_column, mask=inside & right, other=0).to(tl.float32)
    total += tl.load(base, mask=inside & top & left, other=0).to(tl.float32)
    total += tl.load(base + last_column, mask=inside & top & right, other=0).to(tl.float32)
    total += tl.load(base + last_row, mask=inside & bottom & left, other=0).to(tl.float32)
    total += tl.load(base + last_row + last_column, mask=inside & bottom & right, other=0).to(tl.float32)
    out = (sample * height * width + pixel).to(tl.int64) * channels
    tl.store(y + out[:, None] + channel[None, :], total.to(y.dtype.element_ty), mask=inside)
