"""The values from which grid, step and offset are learned on: what is observed, and the rules that find them from it.

A rule is a function `(statistics, grid, offset: bool) -> (step, offset)`; it returns float32 tensors with one entry per
step. `Statistics` is all it may look at, gathered over one tensor (weights) or over batches (activations), and over all
processes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from lowbit.errors import LowbitError, did_you_mean
from lowbit.grid import Grid

if TYPE_CHECKING:
    from lowbit.quantizer.module import Quantizer

Init = Callable[["Statistics", Grid, bool], tuple[Tensor, Tensor]]

_SAMPLE_PER_BATCH = 4096


class Statistics:
    """Range, mean absolute value, moments and a sample of data, for each group of elements that share a step.

    Args:
        step_shape: the step's shape, which broadcasts against the data; () is one group.

    `low`, `high`, `mean_abs`, `mean`, `std` have one entry per group; `sample` is [groups, m].
    """

    low: Tensor
    high: Tensor
    _sums: Tensor  # [3, groups]: |x|, x, x²; like `low` and `high` not there before the first tensor

    def __init__(self, step_shape: Sequence[int] = ()) -> None:
        self.step_shape = tuple(step_shape)
        self.count = 0
        self._samples: list[Tensor] = []

    @classmethod
    def of(cls, x: Tensor, step_shape: Sequence[int] = ()) -> Statistics:
        """The statistics of one tensor."""
        statistics = cls(step_shape)
        statistics.update(x)
        return statistics

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Add the elements of one tensor."""
        x = x.detach().float()
        # One group is reduced as it lies in memory; as a matrix, another order than the contiguous one would be copied.
        one = math.prod(self.step_shape) == 1
        groups = x if one else _groups(x, self.step_shape)
        over = None if one else 1

        def total(each: Tensor) -> Tensor:
            return each.sum(over).reshape(-1)

        low, high = (reduce(groups, () if one else 1).reshape(-1) for reduce in (torch.amin, torch.amax))
        count = x.numel() // len(low)
        sums = torch.zeros(3, len(low), dtype=torch.float64, device=x.device)
        sums[0] = total(groups.abs())  # not a norm, whose plain running sum is off by 5e-5 after a million elements
        # The sum of squares from the deviations, in which nothing large is subtracted in single precision.
        # torch.var_mean takes five times as long on a CPU.
        sums[1] = total(groups)
        mean = sums[1] / count
        deviations = groups - (mean.float() if one else mean.float()[:, None])
        sums[2] = total(deviations.square_()) + mean.square() * count
        self._samples.append(_sample(groups, len(low)))
        if self.count == 0:
            self._sums, self.low, self.high = sums, low, high
        else:
            self._sums += sums
            self.low, self.high = torch.minimum(self.low, low), torch.maximum(self.high, high)
        self.count += count

    def synchronise(self) -> None:
        """Combine with the other processes' statistics, so that all of them hold those of all the data."""
        if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
            return
        count = torch.tensor(self.count, dtype=torch.int64, device=self.low.device)
        sample = self.sample
        for tensor, operation in (
            (count, dist.ReduceOp.SUM),
            (self._sums, dist.ReduceOp.SUM),
            (self.low, dist.ReduceOp.MIN),
            (self.high, dist.ReduceOp.MAX),
        ):
            dist.all_reduce(tensor, operation)
        size = torch.tensor(sample.shape[1], device=sample.device)
        dist.all_reduce(size, dist.ReduceOp.MIN)  # equal sizes, as gathering wants
        mine = sample[:, : int(size)].contiguous()
        gathered = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, mine)
        self.count, self._samples = int(count), gathered

    @property
    def mean_abs(self) -> Tensor:
        return (self._sums[0] / self.count).float()

    @property
    def mean(self) -> Tensor:
        return (self._sums[1] / self.count).float()

    @property
    def std(self) -> Tensor:
        mean = self._sums[1] / self.count
        return (self._sums[2] / self.count - mean**2).clamp_min(0).sqrt().float()

    @property
    def max_abs(self) -> Tensor:
        return torch.maximum(self.high, -self.low)

    @property
    def sample(self) -> Tensor:
        return torch.cat(self._samples, dim=1)


class Initial(NamedTuple):
    """What a quantizer is initialized with; steps and offset have the step's shape.

    `lsq_step` is what `lsq_init` gives for the data, whatever the rule: the step that LSQ's g suits. None where it is
    not known.
    """

    grid: Grid
    uses_offset: bool
    step: Tensor
    offset: Tensor
    lsq_step: Tensor | None = None


