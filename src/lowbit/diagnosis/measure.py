"""What is measured at a quantizer: errors, codes, range against step."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from lowbit.diagnosis.places import Place
from lowbit.diagnosis.records import TensorRecord
from lowbit.errors import LowbitError
from lowbit.grid import Grid
from lowbit.quantizer import functional
from lowbit.quantizer.initialization import INITS, Statistics, find_initial, unit_init
from lowbit.quantizer.module import Quantizer

SAMPLE = 4096
"""Values of one call that the search for a better step looks at."""
RATIOS = tuple(2.0 ** (exponent / 2) for exponent in range(-12, 13))
"""Factors of the step that are tried."""
BINS = 48
"""Of a histogram."""
CREST = 5.0
"""A largest value so many times what nearly all others keep within is an outlier."""
_OUTLIERS_OF = 64  # elements of a step, below which "nearly all" means nothing
_BOUND = 1024.0


class Measured:
    """Accumulates over calls of a quantizer what its `TensorRecord` says.

    Args:
        place: where it stands.
        channel_dim: the dimension of the input's channels, or None where there are none to speak of.
    """

    def __init__(self, place: Place, channel_dim: int | None) -> None:
        self.place, self.channel_dim = place, channel_dim
        self.quantizer, self.grid = place.quantizer, _grid(place.quantizer)
        grid = self.grid
        self.count = 0
        self.first = 1 << 30  # its place in the order of first calls
        self.is_input = False
        self.low, self.high = math.inf, -math.inf
        self.sums = torch.zeros(5, dtype=torch.float64)  # Σx, Σx², Σ(x̂ − x)², clipped below, clipped above
        self.codes = torch.zeros(grid.qp - grid.qn + 1, dtype=torch.float64)
        self.samples: list[Tensor] = []  # [2, m]: (x − β)/s, and s
        self.alive: Tensor | None = None  # largest |x̂| of each channel
        self.outliers, self.crest = 0, 1.0

    @torch.no_grad()
    def update(self, x: Tensor, x_hat: Tensor) -> None:
        """Add what the quantizer was given, and made of it."""
        if x.numel() == 0:
            return
        quantizer, grid = self.quantizer, self.grid
        codes = quantizer.codes(x)
        viewed = quantizer.transform(x).float()
        step, offset = _step_and_offset(quantizer, x)
        if self.channel_dim is not None and x_hat.dim() > self.channel_dim:
            self._see_channels(x_hat)
        x_hat = x_hat.float().reshape(viewed.shape)
        low, high = (float(each) for each in viewed.aminmax())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise LowbitError(
                f"{quantizer.name} holds NaN or infinity: look for it in the network's weights and in the batches"
            )
        self.low, self.high = min(self.low, low), max(self.high, high)
        error = x_hat - viewed
        codes = codes.reshape(viewed.shape)
        half = 0.5005 * grid.spacing * step
        self.sums += torch.stack(
            [
                viewed.sum(dtype=torch.float64),
                viewed.square().sum(dtype=torch.float64),
                error.square().sum(dtype=torch.float64),
                ((codes == grid.qn) & (error > half)).sum().double(),
                ((codes == grid.qp) & (error < -half)).sum().double(),
            ]
        ).cpu()
        self.count += viewed.numel()
        self.codes += torch.bincount((codes.flatten() - grid.qn).long(), minlength=len(self.codes)).cpu()
        steps = step.expand_as(viewed)
        normalized = (viewed if offset is None else viewed - offset) / step
        index = _sample(viewed.numel()).to(viewed.device)
        self.samples.append(torch.stack([each.reshape(-1)[index] for each in (normalized, steps)]).cpu())
        if self.place.is_weight:
            self._see_outliers(normalized, step)

    def _see_channels(self, x_hat: Tensor) -> None:
        assert self.channel_dim is not None
        others = [dim for dim in range(x_hat.dim()) if dim != self.channel_dim % x_hat.dim()]
        peak = x_hat.abs().amax(others) if others else x_hat.abs()
        self.alive = peak if self.alive is None else torch.maximum(self.alive, peak)

    def _see_outliers(self, normalized: Tensor, step: Tensor) -> None:
        """Steps of which one value in two hundred stretches the range."""
        groups = _grouped(normalized.abs(), step)
        each = groups.shape[1]
        largest = groups.amax(1)
        if each >= _OUTLIERS_OF:
            most = groups.kthvalue(each - max(each // 200, 1), dim=1).values
        elif (
            groups.numel() >= _OUTLIERS_OF
        ):  # of few values one is always the largest by far: beside those of all steps
            everywhere = groups * step.reshape(-1, 1)
            most = everywhere.flatten().kthvalue(groups.numel() - max(groups.numel() // 200, 1)).values / step.reshape(
                -1
            )
        else:
            return
        reach = max(self.grid.qp, 1)
        stretched = (largest > CREST * most) & (largest > 0.6 * reach) & (most < 0.3 * reach) & (largest > 0)
        self.outliers = int(stretched.sum())
        if self.outliers:
            self.crest = float((largest / most.clamp_min(1e-12))[stretched].max())

    def _expected(self, sample: Tensor) -> tuple[float | None, bool]:
        """The initial step over what the method's rule makes of this data, and whether it makes the grid signed."""
        quantizer = self.quantizer
        if not self.is_input or quantizer.raw_step.numel() > 1 or quantizer.method.range is not None:
            return None, self.grid.signed
        x = (sample[0] - float(quantizer.zero_point)) * sample[1]
        if not bool(x.any()):
            return None, self.grid.signed
        initial = find_initial(quantizer, torch.cat([x, torch.tensor([self.low, self.high])]))
        return float(quantizer.initial_step) / float(initial.step), initial.grid.signed

    def record(self, float_alive: Tensor | None) -> TensorRecord | None:
        """The record; None where the quantizer was never called.

        `float_alive` is largest |x| per channel in full precision.
        """
        if self.count == 0:
            return None
        quantizer, grid, place = self.quantizer, self.grid, self.place
        total, squares, noise, below, above = self.sums.tolist()
        mean = total / self.count
        used = self.codes.nonzero().flatten()
        sample = torch.cat(self.samples, 1)
        best_ratio, best_noise, sampled_noise, sampled = _best_ratio(sample, quantizer)
        sqnr = decibels(squares, noise)
        best_offset = None
        if quantizer.method.init is unit_init and quantizer.method.step_gradient is None:
            best_ratio, best_noise = 1.0, sampled_noise  # DoReFa's range: neither data nor training has a say in it
        elif not place.is_weight:
            best_offset = _best_offset(sample, quantizer, decibels(sampled, sampled_noise), sqnr)
        ratio, at_bound = _trajectory(quantizer)
        expected, expected_signed = self._expected(sample)
        dead = _dead(self.alive, float_alive)
        values, values_low, values_high = _histogram(sample[0], grid.qn, grid.qp)
        return TensorRecord(
            layer=place.layer,
            tensor=place.tensor,
            is_weight=place.is_weight,
            is_input=self.is_input,
            bits=grid.bits,
            signed=grid.signed,
            qn=grid.qn,
            qp=grid.qp,
            offset=quantizer.uses_offset,
            steps=quantizer.raw_step.numel(),
            step=float(sample[1].mean()),
            step_ratio=ratio,
            at_bound=at_bound,
            expected=expected,
            expected_signed=expected_signed,
            low=self.low,
            high=self.high,
            std=math.sqrt(max(squares / self.count - mean**2, 0.0)),
            sqnr=sqnr,
            best_sqnr=sqnr + max(decibels(sampled, best_noise) - decibels(sampled, sampled_noise), 0.0),
            best_ratio=best_ratio,
            best_offset_sqnr=best_offset,
            clipped_low=below / self.count,
            clipped_high=above / self.count,
            used_codes=len(used),
            codes=2 if grid.binary else len(self.codes),
            first_code=int(used[0]) + grid.qn,
            last_code=int(used[-1]) + grid.qn,
            zero_point=float(quantizer.zero_point.mean()),
            outliers=self.outliers,
            crest=self.crest,
            channels=0 if self.alive is None else len(self.alive),
            dead_channels=dead,
            values_low=values_low,
            values_high=values_high,
            values=values,
            code_counts=tuple((self.codes / self.count).tolist()),
        )


