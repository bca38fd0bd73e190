"""What was measured, as plain data: numbers by name, ready for JSON. No tensors."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class TensorRecord:
    """One quantized tensor, over all batches.

    Attributes:
        layer, tensor: see `Place`; `is_weight` for what does not depend on the data, `is_input` for an input of the
            network.
        bits, signed, qn, qp: the grid.
        offset: whether there is one (LSQ+).
        steps: how many steps there are; `step` is their mean.
        step_ratio: the step over its initial value; of several that which has moved most. `at_bound`: whether one is at
            its bounds.
        expected: initial step over that which the method's rule gives on these batches, of an input of the network with
            one step; None of all else. `expected_signed`: whether the rule gives a signed grid here.
        low, high: extreme values. `std`: of all values.
        sqnr: signal-to-quantization-noise, 10·log10(Σx² / Σ(x̂ − x)²), in dB.
        best_sqnr: the same with all steps multiplied by `best_ratio`, the factor with the least Σ(x̂ − x)² (of 2^(−6)
            to 2^6); 1 where the method fixes the step.
        best_offset_sqnr: with the best step and offset, whether or not one is learned; None of weights, of unsigned
            grids without an offset, where there are several steps, and where the method fixes the step.
        clipped_low, clipped_high: share of values beyond the grid by more than half a step.
        used_codes, codes: how many codes occur, of how many; `first_code` and `last_code` are the extreme ones that
            occur.
        zero_point: mean code of real zero.
        outliers: number of steps with an outlier, `crest` the largest quotient of the largest value and that which all
            but a half percent of the values keep within (weights alone).
        channels, dead_channels: output channels of a weight or channels of an activation, and those of which all codes
            mean zero where the float network has more.
        values: histogram of x/s (from `values_low` to `values_high`, in steps). `code_counts`: share of each code.
    """

    layer: str
    tensor: str
    is_weight: bool
    is_input: bool
    bits: int
    signed: bool
    qn: int
    qp: int
    offset: bool
    steps: int
    step: float
    step_ratio: float
    at_bound: bool
    expected: float | None
    expected_signed: bool
    low: float
    high: float
    std: float
    sqnr: float
    best_sqnr: float
    best_ratio: float
    best_offset_sqnr: float | None
    clipped_low: float
    clipped_high: float
    used_codes: int
    codes: int
    first_code: int
    last_code: int
    zero_point: float
    outliers: int
    crest: float
    channels: int
    dead_channels: tuple[int, ...]
    values_low: float
    values_high: float
    values: tuple[float, ...] = field(repr=False)
    code_counts: tuple[float, ...] = field(repr=False)

    @property
    def name(self) -> str:
        """Layer and tensor."""
        return self.layer if self.tensor == "value" else f"{self.layer}.{self.tensor}"

    @property
    def clipped(self) -> float:
        """Share of values beyond the grid."""
        return self.clipped_low + self.clipped_high

    @property
    def gain(self) -> float:
        """What the best step would gain, in dB."""
        return max(self.best_sqnr - self.sqnr, 0.0)


@dataclass(frozen=True)
class LayerRecord:
    """One layer, or one tensor between layers, beside the float network. Signal-to-noise ratios in dB.

    Attributes:
        alone: at the network's output, with the quantizers of this layer alone.
        accumulated: at this layer's output, with all quantizers; None for what is not a layer of the float network.
        kind: class of the layer; "" between layers. `size_bits`: what its weight takes, 0 without one.
    """

    name: str
    kind: str
    weight_bits: int | None
    activation_bits: int | None
    parameters: int
    size_bits: int
    alone: float | None
    accumulated: float | None


@dataclass(frozen=True)
class NormRecord:
    """One batch-norm: how far its stored statistics are from those of the batches.

    `drift` is the mean over channels (but constant ones) of the divergence of two normal distributions, stored from
    measured,
    at most 10: ½·((μ − μ̂)²/σ̂² + σ²/σ̂² − 1 − ln(σ²/σ̂²)). `mean_shift` is the mean of |μ − μ̂|/σ̂, `std_ratio` the
        geometric mean of σ/σ̂.
    `float_drift` is `drift` in the network without quantizers: small where quantization alone has shifted the
        statistics.
    `reference_drift` is that of the reference's own statistics on the same batches; None without a reference.
    """

    name: str
    channels: int
    drift: float
    float_drift: float
    reference_drift: float | None
    mean_shift: float
    std_ratio: float
