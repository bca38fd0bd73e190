"""From a trained network to integers, to a file, and to the proof that all of them compute the same."""

from __future__ import annotations

import os
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

from torch import fx, nn

from lowbit.batches import required_inputs
from lowbit.errors import LowbitError
from lowbit.files import check_writable
from lowbit.formats import get_format, open_file
from lowbit.integer.costs import check_accumulators
from lowbit.integer.graph import Graph
from lowbit.integer.network import IntegerNetwork
from lowbit.integer.outputs import output_grids, with_output_grids
from lowbit.integer.validate import validate
from lowbit.lowering.convert import convert, trained_runner
from lowbit.lowering.proof import Proof, check_equal, random_inputs
from lowbit.lowering.shapes import named_examples
from lowbit.lowering.trained import Places
from lowbit.quantizer.module import Quantizer
from lowbit.verification.compare import compare, compare_with_trained, inputs_and_labels
from lowbit.verification.report import Report

# The share of codes that float32 sums in another order may move, one code moving others behind it.
_AT_TIES = 0.05
_ELEMENTS_OF_RANDOM_INPUTS = 1 << 30
"""Of all tensors of the random samples that an export is proved on: eight, fewer of a network with large tensors."""


def to_integer(
    model: nn.Module, example_input: Any, *, allow_diverged: bool = False, accumulator_bits: int | None = None
) -> IntegerNetwork:
    """The integer-only form of a trained network: integer weights, activations, biases and accumulators.

    Batch-norm is folded into the requantization, biases become int32 on the accumulator's grid, and every accumulator
    is proved to fit 32 bits, by its bound over the actual weights. Every node is compared with the trained network's
    own operations (`lowering.proof`), on the example and on random inputs; `export` and `verify` do so on their data.

    Args:
        model: from `lowbit.prepare(…, integer_only=True)`, calibrated and trained; not changed.
        example_input: a batch of inputs: a tensor, or where the network takes several a tuple of them in the order of
            its arguments, or a dictionary by their names; shapes without the batch are the integer network's.
        allow_diverged: convert a network of which training has driven a step out of its bounds, or below zero, with the
            bound that it is computed with in evaluation as well.
        accumulator_bits: of the processor; a network with sums that could overflow it is refused, with the width that
            every such layer needs. (`costs` has the width of each, too.) None is 32.

    Raises:
        LowbitError: the network was prepared otherwise or is not calibrated, a step is not finite or has run out of its
            bounds (training has diverged), a zero point is not an integer (`lowbit.round_zero_points`), an operation
            has no integer form, an accumulator can overflow, or the integer network would compute something else than
            the trained one; the message names the layer or node.
    """
    proof = Proof(*_converted(model, example_input, allow_diverged=allow_diverged))
    if accumulator_bits is not None:
        check_accumulators(proof.graph, accumulator_bits)
    check_equal(proof, named_examples(model, example_input))
    return IntegerNetwork(proof.graph, proof)


