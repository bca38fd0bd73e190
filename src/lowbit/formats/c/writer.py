"""net.c and net.h: the header says what the network is, the source is kernels, constants and one function."""

from __future__ import annotations

import hashlib
import math
import re
from pathlib import Path

from lowbit.errors import LowbitError
from lowbit.files import atomic_write
from lowbit.formats.c import packing
from lowbit.formats.c.interface import (
    Port,
    accumulator_scales,
    fingerprint,
    float_constant,
    float_inputs,
    float_parameters,
    header,
    inputs_of,
    outputs_of,
    parameters,
    static_memory,
)
from lowbit.formats.c.lowerings import LOWERINGS
from lowbit.formats.c.memory import plan
from lowbit.formats.c.selftest import NEXT, checksums
from lowbit.formats.c.source import Builder, comment, identifier, kernel, numbers
from lowbit.formats.registry import Footprint
from lowbit.integer.graph import Graph, Node, TensorType
from lowbit.integer.ops import Quantize
from lowbit.integer.ops.layer import Layer

MARK = b"/* lowbit C99"
"""How every net.c begins."""
_SMALL = ("clipped", "scaled", "shifted", "requantized", "packed", "root")
"""Kernels beside those of layers, in the order in which they need each other."""
_BYTES_PER_LINE = 12  # 9 to 13 in MLPerf Tiny's networks at 2 to 8 bits (docs/results/microcontrollers.md)


def write(graph: Graph, path: Path, rounding: str = "shift") -> None:
    """Write a validated graph as C source to `path`, and its header beside it, in a rounding of `roundings.ROUNDINGS`."""
    if any(character in path.stem for character in '"\\\n'):
        raise LowbitError(f"{path}: quotes, backslashes and line breaks can't be in the name of a C file")
    source, header = texts(graph, identifier(path.stem), path.stem, rounding)
    for target, text in ((path.with_suffix(".h"), header), (path, source)):
        with atomic_write(target) as temporary:
            temporary.write_text(text, encoding="utf-8")


def footprint(graph: Graph) -> Footprint:
    """What net.c takes of a microcontroller."""
    builder = _built(graph)
    by_node = {}
    for node in graph.nodes:
        tensors = [builder.place(name) for name in {*node.inputs, node.name} if name in builder.plan.places]
        ram = sum(place.size for place in tensors if place.memory == "arena")
        by_node[node.name] = (ram, builder.flash.get(node.name, 0))
    return Footprint(static_memory(builder), sum(builder.flash.values()) + code_size(builder), by_node)


def code_size(builder: Builder) -> int:
    """About how many bytes of instructions the network's functions have, on a Cortex-M4 at -O2."""
    text = re.sub(r"/\*.*?\*/", "", "\n".join([*_kernels(builder), *builder.body]), flags=re.DOTALL)
    return _BYTES_PER_LINE * sum(";" in line or "{" in line for line in text.splitlines())


def _built(graph: Graph, rounding: str = "shift") -> Builder:
    builder = Builder(graph, plan(graph), rounding, space=_dimensions(graph))
    for number, node in enumerate(graph.nodes, 1):
        _node(builder, number, node)
    _outputs(builder)
    return builder


def texts(graph: Graph, name: str, stem: str, rounding: str = "shift") -> tuple[str, str]:
    """net.c and net.h of a validated graph.

    Args:
        name: with which functions and macros begin, a C identifier.
        stem: of the files' names.
        rounding: the name of one.
    """
    builder = _built(graph, rounding)
    source = _source(builder, name)
    export = hashlib.sha256(source.encode()).hexdigest()[:8]
    upper = name.upper()
    include = f'#include "{stem}.h"\n#if {upper}_EXPORT != 0x{export}u\n#error "{stem}.h is of another export"\n#endif'
    return source.replace("@include", include, 1), header(builder, name, stem, export, code_size(builder))


