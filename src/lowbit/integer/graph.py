"""The integer network as data: a graph of integer operations, each stated to the bit in its own file (`integer.ops`).

A `Graph` is a list of nodes in topological order; every node computes one tensor, which has the node's name. All
tensors but the graph's inputs and its float outputs are tensors of *codes*, described by a `TensorType`: code q stands
for the real number scale · (q − zero point).

Notation of the arithmetic stated at every operation: s, z and [qn, qp] are scale, zero point and code range of the
tensor named in the index (x, a, b inputs; y output). f(·) rounds a real number to float32, so f(f(a · b) / c) is two
float32 operations; rint rounds half to even; clip is to [qn, qp] of the output. Integers have 32 bits unless stated
otherwise. requant(n, M) turns an integer accumulator n, worth M output steps per unit, into a code, by one of the named
roundings (`integer.roundings`).

A code is stored elsewhere as the unsigned byte u = q + offset, offset = 2^(bits−1) for signed codes, else 0; its zero
point is then ζ = z + offset. Only Add and Multiply depend on it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from torch import Tensor

from lowbit.errors import LowbitError
from lowbit.grid import Grid

if TYPE_CHECKING:
    from lowbit.integer.arithmetic import Multiplier
    from lowbit.integer.costs import Work
    from lowbit.integer.roundings import Rounding

Shape = tuple[int, ...]
"""Of a sample's tensor, without the batch."""
Pads = tuple[tuple[int, int], ...]
"""(before, after) per spatial dimension."""
Int32 = Tensor
"""An int32 tensor, stored in files as it is."""
OutputCodes = Tensor
"""int16 codes on the grid of the node's own output, packed in files at its bits."""
Float32 = Tensor
"""A float32 tensor, stored in files as it is."""
Places = tuple[int, ...]
"""Places along a dimension, any number of them."""


def added(default: Any) -> Any:
    """A field that files of earlier versions lack.

    Written where it is not this default, so that other files stay as they were.
    """
    return field(default=default, metadata={"added": True})


FLOAT32_UNIT = 2.0**-24
"""The largest relative error of one rounding to float32."""
ROUNDINGS = 8
"""More roundings to float32 than a code passes on its way, in the integer network and in the trained one together."""

_grid = cache(Grid)


@dataclass(frozen=True)
class TensorType:
    """A tensor of codes: real value = scale · (code − zero_point).

    Attributes:
        scale: greater than 0, and a value that float32 can hold.
        zero_point: the code of real 0. An integer in every network that runs; a fraction (an LSQ+ offset before
            rounding) is accepted by the QONNX writer alone. It may lie outside the code range as long as the carrier
            holds ζ.
        bits: 1 to 16 unsigned, 2 to 16 signed.
        signed: whether there are negative codes.
        narrow: leave out the lowest signed code, so that the range is symmetric.
        shape: without the batch dimension; None until `validate` fills it in.
    """

    scale: float
    zero_point: int | float
    bits: int
    signed: bool
    narrow: bool = False
    shape: Shape | None = None

    @property
    def grid(self) -> Grid:
        """The integers that a code may be."""
        return _grid(self.bits, self.signed, self.narrow)

    @property
    def qn(self) -> int:
        """The lowest code."""
        return self.grid.qn

    @property
    def qp(self) -> int:
        """The highest code."""
        return self.grid.qp

    @property
    def has_integer_zero_point(self) -> bool:
        """Whether the zero point is a whole number."""
        return float(self.zero_point).is_integer()

    @property
    def carrier_offset(self) -> int:
        """What is added to a code to store it as an unsigned number: 2^(bits−1) for signed codes, else 0."""
        return 1 << (self.bits - 1) if self.signed else 0

    @property
    def code_type(self) -> tuple[float, int | float, int, bool, bool]:
        """Everything but the shape: two tensors with equal code types can share codes."""
        return (self.scale, self.zero_point, self.bits, self.signed, self.narrow)


@dataclass(frozen=True)
class FloatType:
    """A float32 tensor, which only an output of the graph may be.

    Attributes:
        shape: without the batch dimension; None until `validate` fills it in.
    """

    shape: Shape | None = None


@dataclass(frozen=True, eq=False)
class Weight:
    """Weight codes on a signed grid; real weight = scale · code.

    Attributes:
        codes: int8, (out, in/groups, *kernel) for Convolution, (out, in) for Linear.
        scale: float32, shape () for the whole tensor or (out,) per output channel; finite and not 0. A scale may be
            negative (a folded batch-norm with γ < 0).
        bits: 1 to 8. Codes lie in −2^(bits−1) … 2^(bits−1)−1; 1-bit codes are −1 and +1.
    """

    codes: Tensor
    scale: Tensor
    bits: int


