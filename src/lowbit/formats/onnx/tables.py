"""Operations that are a table of one code: as a lookup, or as an operator that computes the same of every code."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from onnx import TensorProto
from torch import Tensor

from lowbit.formats.onnx.builder import Builder, looked_up
from lowbit.formats.onnx.codes import LOWERINGS, carrier, quantize_steps, zero_byte
from lowbit.integer.arithmetic import all_codes, f32, to_codes
from lowbit.integer.graph import Node, TensorType
from lowbit.integer.ops import Add, Lookup, LookupPerChannel


@LOWERINGS(Lookup)
def _lookup(builder: Builder, node: Lookup) -> None:
    (x,) = builder.graph.input_types(node)
    if not computed(builder, node, x, node.table):
        write_table(builder, node, x, node.table)


def write_table(builder: Builder, node: Node, x: TensorType, codes: Tensor) -> None:
    """From a table of bytes, by the input's byte."""
    values, low = codes.numpy().astype(np.int32) + node.codes_of().carrier_offset, x.qn + x.carrier_offset
    values = np.concatenate([np.repeat(values[:1], low), values])  # a narrow grid's bytes start at 1
    looked_up(builder, node, node.inputs[0], values.astype(carrier(node.codes_of())), node.name)


def computed(builder: Builder, node: Node, x: TensorType, codes: Tensor) -> bool:
    """Write a function of one code, given as its table, without the table; False where that cannot be.

    Where it leaves bytes as they are it is an Identity, where it cuts them off a Clip. Where it is clip(rint(r · (q −
    z_x)) + z_y) (a product with a number, a change of grid) it is a sum with 0, which ONNX Runtime makes a QLinearAdd:
    an eighth of the time of a lookup.
    """
    y = node.codes_of()
    if x.bits > 8 or y.bits > 8:
        return False
    low, values = x.qn + x.carrier_offset, codes.numpy().astype(np.int32) + y.carrier_offset
    places, first, last = np.arange(low, low + len(values)), int(values.min()), int(values.max())
    if np.array_equal(values, places.clip(first, last)):
        if len(values) == last - first + 1:
            builder.add("Identity", list(node.inputs), node.name)
        else:
            ends = [builder.constant(f"{node.name}:{end}", np.uint8(value)) for end, value in zip("ab", (first, last))]
            builder.add("Clip", [*node.inputs, *ends], node.name)
        return True
    factor = ratio(x, y, codes)
    if factor is None:
        return False
    name, one, none = node.name, builder.constant(":one", np.float32(1)), builder.constant(":no_byte", np.uint8(0))
    rank = len(node.shape_of()) + 1
    zero = builder.factor(f":no_bytes{rank}", np.uint8(0), rank)
    grid = [builder.constant(f"{name}:factor", factor), builder.constant(f"{name}:input_zero_point", zero_byte(x))]
    terms = [
        builder.add("DequantizeLinear", [*node.inputs, *grid], f"{name}:term"),
        builder.add("DequantizeLinear", [zero, one, none], f"{name}:nothing"),
    ]
    quantize_steps(builder, builder.add("Add", terms, f"{name}:float"), node)
    return True


def ratio(x: TensorType, y: TensorType, codes: Tensor) -> np.ndarray | None:
    """r > 0 with codes[q] = clip(rint(r · (q − z_x)) + z_y) for all codes q of x; None where there is none.

    In the middle of all such r, so that products lie far from halves. The operators' own arithmetic, with optimizations
    (`Add`'s) and without, is tried on every code.
    """
    n, t = all_codes(x) - x.zero_point, codes.double() - y.zero_point
    low, high = (t - 0.5).masked_fill(codes == y.qn, -math.inf), (t + 0.5).masked_fill(codes == y.qp, math.inf)
    ends = (torch.stack([low, high])[:, n != 0] / n[n != 0]).sort(0).values
    least, most = max(float(ends[0].max()), 0.0), float(ends[1].min())
    if not 0 < most < math.inf or most < least:
        return None
    r = f32((least + most) / 2)
    steps, nothing = replace(y, scale=1.0), TensorType(1.0, 0, 8, False)
    u = all_codes(x).to(torch.float32) + x.carrier_offset
    total = Add(name="sum", inputs=("x", "0"), type=steps).sum_of_bytes(
        u, torch.zeros_like(u), [replace(x, scale=float(r)), nothing]
    )
    same = torch.equal(total.to(codes.dtype), codes) and torch.equal(
        to_codes((n * r).round(), y).to(codes.dtype), codes
    )
    return r.numpy() if same else None


@LOWERINGS(LookupPerChannel)
def _lookup_per_channel(builder: Builder, node: LookupPerChannel) -> None:
    """From all tables one after the other: a channel's begins at 256 times its number."""
    (x,), space = builder.graph.input_types(node), len(node.shape_of()) - 1
    low = x.qn + x.carrier_offset
    rows = np.zeros((len(node.tables), 256), np.int16)
    rows[:, low : low + node.tables.shape[1]] = node.tables.numpy() + node.codes_of().carrier_offset
    first = np.arange(len(rows), dtype=np.int32).reshape(1, -1, *[1] * space) * 256
    code = builder.add("Cast", [node.inputs[0]], f"{node.name}:code", to=TensorProto.INT32)
    place = builder.add("Add", [code, builder.constant(f"{node.name}:first", first)], f"{node.name}:place")
    looked_up(builder, node, place, rows.astype(np.uint8).flatten(), node.name)
