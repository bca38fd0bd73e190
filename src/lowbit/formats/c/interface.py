"""What callers see: inputs and outputs of net_run, and the header that declares them.

The header also says what the network takes.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

from lowbit.formats.c.source import C_TYPES, Builder, comment
from lowbit.integer.costs import layer_costs
from lowbit.integer.graph import FloatType, Graph, Node, TensorType
from lowbit.integer.ops import Quantize

STACK = 1024
"""Bytes of stack that net_run takes at most.

What was measured on seven cores at -O2 is below (docs/results/microcontrollers.md).
"""


@dataclass(frozen=True)
class Port:
    """An input or an output of net_run.

    Attributes:
        node: the Quantize node whose codes the caller gives, or the node whose tensor it gets.
        role: "input" or "output".
        number: from 0.
    """

    node: Node
    role: str
    number: int

    @property
    def suffix(self) -> str:
        """Behind the names of the second, third, … input or output."""
        return "" if self.number == 0 else str(self.number + 1)

    @property
    def variable(self) -> str:
        """The parameter's name."""
        return f"{self.role}{self.suffix}"

    @property
    def count(self) -> int:
        """How many numbers it has."""
        return math.prod(self.node.shape_of())

    @property
    def element(self) -> str:
        """The C type of a number: of a code, or of an accumulator where the network's output is a float."""
        if isinstance(self.node.type, FloatType):
            return "int32_t"
        return C_TYPES["int8" if self.node.codes_of().signed else "uint8"]

    def type_name(self, name: str) -> str:
        """The type's name in the header."""
        return f"{name}_{self.role}{self.suffix}_t"


def inputs_of(graph: Graph) -> list[Port]:
    """The inputs: one per Quantize node, whose codes net_run takes."""
    nodes = [node for node in graph.nodes if isinstance(node, Quantize)]
    return [Port(node, "input", number) for number, node in enumerate(nodes)]


def outputs_of(graph: Graph) -> list[Port]:
    """The outputs, in the graph's order."""
    return [Port(graph.by_name[name], "output", number) for number, name in enumerate(graph.outputs)]


def parameters(graph: Graph, name: str) -> str:
    """The parameters of net_run."""
    given = [f"const {port.type_name(name)} *{port.variable}" for port in inputs_of(graph)]
    return ", ".join(given + [f"{port.type_name(name)} *{port.variable}" for port in outputs_of(graph)])


def float_parameters(graph: Graph) -> str:
    """The parameters of net_run_float: the inputs are the graph's."""
    given = [f"const float *{variable}" for variable in float_inputs(graph).values()]
    return ", ".join(given + [f"float *{port.variable}" for port in outputs_of(graph)])


def float_inputs(graph: Graph) -> dict[str, str]:
    """The parameters' names of the graph's float inputs."""
    return {name: "input" if number == 1 else f"input{number}" for number, name in enumerate(graph.inputs, 1)}


def fingerprint(graph: Graph) -> str:
    """Eight hexadecimal digits that tell networks with other layers, shapes or outputs apart."""
    layers = [(node.name, type(node).__name__, node.shape_of()) for node in graph.nodes]
    return hashlib.sha256(repr((dict(graph.inputs), layers, graph.outputs)).encode()).hexdigest()[:8]


def static_memory(builder: Builder) -> int:
    """Bytes of RAM that the network takes beside the stack: tensors and windows."""
    return builder.plan.arena + _windows(builder)


def _windows(builder: Builder) -> int:
    return 2 * builder.columns + builder.tap_rows + 16 * builder.taps


def accumulator_scales(graph: Graph, node: Node) -> list[float]:
    """What one unit of the accumulators of a float output is worth: one number, or one per channel."""
    (m,) = node.multipliers(graph.input_types(node))
    return m.single.reshape(-1).tolist()