def find_initial(quantizer: Quantizer, data: Tensor | Statistics) -> Initial:
    """Grid, step and offset for the data, by the rule of the quantizer's method; the quantizer stays as it is.

    Raises:
        LowbitError: the data is empty, holds NaN or infinity, or is all zero, so that no step can be found.
    """
    name, method = quantizer.name, quantizer.method
    if isinstance(data, Tensor):
        if data.numel() == 0:
            raise LowbitError(f"{name} is empty: there is nothing to quantize; skip the layer by a rule")
        statistics = Statistics.of(quantizer.transform(data.detach()), quantizer.raw_step.shape)
    else:
        statistics = data
    if not bool(torch.isfinite(statistics.low).all() and torch.isfinite(statistics.high).all()):
        raise LowbitError(
            f"{name} holds NaN or infinity: look for it in the network's weights and in the calibration data"
        )
    if not bool((statistics.max_abs > 0).any()):
        raise LowbitError(
            f"{name} is all zero: no step can be found from it; give calibration data that reaches it, start from a "
            "trained network (a batch-norm that starts with γ = 0 makes zeros), or skip the layer by a rule"
        )
    negative = bool((statistics.low < 0).any())
    uses_offset = method.offset == "always" or (method.offset == "negative" and negative)
    signed = next(s for s in (quantizer.signed, method.signed, negative and not uses_offset) if s is not None)
    grid = Grid(quantizer.bits, signed, quantizer.narrow and signed and quantizer.bits > 1)
    if not signed and not uses_offset and not bool((statistics.high > 0).any()):
        raise LowbitError(
            f"{name}: an unsigned grid without offset holds none of its data, which is all negative: use a signed grid"
        )
    step, offset = method.init(statistics, grid, uses_offset)
    # Beyond these the step's bounds, a factor 1024 away, would leave float32.
    usable = (step > 2.0**-100) & (step < 2.0**100)
    if not bool(usable.any()):
        raise LowbitError(
            f"{name}: no positive step for the {grid} grid fits data in [{float(statistics.low.min()):.4g}, "
            f"{float(statistics.high.max()):.4g}]; use a grid with the data's sign, or skip the layer by a rule"
        )
    # A channel that is all zero (pruned) takes any step; the others' mean keeps it alive if it grows back.
    step = torch.where(usable, step, step[usable].mean())
    shape = quantizer.raw_step.shape
    lsq_step, _ = lsq_init(statistics, grid, uses_offset)
    return Initial(grid, uses_offset, step.reshape(shape), offset.reshape(shape), lsq_step.reshape(shape))


def lsq_init(statistics: Statistics, grid: Grid, offset: bool) -> tuple[Tensor, Tensor]:
    """s = 2·mean|x| / sqrt(qp), β = 0 (LSQ, §2.1)."""
    step = 2 * statistics.mean_abs / math.sqrt(grid.qp)
    return step, torch.zeros_like(step)


def three_sigma_init(statistics: Statistics, grid: Grid, offset: bool) -> tuple[Tensor, Tensor]:
    """s = max(|μ − 3σ|, |μ + 3σ|) / max(qp, −qn), β = 0: three sigmas reach to the end of the grid.

    On the signed grid of b bits the divisor is the 2^(b−1) of LSQ+ (Eq. 11, weights). On an unsigned one, which the
    paper's formula is not for, it is 2^b − 1.
    """
    mean, std = statistics.mean, statistics.std
    step = torch.maximum((mean - 3 * std).abs(), (mean + 3 * std).abs()) / max(grid.qp, -grid.qn)
    return step, torch.zeros_like(step)


def max_init(statistics: Statistics, grid: Grid, offset: bool) -> tuple[Tensor, Tensor]:
    """The smallest step whose range holds all the data, β = 0 (min-max)."""
    return covering_step(statistics.low, statistics.high, grid), torch.zeros_like(statistics.high)


def spacious_init(statistics: Statistics, grid: Grid, offset: bool) -> tuple[Tensor, Tensor]:
    """Four times the step of `max_init`: for grids of 16 bits, where room is worth more than steps.

    The data is to move.
    """
    step, beta = max_init(statistics, grid, offset)
    return 4 * step, beta


def unit_init(statistics: Statistics, grid: Grid, offset: bool) -> tuple[Tensor, Tensor]:
    """s = 1/qp, β = 0: the range [0, 1], or [−1, 1] (DoReFa, activations)."""
    return torch.full_like(statistics.high, 1 / grid.qp), torch.zeros_like(statistics.high)


def least_squares_init(statistics: Statistics, grid: Grid, offset: bool) -> tuple[Tensor, Tensor]:
    """The step (and offset, where there is one) with the least ‖x̂ − x‖² over the sample (LSQ+, Eq. 12, activations).

    LSQ+ takes gradient steps; this searches instead, over ranges inside the one the data has, coarse to fine: it
    cannot diverge, and needs no learning rate.
    """
    found = [
        _search(group, float(low), float(high), grid, offset)
        for group, low, high in zip(statistics.sample, statistics.low, statistics.high)
    ]
    step, beta = torch.tensor(found, dtype=torch.float32, device=statistics.high.device).unbind(1)
    return step, beta


