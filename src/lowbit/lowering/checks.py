"""What must hold of a network before and after it is converted."""

from __future__ import annotations

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lowbit.errors import LowbitError
from lowbit.integer.graph import Graph
from lowbit.layers.computed import check_not_computed
from lowbit.layers.quantized import QuantizedLayer, float_class
from lowbit.lowering.calls import REMEDY_FOR_ONE, Modules, class_of, describe, describe_layer
from lowbit.lowering.folding import IntegerNorm
from lowbit.lowering.shapes import Shapes
from lowbit.lowering.trained import Places
from lowbit.quantizer.module import Quantizer

_DIVERGED = "training has diverged; go back to an earlier checkpoint and lower the learning rate"


def check_float_layers(model: nn.Module) -> None:
    """Refuse layers in full precision: an integer-only network has none.

    Raises:
        LowbitError: naming the first such layer.
    """
    for name, module in model.named_modules():
        if isinstance(module, QuantizedLayer):
            for side, what in ((module.weight_quantizer, "weights"), (module.input_quantizer, "inputs")):
                if not isinstance(side, Quantizer):
                    raise LowbitError(
                        f"{describe_layer(name, module)} has full-precision {what}, which an integer-only network "
                        "can't have: give them bits"
                    )
        elif float_class(module) is not None:
            raise LowbitError(
                f"{describe_layer(name, module)} is in full precision, which an integer-only network can't have: give "
                "it bits, 8 if need be"
            )


def check_quantizers(model: nn.Module, fractional_zero_points: bool, allow_diverged: bool = False) -> None:
    """Refuse quantizers whose codes no integer network can have, or should have.

    Raises:
        LowbitError: naming the quantizer, for one that has no step yet, a step or offset that is not finite, a step
            that has run out of its bounds unless `allow_diverged`, a fractional zero point unless
            `fractional_zero_points`, one that a byte can't hold, and activations of one bit and sign.
    """
    for name, module in model.named_modules():
        if not isinstance(module, Quantizer):
            continue
        grid = module.grid
        if grid is None:
            raise LowbitError(f"{module.name} has no step yet: calibrate and train the network before converting it")
        holder = model.get_submodule(name.rpartition(".")[0])
        where = module.name + (f" ({class_of(holder).__name__})" if isinstance(holder, QuantizedLayer) else "")
        for value, what in ((module.learned_step, "step"), (module.offset, "offset")):
            if value is not None and not bool(torch.isfinite(value).all()):
                raise LowbitError(f"{where} has a {what} that is not finite: {_DIVERGED}")
        if module.diverged and not allow_diverged:
            raise LowbitError(
                f"{where} {_run_away(module)}: {_DIVERGED}, or convert it all the same with allow_diverged=True"
            )
        if not module.integer_zero_point and not fractional_zero_points:
            raise LowbitError(
                f"{module.name} has a fractional offset, which integers can't express: call "
                "lowbit.round_zero_points(model) first, best before the last epochs of training"
            )
        offset = 1 << (module.bits - 1) if grid.signed else 0
        top = 255 if module.bits <= 8 else 65535
        if bool(((module.zero_point + offset < 0) | (module.zero_point + offset > top)).any()):
            raise LowbitError(
                f"{where} has the zero point {float(module.zero_point.flatten()[0]):g}, which the byte of its codes "
                "can't hold: its values lie far to one side of 0, where an offset doesn't pay; prepare it without one "
                "(method='lsq' by a rule)"
            )
        if grid.binary and not module.name.startswith("the weight"):
            raise LowbitError(f"{module.name} is binary {{-1, 1}}, which has no zero: give activations 2 bits or more")


def _run_away(quantizer: Quantizer) -> str:
    """What a step that has left its bounds was and is."""
    raw, used, initial = (
        x.detach().flatten() for x in (quantizer.learned_step, quantizer.bounded, quantizer.initial_step)
    )
    at = int((raw != used).nonzero()[0])
    return (
        f"was initialized with the step {float(initial[at]):.3g}, which training has driven to {float(raw[at]):.3g}, "
        f"beyond the bound {float(used[at]):.3g} of what is computed with"
    )


def check_norms(model: nn.Module) -> None:
    """Refuse batch-norms of an integer-only network that have been replaced since it was prepared.

    Raises:
        LowbitError: naming one that evaluates otherwise than its integer form will.
    """
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and not isinstance(module, IntegerNorm):
            raise LowbitError(
                f"{describe_layer(name, module)} took the place of a batch-norm after lowbit.prepare, and does not "
                "evaluate as integers "
                "will: call nn.SyncBatchNorm.convert_sync_batchnorm first and then prepare(…, integer_only=True); the "
                "state dict of this network loads into that one"
            )


def check_parameters(model: nn.Module) -> None:
    """Refuse parameters and buffers that are not float32 or not finite, and parameters that hooks compute.

    Masks may be −∞.

    A mask or a bound may be infinite: buffers may, but for batch-norm's.

    Raises:
        LowbitError: naming the layer that has it.
    """
    for name, module in model.named_modules():
        check_not_computed(name, module)
    masks = {name: value.clamp(min=0) for name, value in model.named_buffers()}
    for name, value in (*model.named_parameters(), *masks.items()):
        if not value.is_floating_point():
            continue
        holder, _, what = name.rpartition(".")
        layer = describe_layer(holder, model.get_submodule(holder))
        if value.dtype != torch.float32:
            raise LowbitError(f"{layer}: its {what} is {value.dtype}, not float32: call model.float() first")
        may_be_infinite = not isinstance(value, nn.Parameter) and not isinstance(
            model.get_submodule(holder), _BatchNorm
        )
        if bool(value.isnan().any()) if may_be_infinite else not bool(torch.isfinite(value).all()):
            raise LowbitError(f"{layer}: its {what} holds NaN or infinity: {_DIVERGED}")


def check_shapes(graph: Graph, places: Places, model: fx.GraphModule, modules: Modules, shapes: Shapes) -> None:
    """Refuse a graph whose tensors have other shapes than the trained network's.

    An operation was not what it was taken for.

    Raises:
        LowbitError: naming the operation, and both shapes.
    """
    nodes = {node.name: node for node in model.graph.nodes}
    for place, name in places.items():
        tensor = nodes[place.node].all_input_nodes[0]
        expected, found = place.layout.sample(shapes[tensor]), graph.by_name[name].shape_of()
        if found != expected:
            raise LowbitError(
                f"{describe(tensor, modules)} gives shape {expected} in the trained network and {found} in integers: "
                f"it is used in a way that has no integer form; {REMEDY_FOR_ONE}"
            )
