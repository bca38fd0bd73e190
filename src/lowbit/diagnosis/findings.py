"""What the measurements say: rules over plain data, one per kind.

The severity of a finding is in decibels: about what the fault costs in signal-to-noise at its tensor, and more where it
can be no effect of another fault: weights do not depend on what comes before them. What one finding explains is
not told again by another: a tensor, and a layer, has the most serious one alone.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lowbit.diagnosis.kinds import REMEDIES, Kind
from lowbit.diagnosis.records import LayerRecord, NormRecord, TensorRecord

# Thresholds.
GAIN = 6.0  # dB that a better step must bring,
FAR = 2.7  # by what factor it must differ,
NOISY = 20.0  # and how few dB the tensor must have: with more, nothing is to be gained that a network would notice
POOR = 8.0  # dB that a signed grid gives at best, and an offset is asked for; a normal distribution has 8.2 at 2 bits
NEGATIVE = 0.05  # share of values that an unsigned grid cuts off below
FEWER_BITS = 3
DRIFT = 0.1  # of batch-norm statistics; beside a reference whose own drift is less:
DRIFT_BESIDE = 0.012
DRIFT_RATIO = 3.0  # times the reference's, which may have seen its images otherwise (random crops, say)
OTHER_DATA = 3.0  # factor between the initial step of the input and what its rule makes of these batches
_UPSTREAM = 200.0  # severity of what shifts all that comes behind it,
_FOREMOST = 100.0  # of the first activation that misses its grid: those behind it may do so because it does,
_OWN = 300.0  # and of what no tensor before it can have caused
OSCILLATING = 0.1
_FIRST = 1000.0  # severity of what makes all else void


@dataclass(frozen=True)
class Accuracy:
    """Top-1 in percent, of `samples` with labels. `reference` is None where none was given."""

    samples: int
    quantized: float
    float: float
    reference: float | None


@dataclass(frozen=True)
class Finding:
    """Something that is wrong at one place.

    Attributes:
        layer: its name: of a layer, of a batch-norm, or of a tensor between layers ("activation_quantizers.…").
        tensor: which of the layer's tensors ("weight", "input", …); "" where it is none.
        kind: one of `Kind`.
        severity: about how many dB it costs, and a summand by what can have caused it (see above); they are sorted by
            it.
        numbers: what it was found by.
        sentence: that in words. `remedy`: what to do, with the option or code that does it.
    """

    layer: str
    tensor: str
    kind: Kind
    severity: float
    numbers: dict[str, float]
    sentence: str
    remedy: str

    def text(self) -> str:
        """Kind, place, sentence and remedy, on two lines."""
        return f"{self.kind} at {self.layer}: {self.sentence}\n  {self.remedy}"


def find(
    tensors: Sequence[TensorRecord],
    layers: Sequence[LayerRecord],
    norms: Sequence[NormRecord],
    history: Sequence[Mapping[str, Any]] = (),
) -> tuple[Finding, ...]:
    """The findings, most serious first."""
    found = [*_calibration(tensors)]
    whole, foremost = bool(found), True
    for tensor in tensors:
        each = _of_tensor(tensor)
        if each is None:
            continue
        if each.kind in _RANGE and not tensor.is_weight:
            if whole:  # told with the network's input
                continue
            if foremost:
                each, foremost = replace(each, severity=each.severity + _FOREMOST), False
        found.append(each)
    found += [*_low_bits(tensors, layers), *_drift(norms), *_oscillation(history)]
    found.sort(key=lambda each: -each.severity)
    seen: set[str] = set()
    return tuple(each for each in found if not (each.layer in seen or seen.add(each.layer)))


_RANGE = (Kind.SIGNED_GRID, Kind.UNSIGNED_GRID, Kind.ZERO_POINT, Kind.CLIPPED, Kind.STEP_TOO_LARGE)


def _finding(layer: str, tensor: str, kind: Kind, severity: float, sentence: str, **numbers: float) -> Finding:
    return Finding(
        layer,
        tensor,
        kind,
        round(severity, 2),
        numbers,
        sentence,
        REMEDIES[kind].replace("Rule(layer", f"Rule({layer!r}"),
    )


def _of_tensor(t: TensorRecord) -> Finding | None:
    """The most specific thing that is wrong with one tensor."""
    what = f"the {t.tensor}" if t.tensor not in ("value", "") else "the tensor"
    if t.at_bound:
        return _finding(
            t.layer, t.tensor, Kind.STEP_AT_BOUND, _FIRST + abs(math.log2(max(t.step_ratio, 1e-9))),
            f"the step of {what} is {t.step_ratio:.3g} times its initial value, at the end of its bounds.",
            step=t.step, step_ratio=t.step_ratio,
        )  # fmt: skip
    if t.outliers:
        steps = "its step" if t.steps == 1 else f"{t.outliers} of its {t.steps} steps"
        return _finding(
            t.layer, t.tensor, Kind.OUTLIER, _OWN + 20 * math.log10(t.crest / 1.5),
            f"{what}'s largest value is {t.crest:.1f} times what all but a half percent of the others keep within; it "
            "stretches "
            f"{steps}.",
            crest=t.crest, outliers=t.outliers,
        )  # fmt: skip
    of_range = _of_range(t, what)
    # Of an activation a dead channel may be the effect of something before it: what is wrong with its range is told.
    if t.dead_channels and (t.is_weight or of_range is None):
        dead = len(t.dead_channels)
        names = ", ".join(map(str, t.dead_channels[:5])) + (", …" if dead > 5 else "")
        severity = _OWN + max(t.sqnr - 10 * math.log10(t.channels / dead), 3.0) if t.is_weight else 0.0
        return _finding(
            t.layer, t.tensor, Kind.DEAD_CHANNEL, severity,
            f"{dead} of {t.channels} channels of {what} ({names}) {'is' if dead == 1 else 'are'} nothing but zero.",
            dead=dead, channels=t.channels,
        )  # fmt: skip
    return of_range


def _of_range(t: TensorRecord, what: str) -> Finding | None:
    """What is wrong with grid, offset or step of one tensor."""
    if t.signed and not t.offset and not t.is_weight and t.low >= 0 < t.high and t.bits > 1:
        return _finding(
            t.layer, t.tensor, Kind.SIGNED_GRID, 6.02,
            f"{what} is never negative (from {t.low:.3g} to {t.high:.3g}), but its grid is signed: {-t.qn} of "
            f"{t.codes} codes have no "
            "use.",
            low=t.low, high=t.high, unused=-t.qn,
        )  # fmt: skip
    if not t.signed and not t.offset and t.clipped_low > NEGATIVE:
        return _finding(
            t.layer, t.tensor, Kind.UNSIGNED_GRID, max(t.gain, 6.0) + 10 * t.clipped_low,
            f"{100 * t.clipped_low:.0f} % of {what} are negative (down to {t.low:.3g}), and its grid is unsigned: "
            "they become zero.",
            clipped_low=t.clipped_low, low=t.low,
        )  # fmt: skip
    if t.sqnr > NOISY:
        return None
    own = _OWN if t.is_weight else 0.0
    gain = 0.0 if t.best_offset_sqnr is None else t.best_offset_sqnr - t.sqnr
    if t.offset and gain > GAIN and gain > t.gain + GAIN / 2:
        return _finding(
            t.layer, t.tensor, Kind.ZERO_POINT, gain,
            f"the grid of {what} lies beside the data: {t.used_codes} of {t.codes} codes are used, "
            f"{100 * t.clipped:.0f} % of the values "
            f"are cut off; a better offset would gain {gain:.0f} dB.",
            zero_point=t.zero_point, used_codes=t.used_codes, codes=t.codes, clipped=t.clipped, gain_db=gain,
        )  # fmt: skip
    if t.gain > GAIN and t.best_ratio > 1:
        return _finding(
            t.layer, t.tensor, Kind.CLIPPED, t.gain + own,
            f"{100 * t.clipped:.0f} % of {what} are beyond the grid; a step {t.best_ratio:.2g} times as large would "
            f"gain {t.gain:.0f} dB.",
            clipped=t.clipped, best_ratio=t.best_ratio, gain_db=t.gain,
        )  # fmt: skip
    if t.gain > GAIN and t.best_ratio < 1 / FAR:
        return _finding(
            t.layer, t.tensor, Kind.STEP_TOO_LARGE, t.gain + own,
            f"{what} takes {t.used_codes} of {t.codes} codes; a step {1 / t.best_ratio:.2g} times smaller would gain "
            f"{t.gain:.0f} dB.",
            used_codes=t.used_codes, codes=t.codes, best_ratio=t.best_ratio, gain_db=t.gain,
        )  # fmt: skip
    if not t.offset and t.best_sqnr < POOR and gain > t.gain + GAIN / 2:
        return _finding(
            t.layer, t.tensor, Kind.ONE_SIDED, gain,
            f"{what} lies nearly all on one side of zero (from {t.low:.3g} to {t.high:.3g}), but its {t.bits}-bit grid "
            f"is signed: an offset would gain {gain - t.gain:.0f} dB.",
            low=t.low, high=t.high, gain_db=gain - t.gain,
        )  # fmt: skip
    return None


def _calibration(tensors: Sequence[TensorRecord]) -> Iterator[Finding]:
    """The network's input, on which nothing but the data has an effect, would be given another step or grid today."""
    for t in tensors:
        if t.expected is None or t.at_bound:
            continue
        negative = not t.signed and not t.offset and t.expected_signed and t.clipped_low > NEGATIVE
        if 1 / OTHER_DATA < t.expected < OTHER_DATA and not negative:
            continue
        said = (
            "unsigned for values that are negative" if negative else f"{t.expected:.2g} times what these batches give"
        )
        yield _finding(
            t.layer, t.tensor, Kind.CALIBRATION_DATA, _FIRST / 2 + t.gain,
            f"the network's input lies between {t.low:.3g} and {t.high:.3g}, its grid between {t.qn * t.step:.3g} and "
            f"{t.qp * t.step:.3g}: the step it was initialized with is {said}, so that calibration has seen other "
            "data.",
            expected=t.expected, low=t.low, high=t.high,
        )  # fmt: skip


