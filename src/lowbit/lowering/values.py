"""What stands for a tensor of the trained network while it is converted.

A tensor is on a grid (`Codes`), or it waits for the quantizer behind it to say on which grid it is: a `Computation`, or
a `Concatenation` of several. Only then are integer nodes made. What is done to the tensor meanwhile, clamps and moves,
is kept with it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

from torch import Tensor

from lowbit.integer.graph import FloatType, Node, TensorType

_NO_CLAMP = (-float("inf"), float("inf"))


@dataclass(frozen=True, eq=False)
class Codes:
    """A tensor of the integer graph: its name, and its type, which has no shape yet."""

    name: str
    type: TensorType


@dataclass(frozen=True, eq=False)
class Move:
    """An operation that moves codes: `node(name, input)` is its integer node."""

    name: str
    node: Callable[[str, str], Node]


@dataclass(frozen=True, eq=False)
class Table:
    """A function of codes."""

    x: Codes
    function: Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Computation:
    """A computation whose result has no grid yet: `node(name, type)` is its integer node.

    Attributes:
        name: of the node.
        node: makes it.
        clamp: (lowest, highest) value that the result is clamped to.
        moves: what is done to its codes afterwards, in order.
        may_be_float: whether the result may leave the network in full precision.
        table: what it computes, where that is a function of one value: another behind it makes one table with it.
    """

    name: str
    node: Callable[[str, TensorType | FloatType], Node]
    clamp: tuple[float, float] = _NO_CLAMP
    moves: tuple[Move, ...] = ()
    may_be_float: bool = False
    table: Table | None = None

    def clamped(self, low: float, high: float) -> Computation:
        """The same, clamped once more."""
        return replace(self, clamp=(max(low, self.clamp[0]), min(high, self.clamp[1])))


@dataclass(frozen=True, eq=False)
class Concatenation:
    """Tensors that are concatenated along a dimension, counted with the batch as 0.

    Not all of them are on one grid yet.
    """

    name: str
    parts: tuple[Value, ...]
    axis: int
    moves: tuple[Move, ...] = ()


@dataclass(frozen=True, eq=False)
class Held:
    """A tensor that the network holds, or computes of such tensors alone: the same for every sample.

    Attributes:
        tensor: real numbers, in a sample's shape.
        moves: what is done to its codes afterwards, in order.
    """

    name: str
    tensor: Tensor
    moves: tuple[Move, ...] = ()


@dataclass(frozen=True, eq=False)
class Finite:
    """A function of each element of an input that holds whole numbers: a mask, say.

    Attributes:
        input: its name.
        shape: of a sample of the input.
        limit: there are as many whole numbers, from 0.
        function: of a tensor of them.
        moves: what is done to its elements afterwards, in order.
    """

    name: str
    input: str
    shape: tuple[int, ...]
    limit: int
    function: Callable[[Tensor], Tensor]
    moves: tuple[Move, ...] = ()


@dataclass(frozen=True, eq=False)
class Masked:
    """Codes of which a softmax is to take only those that a mask shows.

    Attributes:
        codes: all of them.
        shown: codes of one bit, of a shape that is repeated to that of the codes.
        shapes: of a sample of the mask and of the codes, with as many dimensions; None where they are one.
    """

    codes: Codes
    shown: Codes
    shapes: tuple[tuple[int, ...], tuple[int, ...]] | None


Value: TypeAlias = "Codes | Computation | Concatenation | Held"
"""One tensor."""