def export(
    network: IntegerNetwork | nn.Module,
    path: str | os.PathLike,
    format: str = "onnx",
    *,
    batches: Iterable[Any] | None = None,
    allow_diverged: bool = False,
    max_ram: int | None = None,
    max_flash: int | None = None,
    io: str | None = None,
    weights: str | None = None,
    rounding: str | None = None,
) -> Report:
    """Write the network to a file, which is kept only if it computes what the network does.

    The file is written beside, run in its own runtime against the integer reference, and renamed if not one code
    differs.

    Args:
        network: from `to_integer`. For "qonnx" also the trained network itself, from `lowbit.prepare(…,
            integer_only=True)`, if its zero points (LSQ+) are not rounded: they stay the fractions they are. No
            integers compute that, so the file is compared with the trained network and kept if at most one code in
            twenty differs, by float32's rounding at ties.
        path: the file to write. Its folder must exist.
        format: a name in `lowbit.formats.FORMATS`: "onnx" (opset 21, 8-bit carriers), "onnx-packed" (the same
            arithmetic, weights stored at their width), "qonnx" (for FINN; run here in ONNX Runtime's
            floats), "executorch" (.pte for XNNPACK, one sample at a time; its output alone is compared), "litert"
            (.tflite for XNNPACK), "lowbit" (`IntegerNetwork.load` reads it), "json" (the network as text), "c" (C99
            for microcontrollers, with a header beside it, in the rounding "shift" or another) or "hls4ml" (.fml, for
            FPGAs, of networks with power-of-two steps).
        batches: inputs to prove it on; eight random inputs over the whole range of the input's quantizer by default,
            fewer where their tensors have more than a billion elements together. A
            trained network needs them: their shape is the input's.
        allow_diverged: of a trained network, as for `to_integer`.
        max_ram: bytes of RAM of the microcontroller that a "c" file is for; a network that takes more is refused.
        max_flash: bytes of its flash, likewise.
        io: of a "litert" file. "codes" writes 8-bit operators alone, for microcontrollers (TensorFlow Lite Micro) and
            NPUs: inputs and outputs are codes, signed bytes with the channels last, and the rounding is
            "double-rounding". Outputs that are floats get a grid of 8 bits over the values that they have on the
            batches.
        weights: "int4" stores weights of at most 4 bits two to a byte, in a "litert" file of codes.
        rounding: of a "c" file: "shift", "fixed", "fixed16", "double-rounding" or "single-rounding"
            (`lowbit.integer.roundings`).

    Returns:
        The comparison.

    Raises:
        LowbitError: unknown format, missing folder or package, a network that was changed into none, or a file that
            does not compute the same.
    """
    fractional = _has_fractions(network) and get_format(format).takes_fractions
    if not isinstance(network, IntegerNetwork) and not fractional:
        raise LowbitError(
            f"export takes the integer network, not a {type(network).__name__}: make it with lowbit.to_integer(model, "
            "example_input), or read it with lowbit.IntegerNetwork.load(path)"
        )
    writer = get_format(format)
    options = writer.checked_options({"io": io, "weights": weights, "rounding": rounding})
    path = Path(path)
    check_writable(path)
    trained = None
    if isinstance(network, IntegerNetwork):
        graph = validate(network.graph)
        writer.check_memory(graph, max_ram, max_flash)
        if batches is None:
            batches = [random_inputs(graph, min(8, max(1, _ELEMENTS_OF_RANDOM_INPUTS // graph.elements())))]
        if options.get("io") == "codes":
            batches, names = list(batches), list(graph.inputs)
            inputs = (inputs_and_labels(batch, names)[0] for batch in batches)
            graph = with_output_grids(graph, output_grids(graph, inputs))
    else:
        first, batches = _first_of(
            () if batches is None else batches, "a trained network is exported with batches, whose shape is its input's"
        )
        how = {"fractional_zero_points": True, "allow_diverged": allow_diverged}
        prepared, graph, places = _converted(network, inputs_and_labels(first, required_inputs(network))[0], **how)
        trained = trained_runner(prepared, graph, places)
    with writer.staged(path) as temporary:
        writer.checked_write(graph, temporary, options)
        runner = writer.checked_open(temporary, graph)
        if isinstance(network, IntegerNetwork):
            report = compare(network, runner, batches, proof=network.proof)
        else:
            assert trained is not None
            report = compare_with_trained(graph, runner, batches, trained)
        if not (report.ok or (fractional and report.differ <= _AT_TIES * report.compared)):
            whose = "trained network" if fractional or report.conversion_differ else "network"
            at = report.first_conversion_difference or report.first_difference
            raise LowbitError(
                f"{path}: not written, because the file would not compute what the {whose} does (it first differs at "
                f"{at!r}):\n"
                f"{report.text()}"
            )
    return report


def _has_fractions(network: Any) -> bool:
    """Whether it is a trained network with zero points that are not integers."""
    return isinstance(network, nn.Module) and any(
        isinstance(module, Quantizer) and not module.integer_zero_point for module in network.modules()
    )


def _first_of(batches: Iterable[Any], lacking: str) -> tuple[Any, Iterable[Any]]:
    """The first batch, and all of them once more.

    Raises LowbitError, which begins with `lacking`, where there is none.
    """
    rest = iter(batches)
    first = next(rest, None)
    if first is None:
        raise LowbitError(f"{lacking}: give at least one batch")
    return first, chain([first], rest)


def _converted(model: nn.Module, example_input: Any, **options: bool) -> tuple[fx.GraphModule, Graph, Places]:
    """The network and what `convert` gives of it."""
    graph, places = convert(model, example_input, **options)
    assert isinstance(model, fx.GraphModule)  # `convert` refuses others
    return model, graph, places


def verify(
    model: nn.Module | IntegerNetwork, file: str | os.PathLike, batches: Iterable[Any], *, board: str | None = None
) -> Report:
    """Run trained network, integer reference and exported file on the same data, and compare code by code.

    Args:
        model: the trained network (converted again, so that a change after the export shows), or an integer network.
        file: what `export` wrote, in any format; of an "executorch" file the output alone is compared.
        batches: inputs, or (input, label) pairs, or tuples of all inputs; gone through once, one at a
            time in memory.
        board: a core on which a "c" file is compiled and run in an emulator: "cortex-m0", "cortex-m3", "cortex-m4",
            "cortex-m7", "cortex-m33", "cortex-m55" or "rv32".

    Returns:
        A report with a row per tensor; `.ok` says whether file and integer reference agree on every code.

    Raises:
        LowbitError: no data, a file of another network, or what `to_integer` raises.
    """
    first, batches = _first_of(batches, "there is no data to compare on")
    if isinstance(model, IntegerNetwork):
        return compare(model, open_file(file, model.graph, board), batches, fixed=True, proof=model.proof)
    # What to make of steps that have run away was decided when the file was written.
    example, _ = inputs_and_labels(first, required_inputs(model))
    proof = Proof(*_converted(model, example, allow_diverged=True))
    runner = open_file(file, proof.graph, board)
    return compare(IntegerNetwork(proof.graph), runner, batches, trained=proof.trained, fixed=True, proof=proof)
