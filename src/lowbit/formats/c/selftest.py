"""The self-test's input and checksums, computed by the integer reference."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lowbit.formats.c.interface import inputs_of
from lowbit.integer.arithmetic import steps_of
from lowbit.integer.graph import FloatType, Graph, Node, TensorType
from lowbit.integer.ops import MatMul
from lowbit.integer.ops.broadcast import aligned
from lowbit.integer.ops.layer import Layer
from lowbit.integer.roundings import ROUNDINGS
from lowbit.integer.run import executed
from lowbit.integer.settings import reference_arithmetic

_MULTIPLIER, _INCREMENT = 1664525, 1013904223
NEXT = f"seed * {_MULTIPLIER}u + {_INCREMENT}u"
"""The next state of the generator of the input's codes, in C; it begins with 1, and bits 16 to 31 choose the code."""


def codes_fed(graph: Graph) -> dict[str, Tensor]:
    """The codes that the self-test feeds, by the name of the Quantize node, as the C code makes them."""
    seed, found = 1, {}
    for port in inputs_of(graph):
        y, codes = port.node.codes_of(), []
        for _ in range(port.count):
            seed = (seed * _MULTIPLIER + _INCREMENT) % 2**32
            codes.append((seed >> 16) % (y.qp - y.qn + 1) + y.qn)
        found[port.node.name] = torch.tensor(codes, dtype=torch.int32, device="cpu").reshape(1, *port.node.shape_of())
    return found


def checksums(graph: Graph, rounding: str) -> list[int]:
    """Of every node's tensor in the self-test: Σ number · 31^(numbers behind it), modulo 2^32, in the model's order of axes, in a rounding.

    Numbers are codes, or the accumulators of a float output.
    """
    values = codes_fed(graph)
    found = []
    with reference_arithmetic():
        for node in graph.nodes:
            if node.name not in values:
                inputs, types = [values[name] for name in node.inputs], graph.input_types(node)
                if isinstance(node.type, FloatType):
                    values[node.name] = accumulators(node, inputs, types)
                else:
                    values[node.name] = executed(node, inputs, types, ROUNDINGS[rounding])
            found.append(_checksum(values[node.name]))
    return found


def accumulators(node: Node, inputs: Sequence[Tensor], types: Sequence[TensorType]) -> Tensor:
    """The sums of a float output, with their biases, int32."""
    if isinstance(node, MatMul):
        a, b = (steps_of(x, kind).to(torch.float64) for x, kind in zip(aligned(inputs), types))
        return (a @ b).to(torch.int32)
    assert isinstance(node, Layer)
    layer, (x,), (kind,) = node, inputs, types
    y = torch.empty(len(x), *layer.shape_of(), dtype=torch.int32, device="cpu")
    for place, total in layer.sums(x, kind, torch.float64):
        y[place] = total
    if layer.bias is not None:
        shape = [1] * y.ndim
        shape[layer.channel_axis] = -1
        y += layer.bias.reshape(shape)
    return y


def _checksum(numbers: Tensor) -> int:
    flat = numbers.reshape(-1).to(torch.int64)
    powers = torch.full_like(flat, 31)
    powers[0] = 1
    powers = powers.cumprod(0)  # modulo 2^64, and so modulo 2^32
    return int((flat * powers.flip(0)).sum()) % 2**32