def decibels(signal: float, noise: float) -> float:
    """10·log10(signal/noise), within ±120; 0 without any signal."""
    if signal <= 0:
        return 0.0
    return 10 * math.log10(min(max(signal / max(noise, signal * 1e-12), 1e-12), 1e12))


def _grid(quantizer: Quantizer) -> Grid:
    assert quantizer.grid is not None  # `places` gives initialized ones
    return quantizer.grid


def _step_and_offset(quantizer: Quantizer, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """s and β as x is quantized with them, broadcasting against `quantizer.transform(x)`."""
    step = quantizer.step_for(x).float()
    return step, -quantizer.zero_point * step if quantizer.uses_offset else None


def _best_ratio(sample: Tensor, quantizer: Quantizer) -> tuple[float, float, float, float]:
    """(the factor of the steps with the least noise, that noise, noise at factor 1, signal), over the sample."""
    v, s = sample
    grid = _grid(quantizer)
    weights = s.square().double()
    noises = []
    for ratio in RATIOS:
        x_hat = functional.values(v, torch.tensor(ratio), None, grid.qn, grid.qp, grid=grid)
        noises.append(((x_hat - v).square().double() * weights).sum())
    noise = torch.stack(noises)
    best = int(noise.argmin())
    now = float(noise[RATIOS.index(1.0)])
    x = v if not quantizer.uses_offset else v - float(quantizer.zero_point.mean())
    return RATIOS[best], float(noise[best]), now, float((x.square().double() * weights).sum())


def _best_offset(sample: Tensor, quantizer: Quantizer, sampled_sqnr: float, sqnr: float) -> float | None:
    """The signal-to-noise ratio with the least-squares step and offset, of an activation that may go negative."""
    if not (quantizer.uses_offset or _grid(quantizer).signed) or quantizer.raw_step.numel() > 1:
        return None
    x = (sample[0] - float(quantizer.zero_point.mean())) * sample[1]
    if len(x) > SAMPLE:
        x = x[:: -(-len(x) // SAMPLE)]
    grid = _grid(quantizer)
    step, offset = INITS["least-squares"](Statistics.of(x), grid, True)
    noise = (functional.values(x, step, offset, grid.qn, grid.qp, grid=grid) - x).square().sum()
    return sqnr + max(decibels(float(x.square().sum()), float(noise)) - sampled_sqnr, 0.0)


def _trajectory(quantizer: Quantizer) -> tuple[float, bool]:
    """The step over its start, of the step that has moved most, and whether one is at its bounds or not finite."""
    if quantizer.method.range is not None or quantizer.method.step_gradient is None:
        return 1.0, False
    moved = (quantizer.step / quantizer.initial_step).flatten().log2()
    ratio = float(moved[moved.abs().argmax()].exp2())
    return ratio, quantizer.diverged or bool((moved.abs() > math.log2(_BOUND * 0.98)).any())


def _dead(alive: Tensor | None, float_alive: Tensor | None) -> tuple[int, ...]:
    """Channels of which nothing is left, but in full precision something: a tenth of the median of those that live."""
    if alive is None:
        return ()
    dead = alive == 0
    if float_alive is not None and float_alive.shape == alive.shape:
        living = float_alive[float_alive > 0]
        dead &= float_alive > (0.1 * living.median() if len(living) else 0.0)
    return tuple(dead.nonzero().flatten().tolist())


def _histogram(v: Tensor, qn: int, qp: int) -> tuple[tuple[float, ...], float, float]:
    """Shares of values in steps, and from where to where.

    That is the values' own range, within the grid and half its width more at each side.
    """
    margin = max((qp - qn) / 2, 1.0)
    low, high = max(float(v.min()), qn - margin), min(float(v.max()), qp + margin)
    if not high > low:
        low, high = min(low, high) - 0.5, max(low, high) + 0.5
    counts = torch.histc(v.float().clamp(low, high), BINS, low, high)
    return tuple((counts / len(v)).tolist()), low, high


def _grouped(x: Tensor, step: Tensor) -> Tensor:
    """x as [groups, elements that share a step]."""
    aligned = (1,) * (x.dim() - step.dim()) + tuple(step.shape)
    kept = [dim for dim, size in enumerate(aligned) if size > 1]
    shared = [dim for dim, size in enumerate(aligned) if size == 1]
    return x.permute(kept + shared).reshape(step.numel(), -1)


@lru_cache(maxsize=256)
def _sample(count: int) -> Tensor:
    """Places of a few thousand of `count` values, the same ones for the same count; no random state is touched."""
    if count <= SAMPLE:
        return torch.arange(count)
    return torch.randint(count, (SAMPLE,), generator=torch.Generator().manual_seed(0))