def _low_bits(tensors: Sequence[TensorRecord], layers: Sequence[LayerRecord]) -> Iterator[Finding]:
    """A layer with far fewer bits than the middle one, and more noise at the output than those have."""
    alone = {layer.name: layer.alone for layer in layers}
    for weights in (True, False):
        side = [t for t in tensors if t.is_weight == weights and t.tensor != "value"]
        if not side:
            continue
        middle = statistics.median(t.bits for t in side)
        if sum(middle - t.bits >= FEWER_BITS for t in side) > len(side) / 4:  # no exception, but how it is meant
            continue
        others = [a for t in side if t.bits >= middle and (a := alone.get(t.layer)) is not None]
        for t in side:
            mine = alone.get(t.layer)
            if middle - t.bits < FEWER_BITS or mine is None or not others or mine > statistics.median(others) - 6:
                continue
            yield _finding(
                t.layer, t.tensor, Kind.LOW_BITS, _OWN + 6.02 * (middle - t.bits),
                f"the {t.tensor} has {t.bits} bits where the others have {middle:.0f}: with this layer alone "
                "quantized the output has "
                f"{mine:.0f} dB, with one of the others {statistics.median(others):.0f} dB.",
                bits=t.bits, median_bits=middle, alone_db=mine,
            )  # fmt: skip