def header(builder: Builder, name: str, stem: str, export: str, code: int) -> str:
    """net.h."""
    graph, upper = builder.graph, name.upper()
    given, got = inputs_of(graph), outputs_of(graph)
    costs = layer_costs(graph)
    weights, ram, constants = 4 * len(builder.weights), static_memory(builder), sum(builder.flash.values())
    lines = [
        f"/* lowbit C99 {comment(stem)}.h: an integer network in C99, without malloc, floats between codes, or "
        "libraries but memory functions.",
        "   It was made by lowbit; the code is its user's own, and no licence is asked for.",
        "",
        f"   RAM      {ram:,} bytes static: {builder.plan.arena:,} of tensors, {_windows(builder):,} of windows;"
        f" at most {STACK} of stack; and the caller's inputs and outputs",
        f"   flash    {constants:,} bytes of constants, {weights:,} of them packed weights; about {code:,} of code "
        "(Cortex-M4, -O2)",
        f"   work     {sum(cost.macs for cost in costs):,} multiply-accumulates",
        f'   codes    those of lowbit\'s integer reference in the rounding "{builder.rounding}"',
        "",
        *(line for port in (*given, *got) for line in _described(graph, port)),
        "*/",
        f"#ifndef {upper}_H\n#define {upper}_H",
        "",
        "#include <stdint.h>",
        "",
        f"#define {upper}_EXPORT 0x{export}u /* {comment(stem)}.c asks for it */",
        *(line for port in (*given, *got) for line in _macros(port, upper)),
        f"#define {upper}_RAM_BYTES {ram}",
        f"#define {upper}_STACK_BYTES {STACK}",
        f"#define {upper}_WEIGHT_BYTES {weights}",
        f"#define {upper}_CONSTANT_BYTES {constants}",
        f"#define {upper}_CODE_BYTES {code} /* an estimate */",
        f"#define {upper}_MACS {sum(cost.macs for cost in costs)}",
        f"#define {upper}_LAYERS {len(graph.nodes)}",
        "",
        *(f"typedef {port.element} {port.type_name(name)};" for port in (*given, *got)),
        "",
        '#ifdef __cplusplus\nextern "C" {\n#endif',
        "",
        "/* From the input's codes to the output's, both in the order of the model's own axes, the first outermost. "
        "Not reentrant. */",
        f"void {name}_run({parameters(graph, name)});",
        "",
        f"#ifndef {upper}_NO_SELFTEST",
        "/* Runs a known input. Returns 0, or the number of the first layer whose codes are not those that they "
        "should be. */",
        f"int {name}_selftest(void);",
        "#endif",
        "",
        f"#ifndef {upper}_NO_FLOAT",
        "/* The same from real numbers to real numbers. An input that is NaN has the lowest code. */",
        f"void {name}_run_float({float_parameters(graph)});",
        *(f"void {name}_quantize_{p.variable}(const float *values, {p.type_name(name)} *codes);" for p in given),
        *(f"void {name}_dequantize_{p.variable}(const {p.type_name(name)} *codes, float *values);" for p in got),
        "#endif",
        "",
        "#ifdef __cplusplus\n}\n#endif",
        "",
        "#endif",
    ]
    return "\n".join(lines) + "\n"


def _described(graph: Graph, port: Port) -> list[str]:
    node, shape = port.node, " x ".join(map(str, port.node.shape_of()))
    if isinstance(node.type, TensorType):
        y = node.type
        what = f"{y.bits}-bit {'signed' if y.signed else 'unsigned'} codes {y.qn} to {y.qp}, worth {y.scale:.9g} * (code - {y.zero_point})"
    else:
        scales = accumulator_scales(graph, node)
        worth = f"{scales[0]:.9g}" if len(scales) == 1 else "its channel's scale"
        what = f"32-bit accumulators, worth {worth} each"
    return [f"   {port.variable:8} {comment(node.name)}: {shape}, {what}"]


def _macros(port: Port, upper: str) -> list[str]:
    name, y = f"{upper}_{port.variable.upper()}", port.node.type
    lines = [f"#define {name}_SIZE {port.count}"]
    if isinstance(y, TensorType):
        lines += [
            f"#define {name}_BITS {y.bits}",
            f"#define {name}_SCALE {float_constant(y.scale)}",
            f"#define {name}_ZERO_POINT ({y.zero_point})",
        ]
    return lines


def float_constant(value: float) -> str:
    """A float32 value in C99, exactly."""
    return f"{value.hex()}f"
