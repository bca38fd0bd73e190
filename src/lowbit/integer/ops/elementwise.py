"""Operations that are a few float32 operators on steps: stated once, they run in every rounding and every format.

A subclass says what it computes with the operators of a `Floats`; the reference executor is one, and each format with
float operators has another. So an operation that computes needs no function of its own in any format.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, TypeVar

import torch
from torch import Tensor

from lowbit.integer.arithmetic import f32, steps_of, to_codes
from lowbit.integer.graph import Node, TensorType
from lowbit.integer.ops.broadcast import aligned
from lowbit.integer.roundings import Rounding

Value = TypeVar("Value")


class Floats(Protocol[Value]):
    """Float32 operators, each rounding once; operands broadcast against each other."""

    def constant(self, value: float) -> Value:
        """f(value)."""
        ...

    def add(self, a: Value, b: Value) -> Value:
        """f(a + b)."""
        ...

    def multiply(self, a: Value, b: Value) -> Value:
        """f(a · b)."""
        ...


class _Tensors:
    """The operators of the reference executor."""

    def constant(self, value: float) -> Tensor:
        return f32(value)

    def add(self, a: Tensor, b: Tensor) -> Tensor:
        return a + b

    def multiply(self, a: Tensor, b: Tensor) -> Tensor:
        return a * b


@dataclass(frozen=True, eq=False, kw_only=True)
class Elementwise(Node):
    """y = clip(rint(in_floats(q − z of every input)) + z_y) in "float"; other roundings as the operation states."""

    independent: ClassVar[Literal["samples", "channels", "elements"]] = "elements"

    def in_floats(self, floats: Floats[Value], steps: Sequence[Value], types: Sequence[TensorType]) -> Value:
        """The output in steps, before rounding, from every input's q − z."""
        raise NotImplementedError

    def execute(self, inputs: Sequence[Tensor], types: Sequence[TensorType], rounding: Rounding) -> Tensor:
        operands = aligned(inputs)
        if rounding.name == "float":
            steps = [x.to(torch.float32) - t.zero_point for x, t in zip(operands, types)]
            return to_codes(self.in_floats(_Tensors(), steps, types).round(), self.codes_of())
        return self.in_integers([steps_of(x, t) for x, t in zip(operands, types)], types, rounding)

    def in_integers(self, steps: Sequence[Tensor], types: Sequence[TensorType], rounding: Rounding) -> Tensor:
        """The codes in any other rounding; by default the weighted sum of the inputs with the node's multipliers."""
        return rounding.weighted_sum(steps, self.multipliers(types), self.codes_of())
