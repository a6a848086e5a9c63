"""A range coder for quantisation indices under a parametric model that is sent along.

The coder is constriction's (https://bamler-lab.github.io/constriction/). Every class of indices (one channel, one band
of columns) gets its own standard deviation. A latent of 1,024 values affords such a model only if it is small, so
levels of standard deviation are sums, one term per channel and one per band, and what departs from the sum is sent
only where it saves more than it costs.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import numpy as np
from constriction import stream
from numpy.typing import NDArray
from scipy.special import expit, ndtr

LIMIT = 1 << 22  # indices lie below this in magnitude: float32 still separates such levels well

Integers = NDArray[np.int32]
Floats = NDArray[np.float64]

# A token is a magnitude up to 15; from there on an exponent and three more bits, the lower bits being sent as they are.
_DIRECT, _MAGNITUDES = 16, 176
_ZERO = _MAGNITUDES - 1  # the token of 0; negative indices below it, positive ones above
_LEVELS = 112  # level 0: nothing but zeros; level m: standard deviation 2^((m - 13) / 4), a quarter octave apart
_FLOOR = 2.0**-24  # least probability the range coder gives a token
_NEVER = 1e9  # bits
_FEW = 1 << 15  # tokens, up to which every shape is tried
_QUARTERS = 4  # centres are sent in quarters of an index
_CDFS: tuple[Any, ...] = (
    ndtr,  # Gaussian
    lambda x: expit(x * np.pi / np.sqrt(3)),  # logistic
    lambda x: np.where(
        x < 0, 0.5 * np.exp(-np.sqrt(2) * np.abs(x)), 1 - 0.5 * np.exp(-np.sqrt(2) * np.abs(x))
    ),  # Laplace
)
_SIDE_SHAPE = 2


class Model(NamedTuple):
    """The distribution of every class: one shape, centres in quarters of an index, levels of standard deviation."""

    shape: int
    centres: Integers  # (channels,)
    channels: Integers  # (channels,)
    bands: Integers  # (bands,)
    rest: Integers  # (channels, bands)

    @property
    def levels(self) -> Integers:
        """Level of every class, (channels, bands)."""
        return _sum_levels(self.channels, self.bands) + self.rest

    def __repr__(self) -> str:
        return f"Model({len(self.channels)} channels, {len(self.bands)} bands, shape {self.shape})"


def encode(indices: Integers, widths: tuple[int, ...], centred: bool) -> bytes:
    """Range-code indices (channels, values), the model first.

    Args:
        indices: each below `LIMIT` in magnitude, columns ordered by band.
        widths: columns of each band, adding up to `values`.
        centred: whether to look for a centre other than zero.
    """
    fits = []
    for centres in _centres(indices) if centred else [np.zeros(len(indices), np.int32)]:
        shifted = indices - (centres // _QUARTERS)[:, None]
        tokens = _tokens(shifted)
        fits += [(bits, model, shifted, tokens) for bits, model in _fits(tokens, widths, centres)]
    _, model, shifted, tokens = min(fits, key=lambda fit: fit[0])

    encoder = stream.queue.RangeEncoder()
    encoder.encode(np.array([model.shape], np.int32), stream.model.Uniform(len(_CDFS)))
    for side in (model.centres, model.channels, model.bands):
        _put_side(encoder, np.diff(side, prepend=0))
    _put_side(encoder, model.rest.ravel())
    small = np.abs(shifted).max() < _DIRECT  # then tokens say all
    for channel, level, columns in _classes(model.levels, widths):
        table = _table(model.shape, model.centres[channel] % _QUARTERS, level)
        if small:
            encoder.encode(tokens[channel, columns], table)
        else:
            _put(encoder, shifted[channel, columns], tokens[channel, columns], table)
    return encoder.get_compressed().astype(">u4").tobytes()


def decode(payload: bytes, channels: int, widths: tuple[int, ...]) -> Integers:
    """Inverse of `encode`: indices (channels, values).

    Raises:
        ValueError: if `encode` cannot have made the payload.
    """
    if len(payload) % 4:
        raise ValueError(f"coded latents hold a range code of {len(payload)} bytes, which is no multiple of 4")
    decoder = stream.queue.RangeDecoder(np.frombuffer(payload, ">u4").astype(np.uint32))
    try:
        model = _take_model(decoder, channels, len(widths))
        indices = np.zeros((channels, sum(widths)), np.int32)
        for channel, level, columns in _classes(model.levels, widths):
            table = _table(model.shape, model.centres[channel] % _QUARTERS, level)
            indices[channel, columns] = _take(decoder, columns.stop - columns.start, table)
    except AssertionError as error:  # the coder's own word for bits that no encoder writes
        raise ValueError(f"coded latents hold no range code ({error})") from None
    indices += (model.centres // _QUARTERS)[:, None]
    _check_below(LIMIT, indices)
    return indices


def _take_model(decoder: Any, channels: int, bands: int) -> Model:
    shape = int(decoder.decode(stream.model.Uniform(len(_CDFS)), 1)[0])
    sums = [np.cumsum(_take_side(decoder, size), dtype=np.int64) for size in (channels, channels, bands)]
    rest = _take_side(decoder, channels * bands).reshape(channels, bands)
    _check_below(_QUARTERS * LIMIT, sums[0])
    _check_below(LIMIT, *sums[1:], rest)
    centres, rows, columns = (side.astype(np.int32) for side in sums)
    model = Model(shape, centres, rows, columns, rest)
    if model.levels.min() < 0 or model.levels.max() >= _LEVELS:
        raise ValueError(f"coded latents must tell levels 0..{_LEVELS - 1} of standard deviation")
    return model


def _check_below(limit: int, *numbers: NDArray[Any]) -> None:
    if any(np.abs(each).max() > limit for each in numbers):
        raise ValueError(f"coded latents hold integers beyond {limit}")


def _classes(levels: Integers, widths: tuple[int, ...]) -> Iterator[tuple[int, int, slice]]:
    """Channel, level and columns of every class that holds anything but zeros."""
    bands = [slice(*ends) for ends in pairwise(accumulate(widths, initial=0))]
    for channel, row in enumerate(levels.tolist()):
        yield from ((channel, level, columns) for level, columns in zip(row, bands, strict=True) if level)


# --- tokens


def _tokens(indices: Integers) -> Integers:
    """Token of every index."""
    tokens = _ZERO + indices
    large = np.flatnonzero(np.abs(indices) >= _DIRECT)
    if large.size:
        values = indices.ravel()[large]
        bits = np.frexp(values.astype(np.float32))[1] - 4
        tokens.ravel()[large] = _ZERO + np.sign(values) * ((np.abs(values) >> bits) + 8 * bits)
    return tokens


def _open_bits(magnitudes: Integers) -> Integers:
    """How many low bits tokens of these magnitudes leave open."""
    return np.maximum(magnitudes // 8 - 1, 0)


@lru_cache(1)
def _edges() -> Floats:
    """Lower edges of the tokens, and the upper edge of the last, in units of the index."""
    token = np.arange(1, _MAGNITUDES + 1)
    bits = _open_bits(token.astype(np.int32))
    upper = ((token - 8 * bits) << bits) - 0.5
    return np.concatenate([-upper[::-1], upper])


def _put(encoder: Any, indices: Integers, tokens: Integers, table: Any) -> None:
    encoder.encode(tokens, table)
    magnitudes = np.abs(tokens - _ZERO)
    if magnitudes.max() >= _DIRECT:
        bits = _open_bits(magnitudes)
        low = np.abs(indices) & ((1 << bits) - 1)
        for count in np.unique(bits[bits > 0]).tolist():
            encoder.encode(low[bits == count], stream.model.Uniform(1 << count))


def _take(decoder: Any, size: int, table: Any) -> Integers:
    signed = decoder.decode(table, size) - _ZERO
    magnitudes = np.abs(signed)
    if magnitudes.max() < _DIRECT:
        return signed
    bits = _open_bits(magnitudes)
    magnitudes = (magnitudes - 8 * bits) << bits
    for count in np.unique(bits[bits > 0]).tolist():
        open_ = bits == count
        magnitudes[open_] += decoder.decode(stream.model.Uniform(1 << count), int(open_.sum()))
    return np.sign(signed) * magnitudes


def _put_side(encoder: Any, side: Integers) -> None:
    """Integers of the model itself: a level, then Laplacian tokens around zero."""
    side = side.astype(np.int32)
    tokens = _tokens(side)
    level = int(_costs(_SIDE_SHAPE, 0)[tokens].sum(0).argmin())
    encoder.encode(np.array([level], np.int32), stream.model.Uniform(_LEVELS))
    if level:
        _put(encoder, side, tokens, _table(_SIDE_SHAPE, 0, level))


def _take_side(decoder: Any, size: int) -> Integers:
    level = int(decoder.decode(stream.model.Uniform(_LEVELS), 1)[0])
    return _take(decoder, size, _table(_SIDE_SHAPE, 0, level)) if level else np.zeros(size, np.int32)


# --- the model


@lru_cache
def _probabilities(shape: int, quarter: int) -> Floats:
    """Probability of every token at every level, (tokens, levels), for a centre at `quarter` quarters."""
    deviations = 2.0 ** ((np.arange(1, _LEVELS) - 13) / 4)
    scaled = (_edges()[:, None] - quarter / _QUARTERS) / deviations
    cdf = _CDFS[shape]
    lower, upper = scaled[:-1], scaled[1:]
    mirrored = lower > 0  # differences of small tails keep their precision, those of numbers near one would not
    inside = np.where(mirrored, cdf(-lower) - cdf(-upper), cdf(upper) - cdf(lower))
    zeros = np.zeros((len(inside), 1))
    zeros[_ZERO] = 1
    return np.hstack([zeros, inside])


@lru_cache
def _costs(shape: int, quarter: int) -> Floats:
    """Bits of every token at every level, (tokens, levels)."""
    bits = -np.log2(np.maximum(_probabilities(shape, quarter), _FLOOR))
    bits[:, 0] = _NEVER
    bits[_ZERO, 0] = 0
    return bits


@lru_cache(4096)
def _table(shape: int, quarter: int, level: int) -> Any:
    # Rounded, so that another machine's last bit of exp or erf does not change the code.
    probabilities = np.rint(_probabilities(shape, quarter)[:, level] / _FLOOR)
    return stream.model.Categorical(probabilities, perfect=False)


def _centres(indices: Integers) -> list[Integers]:
    """Candidates: the mean of every channel, and where that may cost more than it saves, one centre for all."""
    means = np.rint(_QUARTERS * indices.mean(1)).astype(np.int32)
    return [means] if indices.shape[1] > 1024 else [means, np.full_like(means, np.median(means))]


def _histogram(tokens: Integers, widths: tuple[int, ...]) -> Floats:
    """How often each class holds each token, (channels, bands, tokens)."""
    shape = len(tokens), len(widths), 2 * _MAGNITUDES - 1
    label = np.arange(len(tokens))[:, None] * len(widths) + np.repeat(np.arange(len(widths)), widths)
    counts = np.bincount((label * shape[2] + tokens).ravel(), minlength=np.prod(shape))
    return counts.reshape(shape).astype(np.float64)


def _fits(tokens: Integers, widths: tuple[int, ...], centres: Integers) -> Iterator[tuple[float, Model]]:
    """Models around these centres, the cheapest of its shape each, with their cost in bits, side information included.

    Every shape is tried where there are few tokens; of many, that which is cheapest if channels share the levels of
    their bands.
    """
    counts = _histogram(tokens, widths)
    seen = np.flatnonzero(counts.any((0, 1)))
    counts, quarters = counts[:, :, seen], (centres % _QUARTERS).tolist()
    priced = {
        shape: np.stack([c @ _costs(shape, q)[seen] for c, q in zip(counts, quarters, strict=True)])
        for shape in range(len(_CDFS))
    }
    if tokens.size > _FEW:
        best = min(priced, key=lambda shape: priced[shape].sum(0).min(1).sum())
        priced = {best: priced[best]}
    for shape, costs in priced.items():
        channels, bands = _additive(costs)
        base = _sum_levels(channels, bands)
        levels = (costs + _side_bits(np.arange(_LEVELS) - base[..., None])).argmin(2).astype(np.int32)
        model = Model(shape, centres, channels, bands, levels - base)
        sides = np.concatenate([np.diff(side, prepend=0) for side in model[1:4]] + [model.rest.ravel()])
        yield np.take_along_axis(costs, levels[..., None], 2).sum() + _side_bits(sides).sum(), model


def _additive(costs: Floats) -> tuple[Integers, Integers]:
    """Levels of channels and bands whose sums are cheapest, by turns. costs: (channels, bands, levels)."""
    number, count, _ = costs.shape
    channel, band = np.arange(number), np.arange(count)
    levels, shifts = np.arange(_LEVELS), np.arange(-_LEVELS // 4, _LEVELS // 4)
    bands = _smooth(costs.sum(0), levels)
    for _ in range(2):
        sums = np.clip(bands[:, None] + shifts, 0, _LEVELS - 1)
        channels = _smooth(costs[:, band[:, None], sums].sum(1), shifts)
        sums = np.clip(channels[:, None] + levels, 0, _LEVELS - 1)
        bands = _smooth(costs[channel[:, None], :, sums].sum(0).T, levels)
    return channels, bands


def _smooth(costs: Floats, values: NDArray[np.int64]) -> Integers:
    """One of `values`, which are consecutive, for each row of costs (rows, values); changes from row to row cost."""
    chosen = [int(costs[0].argmin())]
    for row in costs[1:]:
        zero = _LEVELS - chosen[-1]  # where in the list of prices no change lies, for place 0
        chosen.append(int((row + _change_bits()[zero : zero + len(row)]).argmin()))
    return values[chosen].astype(np.int32)


@lru_cache(1)
def _change_bits() -> Floats:
    """Prices of the changes -_LEVELS to _LEVELS - 1."""
    return _side_bits(np.arange(-_LEVELS, _LEVELS))


def _sum_levels(channels: Integers, bands: Integers) -> Integers:
    return np.clip(channels[:, None] + bands, 0, _LEVELS - 1).astype(np.int32)


def _side_bits(values: NDArray[Any]) -> Floats:
    """Rough price of an integer of the model; zero is common."""
    return np.where(values == 0, 0.3, 2 + 2 * np.log2(1 + np.abs(values)))


def empirical_entropy(indices: Integers) -> float:
    """Bits of indices (classes, values) by the empirical distribution of each class; flatten them for a single one.

    A bound for a coder without memory that knows these distributions for free. With few values a class it is far too
    low, since the distributions themselves would have to be sent.
    """
    total = 0.0
    for row in np.atleast_2d(indices):
        counts = np.unique(row, return_counts=True)[1]
        total -= float(counts @ np.log2(counts / row.size))
    return total
