"""The kernels of kernels.py, in Triton's language. Imported where a GPU is to run them: that takes 0.1 s."""

import triton
import triton.language as tl


@triton.jit
def reflected(index, count):
    """Which of ``count`` pixels a border of one shows at ``index``, -1 to ``count``."""
    index = tl.abs(index)
    return tl.where(index < count, index, 2 * count - 2 - index)


@triton.jit
def with_border(base, row, column, per_row, per_column, height, width, repeated: tl.constexpr, inside):
    """The sum of what is at a pixel and at those of a border around it all, beginning at ``base``, that repeat it."""
    beside, below = (row + 1).to(tl.int64) * per_row, (column + 1).to(tl.int64) * per_column
    base += tl.zeros_like(beside + below)
    top, bottom = inside & (row == repeated), inside & (row == height - 1 - repeated)
    left, right = column == repeated, column == width - 1 - repeated
    last_row, last_column = tl.cast(height + 1, tl.int64) * per_row, tl.cast(width + 1, tl.int64) * per_column
    total = tl.load(base + beside + below, mask=inside, other=0).to(tl.float32)
    total += tl.load(base + below, mask=top, other=0).to(tl.float32)
    total += tl.load(base + last_row + below, mask=bottom, other=0).to(tl.float32)
    total += tl.load(base + beside, mask=inside & left, other=0).to(tl.float32)
    total += tl.load(base + beside + last_column, mask=inside & right, other=0).to(tl.float32)
    total += tl.load(base, mask=top & left, other=0).to(tl.float32)
    total += tl.load(base + last_column, mask=top & right, other=0).to(tl.float32)
    total += tl.load(base + last_row, mask=bottom & left, other=0).to(tl.float32)
    total += tl.load(base + last_row + last_column, mask=bottom & right, other=0).to(tl.float32)
    return total


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
        row, column = reflected(row, height), reflected(column, width)
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
def inward(
    y,
    grad,
    seen,
    per_sample,
    per_row,
    per_column,
    seen_per_sample,
    seen_per_row,
    seen_per_column,
    height,
    width,
    channels,
    outputs,
    margin: tl.constexpr,
    repeated: tl.constexpr,
    scale: tl.constexpr,
    around: tl.constexpr,
    pixels: tl.constexpr,
    side_by_side: tl.constexpr,
):
    """Each pixel's own gradient, and those of the border, which repeats what is ``repeated`` pixels inside.

    Nothing where ``seen`` was not above 0. Pixels of even and odd rows and columns beside one another where ``scale``
    is 2; zeros in a border around it, and in channels beyond those that there are.
    """
    sample = tl.program_id(2).to(tl.int64)
    across = width // scale + 2 * around
    count = (height // scale + 2 * around) * across
    pixel = tl.program_id(0) * pixels + tl.arange(0, pixels)
    output = tl.program_id(1) * side_by_side + tl.arange(0, side_by_side)
    part, channel = output // outputs, output % outputs
    row = ((pixel // across - around) * scale)[:, None] + (part // scale)[None, :]
    column = ((pixel % across - around) * scale)[:, None] + (part % scale)[None, :]
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    inside = inside & (channel < channels)[None, :] & (part < scale * scale)[None, :] & (pixel < count)[:, None]
    base = grad + sample * per_sample + channel[None, :]
    if margin:
        total = with_border(base, row, column, per_row, per_column, height, width, repeated, inside)
    else:
        total = tl.load(base + row.to(tl.int64) * per_row + column * per_column, mask=inside, other=0).to(tl.float32)
    if seen is not None:
        place = sample * seen_per_sample + row.to(tl.int64) * seen_per_row + column * seen_per_column
        total = tl.where(tl.load(seen + place + channel[None, :], mask=inside, other=0) > 0, total, 0)
    out = (sample * count + pixel) * scale * scale * outputs
    there = (pixel < count)[:, None] & (output < scale * scale * outputs)[None, :]
    tl.store(y + out[:, None] + output[None, :], total.to(y.dtype.element_ty), mask=there)


@triton.jit
def unpool(
    y,
    grad,
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
    """The gradient of :func:`pool`: that of the largest, and of its copies in the border, to the first of those."""
    sample = tl.program_id(2).to(tl.int64)
    pixel = tl.program_id(0) * pixels + tl.arange(0, pixels)
    channel = tl.program_id(1) * side_by_side + tl.arange(0, side_by_side)
    high, wide = (height + 1) // 2, (width + 1) // 2
    row, column = pixel // width, pixel % width
    inside = (pixel < height * width)[:, None] & (channel < channels)[None, :]
    base = x + sample * per_sample + channel[None, :]
    above = (row - row % 2).to(tl.int64) * per_row
    under = tl.minimum(row - row % 2 + 1, height - 1).to(tl.int64) * per_row
    first, second = (column - column % 2) * per_column, tl.minimum(column - column % 2 + 1, width - 1) * per_column
    a = tl.load(base + (above + first)[:, None], mask=inside, other=0)
    b = tl.load(base + (above + second)[:, None], mask=inside, other=0)
    c = tl.load(base + (under + first)[:, None], mask=inside, other=0)
    d = tl.load(base + (under + second)[:, None], mask=inside, other=0)
    most = tl.maximum(tl.maximum(a, b), tl.maximum(c, d))
    which = (2 * (row % 2) + column % 2)[:, None]
    chosen = tl.where(which == 0, a, tl.where(which == 1, b, tl.where(which == 2, c, d))) == most
    chosen = chosen & ((which < 1) | (a < most)) & ((which < 2) | (b < most)) & ((which < 3) | (c < most))
    base = grad + sample * (high + 2) * (wide + 2) * channels + channel[None, :]
    row, column = (row // 2)[:, None], (column // 2)[:, None]
    total = with_border(base, row, column, (wide + 2) * channels, channels, high, wide, 1, chosen & inside)
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
    everywhere: tl.constexpr,
    relu: tl.constexpr,
    parts: tl.constexpr,
    steps: tl.constexpr,
    positions: tl.constexpr,
    outputs: tl.constexpr,
    inputs: tl.constexpr,
):
    """A 3x3 convolution as a product of matrices. What lies in its border is around the picture already.

    The rows of ``x`` are all positions, those of the border among them: that of a tap is a fixed number of rows away.
    ``everywhere``: in the border too, where that is zeros.
    """
    of_outputs = tl.cdiv(parts * out_channels, outputs)
    first = (tl.program_id(0) // of_outputs) * positions
    if not everywhere:
        first += across + 1
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
    if bias is not None:
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
    inside = position < end
    if not everywhere:
        inside = inside & (row >= 0) & (row < height) & (column >= 0) & (column < width)
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
    row, column = reflected(within // across - 1, height), reflected(within % across - 1, width)
    seen = tl.arange(0, inputs)
    tap, channel = seen // channels, seen % channels
    down = reflected(row[:, None] + (tap // 3)[None, :] - 1, height)
    right = reflected(column[:, None] + (tap % 3)[None, :] - 1, width)
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
    row, column = 2 * reflected(pixel // across - 1, high), 2 * reflected(pixel % across - 1, wide)
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


@triton.jit
def moments(
    mean,
    spread,
    x,
    per_sample,
    per_row,
    per_column,
    width,
    count,
    channels,
    rounds: tl.constexpr,
    pixels: tl.constexpr,
    side_by_side: tl.constexpr,
):
    """Of some pixels of a sample: means less the sample's first pixel, and sums of squared differences from them.

    In float32; so far from 0 as features may be, means of many of them would be rounded by more than they differ.
    """
    sample = tl.program_id(2).to(tl.int64)
    channel = tl.program_id(1) * side_by_side + tl.arange(0, side_by_side)
    own, squares = tl.zeros((side_by_side,), tl.float32), tl.zeros((side_by_side,), tl.float32)
    first = tl.program_id(0) * rounds * pixels
    pivot = tl.load(x + sample * per_sample + channel, mask=channel < channels, other=0).to(tl.float32)
    before = 0.0
    for turn in range(rounds):
        pixel = first + turn * pixels + tl.arange(0, pixels)
        inside = (pixel < count)[:, None] & (channel < channels)[None, :]
        place = (pixel // width).to(tl.int64) * per_row + (pixel % width) * per_column
        value = tl.load(x + sample * per_sample + place[:, None] + channel[None, :], mask=inside, other=0)
        value = tl.where(inside, value.to(tl.float32) - pivot[None, :], 0)
        further = tl.minimum(tl.maximum(count - first - turn * pixels, 0), pixels).to(tl.float32)
        seen = tl.maximum(before + further, 1)
        found = tl.sum(value, 0) / tl.maximum(further, 1)
        centred = tl.where(inside, value - found[None, :], 0)
        difference = found - own
        squares += tl.sum(centred * centred, 0) + difference * difference * (before * further / seen)
        own += difference * (further / seen)
        before += further
    out = (sample * tl.num_programs(0) + tl.program_id(0)) * channels + channel
    tl.store(mean + out, own, mask=channel < channels)
    tl.store(spread + out, squares, mask=channel < channels)


@triton.jit
def merged(
    mean,
    var,
    means,
    spreads,
    x,
    per_sample,
    parts,
    each,
    count,
    channels,
    pixels: tl.constexpr,
    side_by_side: tl.constexpr,
):
    """The moments of all pixels, from those of parts of ``each`` of them, the last of what is left."""
    sample = tl.program_id(2).to(tl.int64)
    channel = tl.program_id(1) * side_by_side + tl.arange(0, side_by_side)
    own, squares = tl.zeros((side_by_side,), tl.float32), tl.zeros((side_by_side,), tl.float32)
    before = 0.0
    for start in range(0, parts, pixels):
        part = start + tl.arange(0, pixels)
        inside = (part < parts)[:, None] & (channel < channels)[None, :]
        place = (sample * parts + part)[:, None] * channels + channel[None, :]
        counts = tl.minimum(tl.maximum(count - part * each, 0), each).to(tl.float32)
        further = tl.sum(counts, 0)
        value = tl.load(means + place, mask=inside, other=0)
        found = tl.sum(value * counts[:, None], 0) / further
        centred = tl.where(inside, value - found[None, :], 0)
        within = tl.sum(tl.load(spreads + place, mask=inside, other=0), 0)
        within += tl.sum(centred * centred * counts[:, None], 0)
        difference, seen = found - own, before + further
        squares += within + difference * difference * (before * further / seen)
        own += difference * (further / seen)
        before = seen
    pivot = tl.load(x + sample * per_sample + channel, mask=channel < channels, other=0).to(tl.float32)
    tl.store(mean + sample * channels + channel, pivot + own, mask=channel < channels)
    tl.store(var + sample * channels + channel, squares / count, mask=channel < channels)