def _dimensions(graph: Graph) -> int:
    """Dimensions of positions that the layers of a network have, 2 at least."""
    return max([2, *(len(node.shape_of()) - 1 for node in graph.nodes if isinstance(node, Layer))])


def _node(builder: Builder, number: int, node: Node) -> None:
    shape = " x ".join(map(str, node.shape_of()))
    builder.line(f"/* {number}. {comment(node.name)}: {type(node).__name__}, {shape} */")
    write_node, builder.node = LOWERINGS.of(node), node
    if node.name in builder.plan.views:
        builder.line("/* the same codes in the same order */")
    elif not isinstance(node, Quantize):
        with builder.block():
            write_node(builder, node)
    place = builder.place(node.name)
    builder.line(f"LAYER({number}, {builder.pointer(place)})")


def _outputs(builder: Builder) -> None:
    """Outputs that later nodes take too, or that are an input's codes, are copied to the caller."""
    for port in outputs_of(builder.graph):
        place, kind = builder.place(port.node.name), port.element
        if place.memory != f"output{port.number}":
            with builder.block():
                builder.declare("x", place)
                builder.line(f"{kind} *y = output{port.number};")
                axes = [axis for axis in range(len(place.shape)) if place.shape[axis] > 1]
                with builder.loops([(f"i{axis}", place.shape[axis]) for axis in axes]):
                    at = " + ".join(f"i{axis} * {place.strides[axis]}" for axis in axes) or "0"
                    builder.line(f"*y++ = ({kind}){builder.load('x', place, at)};")


# ---------------------------------------------------------------- net.c


