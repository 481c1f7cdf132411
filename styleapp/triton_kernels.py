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
    relu: tl.constexpr,
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
    if relu:
        value = tl.maximum(value, 0)
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


@triton.jit
def convolve(
    y,
    x,
    weight,
    bias,
    across,
    per_image,
    height,
    width,
    per_sample,
    per_row,
    per_column,
    channels,
    out_channels,
    end,
    relu: tl.constexpr,
    parts: tl.constexpr,
    steps: tl.constexpr,
    positions: tl.constexpr,
    outputs: tl.constexpr,
    inputs: tl.constexpr,
):
    """A 3x3 convolution as a product of matrices. What lies in its border is around the picture already.

    The rows of ``x`` are all positions, those of the border among them: that of a tap is a fixed number of rows away.
    """
    of_outputs = tl.cdiv(parts * out_channels, outputs)
    first = (tl.program_id(0) // of_outputs) * positions + across + 1
    output = (tl.program_id(0) % of_outputs) * outputs
    total = tl.zeros((positions, outputs), tl.float32)
    for step in range(9 * steps):
        tap, channel = step // steps, (step % steps) * inputs
        away = (tap // 3 - 1) * across + tap % 3 - 1
        seen = x.load([first + away, channel])
        kernel = weight.load([output, tap * channels + channel])
        total = tl.dot(seen, kernel.T, total)
    position = first + tl.arange(0, positions)
    sample, within = position // per_image, position % per_image
    row, column = within // across - 1, within % across - 1
    output += tl.arange(0, outputs)
    part, of_part = output // out_channels, output % out_channels
    total += tl.load(bias + of_part, mask=part < parts, other=0).to(tl.float32)[None, :]
    if relu:
        total = tl.maximum(total, 0)
    place = sample.to(tl.int64) * per_sample
    if parts == 1:
        place += row.to(tl.int64) * per_row + column * per_column
        beside = output
    else:
        place += 2 * row.to(tl.int64) * per_row + 2 * column * per_column
        beside = (part // 2) * per_row + (part % 2) * per_column + of_part
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width) & (position < end)
    inside = inside[:, None] & (part < parts)[None, :]
    tl.store(y + place[:, None] + beside[None, :], total.to(y.dtype.element_ty), mask=inside)


@triton.jit
def convolve_first(
    y,
    x,
    weight,
    bias,
    per_sample,
    per_channel,
    per_row,
    per_column,
    height,
    width,
    channels,
    out_channels,
    count,
    relu: tl.constexpr,
    positions: tl.constexpr,
    outputs: tl.constexpr,
    inputs: tl.constexpr,
):
    """The same of few channels, with the border of ``x`` reflected, and a reflected border around the result."""
    across = width + 2
    per_image = (height + 2) * across
    position = tl.program_id(0) * positions + tl.arange(0, positions)
    sample, within = position // per_image, position % per_image
    row, column = tl.abs(within // across - 1), tl.abs(within % across - 1)
    row = tl.where(row < height, row, 2 * height - 2 - row)
    column = tl.where(column < width, column, 2 * width - 2 - column)
    seen = tl.arange(0, inputs)
    tap, channel = seen // channels, seen % channels
    down = tl.abs(row[:, None] + (tap // 3)[None, :] - 1)
    down = tl.where(down < height, down, 2 * height - 2 - down)
    right = tl.abs(column[:, None] + (tap % 3)[None, :] - 1)
    right = tl.where(right < width, right, 2 * width - 2 - right)
    there = (position < count)[:, None] & (tap < 9)[None, :]
    place = sample.to(tl.int64)[:, None] * per_sample + down.to(tl.int64) * per_row + right * per_column
    values = tl.load(x + place + (channel * per_channel)[None, :], mask=there, other=0)
    output = tl.program_id(1) * outputs + tl.arange(0, outputs)
    kernel = tl.load(
        weight + seen[:, None] + (output * 9 * channels)[None, :],
        mask=(tap < 9)[:, None] & (output < out_channels)[None, :],
        other=0,
    )
    total = tl.dot(values, kernel)
    total += tl.load(bias + output, mask=output < out_channels, other=0).to(tl.float32)[None, :]
    if relu:
        total = tl.maximum(total, 0)
    out = position.to(tl.int64) * out_channels
    inside = (position < count)[:, None] & (output < out_channels)[None, :]
    tl.store(y + out[:, None] + output[None, :], total.to(y.dtype.element_ty), mask=inside)


@triton.jit
def ring(y, height, width, channels, reflects: tl.constexpr, pixels: tl.constexpr, side_by_side: tl.constexpr):
    """The border of what is (height + 2) x (width + 2) pixels, from those that it repeats."""
    across = width + 2
    base = y + tl.program_id(2).to(tl.int64) * (height + 2) * across * channels
    pixel = tl.program_id(0) * pixels + tl.arange(0, pixels)
    channel = tl.program_id(1) * side_by_side + tl.arange(0, side_by_side)
    beside = pixel - 2 * across
    row = tl.where(beside < 0, (pixel // across) * (height + 1), beside // 2 + 1)
    column = tl.where(beside < 0, pixel % across, (beside % 2) * (width + 1))
    inside = (pixel < 2 * (across + height))[:, None] & (channel < channels)[None, :]
    first: tl.constexpr = 2 if reflects else 1
    from_row = tl.where(row == 0, first, tl.where(row == height + 1, height + 1 - first, row))
    from_column = tl.where(column == 0, first, tl.where(column == width + 1, width + 1 - first, column))
    source = (from_row.to(tl.int64) * across + from_column) * channels
    place = (row.to(tl.int64) * across + column) * channels
    value = tl.load(base + source[:, None] + channel[None, :], mask=inside)
    tl.store(base + place[:, None] + channel[None, :], value, mask=inside)


@triton.jit
def pool(
    y,
    x,
    per_sample,
    per_row,
    per_column,
    height,
    width,
    channels,
    pixels: tl.constexpr,
    side_by_side: tl.constexpr,
):
    """The largest of each 2x2 of height x width pixels, of those that there are, with a reflected border around it."""
    sample = tl.program_id(2).to(tl.int64)
    high, wide = (height + 1) // 2, (width + 1) // 2
    across = wide + 2
    count = (high + 2) * across
    pixel = tl.program_id(0) * pixels + tl.arange(0, pixels)
    channel = tl.program_id(1) * side_by_side + tl.arange(0, side_by_side)
    row, column = tl.abs(pixel // across - 1), tl.abs(pixel % across - 1)
    row = 2 * tl.where(row < high, row, 2 * high - 2 - row)
    column = 2 * tl.where(column < wide, column, 2 * wide - 2 - column)
    below, right = tl.minimum(row + 1, height - 1), tl.minimum(column + 1, width - 1)
    inside = (pixel < count)[:, None] & (channel < channels)[None, :]
    base = x + sample * per_sample + channel[None, :]
    above, under = row.to(tl.int64) * per_row, below.to(tl.int64) * per_row
    value = tl.load(base + (above + column * per_column)[:, None], mask=inside)
    value = tl.maximum(value, tl.load(base + (above + right * per_column)[:, None], mask=inside))
    value = tl.maximum(value, tl.load(base + (under + column * per_column)[:, None], mask=inside))
    value = tl.maximum(value, tl.load(base + (under + right * per_column)[:, None], mask=inside))
    out = (sample * count + pixel) * channels
    tl.store(y + out[:, None] + channel[None, :], value, mask=inside)