def _drift(norms: Sequence[NormRecord]) -> Iterator[Finding]:
    for norm in norms:
        least = DRIFT
        if norm.reference_drift is not None:
            least = max(DRIFT_BESIDE, DRIFT_RATIO * norm.reference_drift)
        if norm.drift <= least:
            continue
        # Without quantizers there too: nothing before it has caused it. Else it is an effect of noise, told last.
        severity = 10 * math.log10(1 + norm.drift / least)
        yield _finding(
            norm.name, "", Kind.BATCHNORM_DRIFT, severity + (_UPSTREAM if norm.float_drift > least else -10.0),
            f"stored means are off by {norm.mean_shift:.2f} standard deviations of the batches, stored deviations are "
            f"{norm.std_ratio:.2f} times theirs.",
            drift=norm.drift, mean_shift=norm.mean_shift, std_ratio=norm.std_ratio,
        )  # fmt: skip


def _oscillation(history: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    """Layers whose weights jump back and forth in the second half of training."""
    shares: dict[str, list[float]] = {}
    for look in history[len(history) // 2 :]:
        for name, numbers in (look.get("quantizers") or {}).items():
            if numbers.get("oscillating") is not None:
                shares.setdefault(name, []).append(numbers["oscillating"])
    for name, values in shares.items():
        share = statistics.median(values)
        if share > OSCILLATING:
            layer = name.rpartition(".")[0]
            yield _finding(
                layer, "weight", Kind.OSCILLATION, _OWN + 10 * math.log10(1 + 100 * share),
                f"{100 * share:.0f} % of its weights jump back and forth between two codes within a few steps.",
                oscillating=share,
            )  # fmt: skip