@dataclass(frozen=True, eq=False, kw_only=True)
class Node:
    """One operation of the graph.

    A subclass per operation states what it computes, and is everything that is known of it.

    Attributes:
        name: of the node and of the tensor it computes; without a colon.
        inputs: names of earlier nodes, or of the graph's inputs.
        type: of the tensor it computes. Operations that only move codes take None for "the type of my input";
            `validate` fills it in.
    """

    name: str
    inputs: tuple[str, ...]
    type: TensorType | FloatType | None = None

    arity: ClassVar[int | None] = 1
    """Number of inputs; None: two or more."""
    moves_codes: ClassVar[bool] = False
    """Whether output codes are input codes (or the zero point), so that input and output have one code type."""
    takes_floats: ClassVar[bool] = False
    """Whether its input is an input of the graph, a float tensor."""
    takes_indices: ClassVar[bool] = False
    """Whether its input is an input of the graph that holds whole numbers: places in a table."""
    may_give_floats: ClassVar[bool] = False
    """Whether its tensor may have a FloatType, as an output of the graph."""

    independent: ClassVar[Literal["samples", "channels", "elements"]] = "samples"
    """What of its tensor is computed each from its own place in the inputs, so that a large one is made in blocks.

    "samples"; "channels", of each sample; or "elements", from inputs of its shape or one that broadcasts to it.
    """

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        """The shape of its tensor, from those of its inputs. Raises LowbitError for inputs that it does not take."""
        raise NotImplementedError

    def check(self, inputs: Sequence[TensorType]) -> None:
        """Raise LowbitError where a field, or a field beside its inputs' types, breaks a rule of the operation."""

    def accumulator_bound(self, inputs: Sequence[TensorType]) -> int:
        """The largest magnitude that any partial sum of its accumulator can reach, over all inputs of these types."""
        return reach(inputs[0])

    def index_limit(self) -> int:
        """How many places there are, for an operation that takes indices: they are 0 up to this number less 1."""
        raise NotImplementedError

    def multipliers(self, inputs: Sequence[TensorType]) -> list[Multiplier]:
        """Its multipliers M, output steps per unit of its accumulator: none, one, or one per operand of a sum."""
        return []

    def tolerance(self, inputs: Sequence[TensorType]) -> float:
        """How far its value may lie from that of real numbers, in steps of its output.

        A float output's is in its own unit.

        This is of the rounding "float", before rounding to a code. By default what moving codes needs, 0, or 8 · 2^-24
        · accumulator bound · max|M|, summed over its multipliers: the scales, the multiplier, the accumulator and the
        product are each rounded to float32, and each rounding is at most 2^-24 of a magnitude that the bound times the
        multiplier limits. The trained network rounds its folded scale, too.
        """
        if self.moves_codes:
            return 0.0
        bound = self.accumulator_bound(inputs)
        return ROUNDINGS * FLOAT32_UNIT * sum(bound * float(m.exact.abs().max()) for m in self.multipliers(inputs))

    def execute(self, inputs: Sequence[Tensor], types: Sequence[TensorType], rounding: Rounding) -> Tensor:
        """Its tensor for a batch: codes in `code_dtype`, or float32 where its type is a FloatType."""
        raise NotImplementedError

    def work(self, inputs: Sequence[TensorType]) -> Work | None:
        """Stored numbers and multiply-accumulates of a sample; None for operations with neither."""
        return None

    def codes_of(self) -> TensorType:
        """Its type, which must be one of codes."""
        if not isinstance(self.type, TensorType):
            raise LowbitError(f"node {self.name!r}: its tensor is {type(self.type).__name__}, not codes")
        return self.type

    def shape_of(self) -> Shape:
        """The shape of its tensor, without the batch, in a validated graph."""
        if self.type is None:
            raise LowbitError(f"node {self.name!r}: its type is not known: validate the graph first")
        return known_shape(self.type)


@dataclass(frozen=True, eq=False)
class Graph:
    """An integer network.

    Attributes:
        inputs: the shape of every input, without the batch, by name: floats, or whole numbers where an operation takes
            indices.
        nodes: in an order in which every input of a node is computed before it.
        outputs: names of the nodes whose tensors are the result, in order.
        about: what is known of the network beside what it computes, as JSON has it: what its images are read as, and
            what it came from. The files that keep it say so.
    """

    inputs: Mapping[str, Shape]
    nodes: tuple[Node, ...]
    outputs: tuple[str, ...]
    about: Mapping[str, Any] = field(default_factory=dict)
    by_name: dict[str, Node] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_name", {node.name: node for node in self.nodes})

    def input_types(self, node: Node) -> list[TensorType]:
        """The types of a node's inputs, those that are codes."""
        return [self.by_name[name].codes_of() for name in node.inputs if name in self.by_name]

    def index_limits(self) -> dict[str, int]:
        """The inputs that hold whole numbers, and how many different ones each may hold."""
        limits: dict[str, int] = {}
        for node in self.nodes:
            for name in node.inputs if node.takes_indices else ():
                limits[name] = min(node.index_limit(), limits.get(name, node.index_limit()))
        return limits

    def elements(self) -> int:
        """The elements of all tensors of one sample, of a validated graph."""
        return max(sum(math.prod(known_shape(node.type)) for node in self.nodes if node.type is not None), 1)


def known_shape(kind: TensorType | FloatType) -> Shape:
    """The shape of a tensor in a validated graph, without the batch. Raises LowbitError where it is not known."""
    if kind.shape is None:
        raise LowbitError("the shape of a tensor is not known: validate the graph first")
    return kind.shape


def reach(x: TensorType) -> int:
    """max |q − z|, rounded up where z is a fraction."""
    farthest = max(abs(x.qn - x.zero_point), abs(x.qp - x.zero_point))
    return -int(-farthest // 1)