def _source(builder: Builder, name: str) -> str:
    sections = [
        f"{MARK.decode()} {name} {fingerprint(builder.graph)} {builder.rounding}: an integer network made by lowbit. The code is its user's own. */",
        "@include\n#include <stddef.h>\n#include <string.h>",
        _weights(builder, name.upper()),
        *_kernels(builder),
        *builder.constants,
        _memory(builder),
        _layers(builder, name),
        _run(builder, name),
        _selftest(builder.graph, name),
        _floats(builder, name),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _weights(builder: Builder, upper: str) -> str:
    if not builder.weights:
        return ""
    words = [f"0x{word:08x}u" for word in builder.weights]
    return (
        f"/* Define {upper}_WEIGHTS as an attribute, of a section say, to put the weights elsewhere. */\n"
        f"#ifndef {upper}_WEIGHTS\n#define {upper}_WEIGHTS\n#endif\n"
        f"static const uint32_t weights[{len(words)}] {upper}_WEIGHTS = {{\n{numbers(words, per_line=8)}\n}};"
    )


def _kernels(builder: Builder) -> list[str]:
    uses, found = builder.uses, []
    if "multiplied" in uses:
        uses.add("scaled")
    if uses & {"codes", "scaled", "shifted"}:
        uses.add("clipped")
    if uses & {"y_packed"}:
        uses.add("packed")
    layered = bool(uses & {"dense", "depthwise"})
    found += [kernel("intrinsics", uses)]
    found += [kernel(each, uses) for each in _SMALL if each in uses]
    if layered:
        found += [_sizes(builder), kernel("layer", uses)]
        widths = sorted({int(use[7:]) for use in uses if use.startswith("weights")})
        planes = sorted({bits for width in widths for bits, _ in packing.PLANES[width]})
        if "dense" in uses:
            found += [kernel("products", uses), *(_dot(bits) for bits in planes)]
        for width in widths:
            listed = ", ".join(
                f"{{{f'dot{bits}, single{bits}, ' if 'dense' in uses else ''}{bits}, {shift}}}"
                for bits, shift in packing.PLANES[width]
            )
            found.append(f"static const plane_t planes{width}[] = {{{listed}}};")
        found += [kernel(each, uses) for each in ("dense", "depthwise") if each in uses]
    return found


def _sizes(builder: Builder) -> str:
    sizes = (size for place in builder.plan.places.values() for size in place.shape)
    extent = "int16_t" if max(sizes) < 1 << 14 else "int32_t"
    return f"typedef {extent} extent_t;\nenum {{ SPACE = {builder.space}, COLUMNS = {builder.columns}, ROWS = 16, TAPS = {builder.taps}, TAP_ROWS = {builder.tap_rows} }};"


def _dot(bits: int) -> str:
    """The kernels for weights of one plane."""
    double, single = [], []
    for shift in range(0, 16, bits):
        at = shift // bits * 4
        double.append(f"        p = PAIR(u, {shift}), q = PAIR(v, {shift});")
        sums = (("a", "p", at), ("b", "q", at), ("c", "p", at + 2), ("d", "q", at + 2))
        double += [f"        {total} = both({total}, {fields}, {bits}, x + {place});" for total, fields, place in sums]
        single.append(f"        a = both(a, PAIR(u, {shift}), {bits}, x + {at});")
        single.append(f"        b = both(b, PAIR(v, {shift}), {bits}, x + {at} + other);")
    text = kernel("dot", set()).replace("@double", "\n".join(double)).replace("@single", "\n".join(single))
    return (
        text.replace("@bits", str(bits)).replace("@mask", f"0x{(1 << bits) - 1:x}u").replace("@step", str(64 // bits))
    )


def _memory(builder: Builder) -> str:
    if not builder.plan.arena:
        return ""
    return f"static union {{\n    int32_t aligned;\n    uint8_t bytes[{builder.plan.arena}];\n}} memory;"


def _layers(builder: Builder, name: str) -> str:
    """The table of tensors that the self-test and a trace go through."""
    places = [builder.place(node.name) for node in builder.graph.nodes]
    rank = max(len(place.shape) for place in places)
    sums = checksums(builder.graph, builder.rounding)
    rows = []
    for place, total in zip(places, sums):
        missing = rank - len(place.shape)
        shape = ", ".join(map(str, [*[1] * missing, *place.shape]))
        strides = ", ".join(map(str, [*[0] * missing, *place.strides]))
        width = place.width if place.storage == "packed" else 0
        sign = {"int8": 8, "uint8": 0, "int32": 32, "packed": 0}[place.storage]
        rows.append(f"    {{{{{shape}}}, {{{strides}}}, {place.low}, {width}, {sign}, 0x{total:08x}u}},")
    listed = "\n".join(rows)
    text = kernel("check", builder.uses | ({"check_packed"} if any(p.storage == "packed" for p in places) else set()))
    upper = name.upper()
    return (
        text.replace("RANK", str(rank))
        .replace("@tensors", listed)
        .replace("NET_TRACE", f"{upper}_TRACE")
        .replace("NET_NO_SELFTEST", f"{upper}_NO_SELFTEST")
        .replace("net_trace", f"{name}_trace")
    )


def _run(builder: Builder, name: str) -> str:
    graph = builder.graph
    ports = [*inputs_of(graph), *outputs_of(graph)]
    declared = [f"{'const ' if port.role == 'input' else ''}{port.element} *{port.role}{port.number}" for port in ports]
    arena = "    uint8_t *const arena = memory.bytes;\n" if builder.plan.arena else ""
    body = "\n".join(builder.body)
    return (
        "/* Returns 0, or with `checking` the number of the first layer whose checksum differs. */\n"
        f"static int run({', '.join(declared)}, int checking)\n{{\n{arena}{body}\n    (void)checking;\n    return 0;\n}}\n\n"
        f"void {name}_run({parameters(graph, name)})\n{{\n    (void)run({', '.join(port.variable for port in ports)}, 0);\n}}"
    )


def _selftest(graph: Graph, name: str) -> str:
    inputs, outputs = inputs_of(graph), outputs_of(graph)
    lines = [f"    static {port.element} {port.role}{port.number}[{port.count}];" for port in (*inputs, *outputs)]
    lines += ["    uint32_t seed = 1;", "    size_t i;"]
    for port in inputs:
        y = port.node.codes_of()
        lines += [
            f"    for (i = 0; i < {port.count}; i++) {{",
            f"        seed = {NEXT};",
            f"        input{port.number}[i] = ({port.element})((int32_t)((seed >> 16) % {y.qp - y.qn + 1}u) + ({y.qn}));",
            "    }",
        ]
    arguments = [f"{port.role}{port.number}" for port in (*inputs, *outputs)]
    lines.append(f"    return run({', '.join(arguments)}, 1);")
    body = "\n".join(lines)
    return f"#ifndef {name.upper()}_NO_SELFTEST\nint {name}_selftest(void)\n{{\n{body}\n}}\n#endif"


def _floats(builder: Builder, name: str) -> str:
    """Conversions between floats and codes, and net_run_float."""
    graph = builder.graph
    inputs, outputs, variables = inputs_of(graph), outputs_of(graph), float_inputs(graph)
    parts = [f"#ifndef {name.upper()}_NO_FLOAT", kernel("quantize", builder.uses)]
    lines, before, after = [], [], []
    for port in inputs:
        y, kind = port.node.codes_of(), port.type_name(name)
        parts.append(
            f"void {name}_quantize_{port.variable}(const float *values, {kind} *codes)\n{{\n    int32_t i;\n"
            f"    for (i = 0; i < {port.count}; i++)\n"
            f"        codes[i] = ({kind})quantize(values[i], {float_constant(y.scale)}, {y.zero_point}, {y.qn}, {y.qp});\n}}"
        )
        before.append(f"    {name}_quantize_{port.variable}({variables[port.node.inputs[0]]}, codes{port.number});")
    for port in outputs:
        parts += _dequantize(graph, port, name)
        after.append(f"    {name}_dequantize_{port.variable}(results{port.number}, {port.variable});")
    lines += [f"    static {port.element} codes{port.number}[{port.count}];" for port in inputs]
    lines += [f"    static {port.element} results{port.number}[{port.count}];" for port in outputs]
    arguments = [f"codes{port.number}" for port in inputs] + [f"results{port.number}" for port in outputs]
    body = "\n".join([*lines, *before, f"    (void)run({', '.join(arguments)}, 0);", *after])
    parts += [f"void {name}_run_float({float_parameters(graph)})\n{{\n{body}\n}}", "#endif"]
    return "\n\n".join(parts)


def _dequantize(graph: Graph, port: Port, name: str) -> list[str]:
    """The function that gives the real values of an output."""
    node, function = port.node, f"{name}_dequantize_{port.variable}"
    head = f"void {function}(const {port.type_name(name)} *codes, float *values)\n{{\n    int32_t i;\n"
    loop = f"    for (i = 0; i < {port.count}; i++)\n        values[i] = "
    if isinstance(node.type, TensorType):
        zero, scale = node.type.zero_point, float_constant(node.type.scale)
        return [f"{head}{loop}(float)(codes[i] - ({zero})) * {scale};\n}}"]
    shape = node.shape_of()
    scales = list(map(float_constant, accumulator_scales(graph, node)))
    if len(scales) == 1:
        return [f"{head}{loop}(float)codes[i] * {scales[0]};\n}}"]
    table = f"static const float scales{port.number}[{len(scales)}] = {{\n{numbers(scales, per_line=6)}\n}};"
    assert isinstance(node, Layer)
    axis = node.channel_axis - 1 if node.channel_axis > 0 else len(shape) - 1
    apart = math.prod(shape[axis + 1 :])
    channel = f"i / {apart} % {shape[axis]}" if apart > 1 else f"i % {shape[axis]}"
    return [table, f"{head}{loop}(float)codes[i] * scales{port.number}[{channel}];\n}}"]