INITS: dict[str, Init] = {
    "lsq": lsq_init,
    "least-squares": least_squares_init,
    "three-sigma": three_sigma_init,
    "max": max_init,
}
"""The rules that are chosen by name."""


def get_init(init: str | Init) -> Init:
    """The rule of that name, or the rule itself.

    Raises:
        LowbitError: no such rule; the message names those there are.
    """
    if callable(init):
        return init
    if init in INITS:
        return INITS[init]
    raise LowbitError(
        f"unknown rule of initialization {init!r}.{did_you_mean(str(init), INITS)} Known are {', '.join(INITS)}"
    )


def covering_step(low: Tensor, high: Tensor, grid: Grid) -> Tensor:
    """The smallest step for which s·qn ≤ low and high ≤ s·qp (the part below zero is ignored on an unsigned grid)."""
    step = high.clamp_min(0) / grid.qp
    return torch.maximum(step, low.clamp_max(0) / grid.qn) if grid.qn else step


def _search(x: Tensor, low: float, high: float, grid: Grid, with_offset: bool) -> tuple[float, float]:
    """Scan fractions of the range [low, high] (both ends with an offset, the step without) and zoom in on the best."""
    largest = float(covering_step(torch.tensor(low), torch.tensor(high), grid))
    centre = widths = (0.5,) * (2 if with_offset else 1)
    points = 17 if with_offset else 65

    best, best_error = None, math.inf
    for _ in range(4):
        axes = [torch.linspace(max(c - w, 0.0), min(c + w, 1.0), points) for c, w in zip(centre, widths)]
        candidates = torch.cartesian_prod(*axes).reshape(-1, len(axes)).to(x.device)
        if with_offset:
            bottom, top = candidates[:, 0] * low, candidates[:, 1] * high
            step = (top - bottom) / (grid.qp - grid.qn)
            beta = bottom - step * grid.qn
        else:
            step, beta = candidates[:, 0] * largest, torch.zeros(len(candidates), device=x.device)
        usable = step > 0
        candidates, step, beta = candidates[usable], step[usable], beta[usable]
        if len(step) == 0:
            break
        error = torch.cat([_error(x, s, b, grid) for s, b in zip(step.split(32), beta.split(32))])
        index = int(error.argmin())
        if float(error[index]) < best_error:
            best_error, best = float(error[index]), (float(step[index]), float(beta[index]))
            centre = tuple(candidates[index].tolist())
        widths = tuple(2.5 * w / (points - 1) for w in widths)
        points = 9
    return best if best is not None else (0.0, 0.0)


def _error(x: Tensor, step: Tensor, beta: Tensor, grid: Grid) -> Tensor:
    """mean (x̂ − x)² for each candidate [k] over x [m]."""
    step, beta = step[:, None], beta[:, None]
    # Levels qn + spacing·i: the whole grid, the binary one too.
    index = (((x - beta) / step - grid.qn) / grid.spacing).round_().clamp_(0, (grid.qp - grid.qn) // grid.spacing)
    return ((index * grid.spacing + grid.qn) * step + beta - x).square_().mean(dim=1)


def _groups(x: Tensor, step_shape: Sequence[int]) -> Tensor:
    """x as [groups, elements]: the dimensions along which the step varies come first."""
    aligned = (1,) * (x.dim() - len(step_shape)) + tuple(step_shape)
    kept = [dim for dim, size in enumerate(aligned) if size > 1]
    shared = [dim for dim, size in enumerate(aligned) if size == 1]
    return x.permute(kept + shared).reshape(math.prod(step_shape), -1) if kept else x.reshape(1, -1)


def _sample(groups: Tensor, number: int) -> Tensor:
    """[number, m]: a few thousand elements of each group, the same ones for the same size (no random state is touched).

    `groups` is [number, elements], or any shape where it is one group.
    """
    count = groups.numel() // number
    if count <= _SAMPLE_PER_BATCH:
        return groups.reshape(number, count).clone()
    if number > 1:
        return groups[:, _places((count,))[0].to(groups.device)]
    return groups[tuple(place.to(groups.device) for place in _places(tuple(groups.shape)))][None]


@lru_cache(maxsize=64)
def _places(shape: tuple[int, ...]) -> tuple[Tensor, ...]:
    """Random places in a tensor of that shape, an index per dimension."""
    generator = torch.Generator().manual_seed(0)
    index = torch.randint(math.prod(shape), (_SAMPLE_PER_BATCH,), generator=generator)
    return torch.unravel_index(index, shape)
