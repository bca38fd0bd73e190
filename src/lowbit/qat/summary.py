"""What a prepared network is made of, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from itertools import chain

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lowbit.grid import Grid
from lowbit.inputs import Inputs, each
from lowbit.layers.attention import QuantizedAttention, quantized_attentions
from lowbit.layers.quantized import QuantizedLayer, float_class
from lowbit.layers.unquantized import unquantized
from lowbit.qat.calibrate import observed
from lowbit.quantizer.module import Quantizer


@dataclass(frozen=True)
class LayerRow:
    """One convolution or linear layer, one matrix product of an attention, or a module that stays in full precision.

    A matrix product has no parameters, and what would be the weight is its right operand (the keys, the values). A
    side in full precision has None as bits and "float" as grid; the grid of activations that only data decides is
    "from data" before calibration. `macs` (multiply-accumulates for one sample) and `bit_operations` (macs · weight
    bits · activation bits) are None unless an example input was given; full precision counts as 32 bits.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    weight_bits: int | None
    activation_bits: int | None
    weight_grid: str
    activation_grid: str
    steps: int
    method: str
    parameters: int
    macs: int | None = None

    @property
    def granularity(self) -> str:
        """Elements of the weight that share a step, as `lowbit.prepare` spells it; "-" in full precision."""
        if self.steps <= 1:
            return "tensor" if self.steps else "-"
        channels = self.shape[0]
        if self.steps == channels or self.kind.startswith("ConvTranspose"):
            return "channel"
        if self.steps < channels:
            return f"channels:{channels // self.steps}"
        return f"group:{self.parameters // self.steps}"

    @property
    def bit_operations(self) -> int | None:
        """macs · weight bits · activation bits."""
        return None if self.macs is None else self.macs * (self.weight_bits or 32) * (self.activation_bits or 32)

    @property
    def size_bits(self) -> int:
        """Bits that the weight takes."""
        return self.parameters * (self.weight_bits or 32)

    def as_dict(self) -> dict:
        """The fields and the derived figures by name."""
        return {
            **asdict(self),
            "granularity": self.granularity,
            "bit_operations": self.bit_operations,
            "size_bits": self.size_bits,
        }


def layer_table(model: nn.Module, example_input: Inputs | None = None) -> list[LayerRow]:
    """A row per convolution and linear layer, prepared or not, and two per quantized attention.

    What else computes with weights (nn.LSTM, an embedding, a module that multiplies with a parameter of its own) stays
    in full precision and has a row too, with the shape () where it has several weights, and without `macs`.

    With `example_input`, [1, …], or a dictionary of such tensors by the names of forward's arguments, the model is run
    once without its quantizers, which need not be calibrated, to count multiply-accumulates. On the meta device
    (`torch.empty(1, 3, 224, 224, device="meta")`) nothing is computed.
    """
    macs = {} if example_input is None else _count_macs(model, example_input)
    rows = []
    floats = {each.name: each for each in unquantized(model)}
    for name, module in model.named_modules():
        if name in floats:
            each = floats[name]
            weights = list(each.weights.values())
            row = _row(name, each.kind, weights[0] if len(weights) == 1 else None, None, None, None)
            rows.append(replace(row, parameters=each.parameters))
        if isinstance(module, QuantizedLayer):
            sides = module.weight_quantizer, module.input_quantizer
            rows.append(_row(name, _kind(module), module.weight, *sides, macs.get(name)))
        elif float_class(module) is not None:
            assert isinstance(module.weight, Tensor)
            rows.append(_row(name, _kind(module), module.weight, None, None, macs.get(name)))
        elif isinstance(module, QuantizedAttention):
            for product, left, right in (
                ("q·k", module.q_quantizer, module.k_quantizer),
                ("p·v", module.probability_quantizer, module.v_quantizer),
            ):
                rows.append(_row(f"{name} {product}", "MatMul", None, right, left, macs.get(name)))
    return rows


def _kind(layer: nn.Module) -> str:
    kind = float_class(layer)
    assert kind is not None
    return kind.__name__


def _row(
    name: str, kind: str, weight: Tensor | None, right: nn.Module | None, left: nn.Module | None, macs: int | None
) -> LayerRow:
    weight_side, activation_side = _side(right), _side(left)
    return LayerRow(
        name=name,
        kind=kind,
        shape=() if weight is None else tuple(weight.shape),
        weight_bits=weight_side[0],
        activation_bits=activation_side[0],
        weight_grid=weight_side[1],
        activation_grid=activation_side[1],
        steps=right.raw_step.numel() if isinstance(right, Quantizer) else 0,
        method=next((q.method.name for q in (right, left) if isinstance(q, Quantizer)), "-"),
        parameters=0 if weight is None else weight.numel(),
        macs=macs,
    )


def model_size_bits(model: nn.Module) -> int:
    """Bits to store the network's parameters: quantized weights at their width, everything else at 32.

    A parameter that several modules share is stored once for each form in which they need it: an embedding tied to a
    4-bit output layer takes 4 + 32 bits per element, since the embedding computes with floats. Steps and offsets count
    at 32 bits; batch-norm statistics, which fold away, do not count.
    """
    total = 0
    floats: dict[int, Tensor] = {}
    codes = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            quantizer = module.weight_quantizer if isinstance(module, QuantizedLayer) and name == "weight" else None
            if not isinstance(quantizer, Quantizer):
                floats[id(parameter)] = parameter
            elif (id(parameter), id(quantizer)) not in codes:  # each quantizer has steps, and so codes, of its own
                codes.add((id(parameter), id(quantizer)))
                total += parameter.numel() * quantizer.bits
    return total + 32 * sum(parameter.numel() for parameter in floats.values())


def _side(module: nn.Module | None) -> tuple[int | None, str]:
    """(bits, grid) of a layer's weights or activations."""
    if not isinstance(module, Quantizer):
        return None, "float"
    if module.initialized:
        return module.bits, str(module.grid)
    signed = module.method.signed if module.signed is None else module.signed
    if signed is None:
        return module.bits, "from data"
    return module.bits, str(Grid(module.bits, signed, module.narrow and signed and module.bits > 1))


def _count_macs(model: nn.Module, example_input: Inputs) -> dict[str, int]:
    """Multiply-accumulates for one sample, by layer; of one of its two products for an attention."""
    counts: dict[str, int] = {}
    hooks = []
    for name, layer in model.named_modules():
        if float_class(layer) is None:
            continue

        def count(layer, inputs, output, name=name):
            # Every weight but the output channel's own index is used once per output element.
            transposed = isinstance(layer, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d))
            elements = inputs[0].numel() if transposed else output.numel()
            counts[name] = counts.get(name, 0) + elements // inputs[0].shape[0] * (layer.weight[0].numel())

        hooks.append(layer.register_forward_hook(count))
    for name, attention in quantized_attentions(model):

        def count_product(attention, inputs, output, name=name):
            tokens, features = inputs[0].shape[1], attention.qkv.out_features // 3
            counts[name] = counts.get(name, 0) + tokens * tokens * features

        hooks.append(attention.register_forward_hook(count_product))
    tensors = {}
    if all(x.is_meta for x in tree_leaves(example_input)):
        everything = chain(model.named_parameters(), model.named_buffers())
        tensors = {name: tensor.to("meta") for name, tensor in everything}
    else:
        example_input = each(lambda x: x.to(next(model.parameters()).device), example_input)
    try:
        with observed(model):
            named = example_input if isinstance(example_input, Mapping) else {}
            torch.func.functional_call(model, tensors, () if named else (example_input,), dict(named))
    finally:
        for hook in hooks:
            hook.remove()
    return counts
