"""The integer network as typed data: a small graph of integer operations, nothing executable.

A `Graph` is a list of nodes in topological order; every node makes one tensor, called by the node's name. Every tensor
but the input and the last output is a tensor of *codes*, described by a `TensorType`: code q stands for the real number
scale · (q − zero point).

Notation of the arithmetic stated at every node: s, z and [qn, qp] are scale, zero point and code range of the tensor
named in the index (x, a, b inputs; y output). f(·) rounds a real number to float32, so f(f(a · b) / c) is two float32
operations; rint rounds half to even; clip is to [qn, qp] of the output. Integers have 32 bits unless stated.
requant(n, M) turns an integer accumulator n, worth M output steps per unit, into a code, in one of two ways:

    float   clip(rint(f(f(n) · M)) + z_y)                       M a float32, rounded as the node says
    fixed   clip(sign(n) · ((|n| · m + 2^(k−1)) >> k) + z_y)    m = rint(|M| · 2^k), 2^30 <= m < 2^31, M from float64;
                                                                64-bit product, half away from zero; 0 where k > 62;
                                                                a negative M negates n first

"float" is what ONNX Runtime 1.31 computes, to the bit, with its graph optimizations on x86-64 processors that have AVX2;
"fixed" is what processors without a float unit do.
A code is stored elsewhere as the unsigned byte u = q + offset, offset = 2^(bits−1) for signed codes, else 0; its zero
point is then ζ = z + offset. Only Add and Multiply depend on it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

Pads = tuple[tuple[int, int], ...]
"""(before, after) per spatial dimension."""


@dataclass(frozen=True)
class TensorType:
    """A tensor of codes: real value = scale · (code − zero_point).

    scale: > 0, a value that float32 can hold.
    zero_point: the code of real 0. An integer in every network that runs; a fraction (an LSQ+ offset before snapping)
        is accepted by the QONNX writer alone. It may lie outside the code range as long as the byte ζ holds it.
    bits: 1..8 unsigned, 2..8 signed. narrow: leave out the lowest signed code, so that the range is symmetric.
    shape: without the batch dimension; None until `check.validate` fills it in.
    """

    scale: float
    zero_point: int | float
    bits: int
    signed: bool
    narrow: bool = False
    shape: tuple[int, ...] | None = None

    @property
    def qn(self) -> int:
        """Lowest code."""
        return (-(1 << (self.bits - 1)) + int(self.narrow)) if self.signed else 0

    @property
    def qp(self) -> int:
        """Highest code."""
        return (1 << (self.bits - 1)) - 1 if self.signed else (1 << self.bits) - 1

    @property
    def is_whole(self) -> bool:
        """Whether the zero point is a whole number."""
        return float(self.zero_point).is_integer()

    @property
    def carrier_offset(self) -> int:
        """What is added to a code to store it as an unsigned byte: 2^(bits−1) for signed codes, else 0."""
        return 1 << (self.bits - 1) if self.signed else 0

    @property
    def grid(self) -> tuple[float, int | float, int, bool, bool]:
        """Everything but the shape: two tensors with equal grids can share codes."""
        return (self.scale, self.zero_point, self.bits, self.signed, self.narrow)


@dataclass(frozen=True)
class FloatType:
    """A float32 tensor; only the last node may make one. shape: without the batch dimension."""

    shape: tuple[int, ...] | None = None


@dataclass(frozen=True, eq=False)
class Weight:
    """Weight codes on a signed grid; real weight = scale · code.

    codes: int8, (out, in/groups, *kernel) for Convolution, (out, in) for Linear.
    scale: float32, shape () for the whole tensor or (out,) per output channel; finite and not 0. A scale may be
        negative (a folded batch-norm with γ < 0).
    bits: 1..8. Codes lie in −2^(bits−1) .. 2^(bits−1)−1; 1-bit codes are −1 and +1.
    """

    codes: Tensor
    scale: Tensor
    bits: int


@dataclass(frozen=True, eq=False, kw_only=True)
class Node:
    """name: of the node and of the tensor it makes; no colon in it. inputs: names of earlier nodes (or the graph's input).

    type: of the tensor it makes. Nodes that only move codes take None for "the grid of my input"; `check.validate`
        fills it in.
    """

    name: str
    inputs: tuple[str, ...]
    type: TensorType | FloatType | None = None
    arity: ClassVar[int | None] = 1  # number of inputs; None: two or more
    moves_codes: ClassVar[bool] = False  # output codes are input codes (or the zero point): same grid


@dataclass(frozen=True, eq=False, kw_only=True)
class Quantize(Node):
    """The network's float input x becomes codes: y = clip(rint(f(x / s_y)) + z_y).

    A division, not a product with 1/s_y. NaN has no code: the executor refuses it.
    """


@dataclass(frozen=True, eq=False, kw_only=True)
class Convolution(Node):
    """n[o] = bias[o] + Σ w[o,·] · (x − z_x) over the window; y = requant(n, M[o]), M[o] = f(f(s_x · s_w[o]) / s_y).

    Outside the image x = z_x, so that padding adds real 0. The output's clip range doubles as the activation function
    (ReLU for z_y = qn_y, ReLU6 by the choice of s_y). With a FloatType output y = f(f(n) · f(s_x · s_w[o])), whichever
    the requantization. `fixed` takes M from s_x · s_w[o] / s_y in float64.
    bias: int32 (out,) on the grid s_x · s_w[o], or None. One to three spatial dimensions.
    """

    weight: Weight
    bias: Tensor | None = None
    stride: tuple[int, ...]
    padding: Pads
    dilation: tuple[int, ...]
    groups: int = 1


@dataclass(frozen=True, eq=False, kw_only=True)
class Linear(Node):
    """n[o] = bias[o] + Σ_i w[o,i] · (x[i] − z_x) on flat features; the rest as Convolution."""

    weight: Weight
    bias: Tensor | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class Add(Node):
    """Sum of two code tensors of equal shape (or per channel: the second (C, 1, …)), each on its own grid.

    float   r_a = f(s_a / s_y), r_b = f(s_b / s_y); on bytes u with their zero points ζ, where fma(a, b, c) is the exact
            a · b + c rounded to float32 once:
            c = f(ζ_y − fma(r_a, ζ_a, f(r_b · ζ_b)));  u_y = clip(rint(fma(u_a, r_a, fma(u_b, r_b, c))))
    fixed   m_a = rint(s_a / s_y · 2^k), m_b = rint(s_b / s_y · 2^k), the larger in 2^30 .. 2^31 − 1;
            t = (a − z_a) · m_a + (b − z_b) · m_b in 64 bits; y = clip(sign(t) · ((|t| + 2^(k−1)) >> k) + z_y)
    """

    arity: ClassVar[int | None] = 2


@dataclass(frozen=True, eq=False, kw_only=True)
class Multiply(Node):
    """Product of two code tensors of equal shape, or per channel: the second (C, 1, …), a squeeze-and-excite gate.

    n = (a − z_a) · (b − z_b),  M = f(f(s_a · s_b) / s_y)
    float   u_y = clip(rint(f(f(f(n) · M) + ζ_y)))    on bytes: ζ_y is added before rounding
    fixed   requant(n, s_a · s_b / s_y in float64)
    """

    arity: ClassVar[int | None] = 2


@dataclass(frozen=True, eq=False, kw_only=True)
class Concatenate(Node):
    """Channels one input after the other. All inputs on one grid: put Requantize before where they are not."""

    arity: ClassVar[int | None] = None
    moves_codes: ClassVar[bool] = True


@dataclass(frozen=True, eq=False, kw_only=True)
class Requantize(Node):
    """From one grid to another: y = requant(x − z_x, M), M = f(s_x / s_y). Also a ReLU, by its clip range."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Lookup(Node):
    """y = table[x − qn_x]: any function of one code (SiLU, sigmoid, GELU, …) in exact integers.

    table: int16 (so that both signed and unsigned 8-bit codes fit), one entry per input code, entries are output codes.
    `tables.lookup_table` computes one from a real function.
    """

    table: Tensor


@dataclass(frozen=True, eq=False, kw_only=True)
class MaxPool(Node):
    """Largest code in each window (the scale is positive, so of the largest value); padding never wins."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: Pads
    dilation: tuple[int, ...]
    moves_codes: ClassVar[bool] = True


@dataclass(frozen=True, eq=False, kw_only=True)
class AveragePool(Node):
    """n = Σ (x − z_x) over the window of c elements (padding counts, as 0); y = requant(n, f(f(s_x · f(1 / c)) / s_y)).

    `fixed` takes M from s_x / (c · s_y) in float64.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: Pads


@dataclass(frozen=True, eq=False, kw_only=True)
class GlobalAveragePool(Node):
    """n = Σ (x − z_x) over all c positions of a channel; y = requant(n, f(s_x / f(s_y · c))), shape (C, 1, …).

    `fixed` takes M from s_x / (c · s_y) in float64.
    """


@dataclass(frozen=True, eq=False, kw_only=True)
class Reshape(Node):
    """The codes of a sample in a new shape (without the batch), row-major. Flatten is shape (-1,)."""

    shape: tuple[int, ...]
    moves_codes: ClassVar[bool] = True


@dataclass(frozen=True, eq=False, kw_only=True)
class Slice(Node):
    """x[..., start:stop:step, ...] along `axis`, counted with the batch as 0 (channels are 1). step >= 1."""

    axis: int
    start: int
    stop: int
    step: int = 1
    moves_codes: ClassVar[bool] = True


@dataclass(frozen=True, eq=False, kw_only=True)
class PadChannels(Node):
    """Channels of zero (code z_x, which must lie in the code range) before and after: ResNet's option-A shortcut."""

    before: int
    after: int
    moves_codes: ClassVar[bool] = True


@dataclass(frozen=True, eq=False, kw_only=True)
class ChannelShuffle(Node):
    """Channel c = g · (C/groups) + i goes to i · groups + g: reshape (groups, C/groups), transpose, reshape."""

    groups: int
    moves_codes: ClassVar[bool] = True


OPERATIONS: dict[str, type[Node]] = {
    kind.__name__: kind
    for kind in (
        Quantize, Convolution, Linear, Add, Multiply, Concatenate, Requantize, Lookup, MaxPool, AveragePool,
        GlobalAveragePool, Reshape, Slice, PadChannels, ChannelShuffle,
    )
}  # fmt: skip
"""Every operation there is, by name: what a file may contain."""


@dataclass(frozen=True, eq=False)
class Graph:
    """input: name of the float input; input_shape: without the batch; output: name of the node that makes the result."""

    input: str
    input_shape: tuple[int, ...]
    nodes: tuple[Node, ...]
    output: str
    by_name: dict[str, Node] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_name", {node.name: node for node in self.nodes})
