"""Inputs of whole numbers: indices of embeddings, and masks of attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from lowbit.integer.arithmetic import f32
from lowbit.integer.graph import TensorType
from lowbit.integer.ops import Constant, Embedding, Expand, Lookup, Multiply
from lowbit.integer.ops.broadcast import broadcast_shape
from lowbit.integer.ops.lookup import codes_at
from lowbit.lowering import kinds as k
from lowbit.lowering.handlers.alignment import aligned, aligned_shape
from lowbit.lowering.handlers.moves import reshape_to
from lowbit.lowering.masks import limit_of
from lowbit.lowering.values import Codes, Computation, Finite, Held, Masked, Move

if TYPE_CHECKING:
    from lowbit.lowering.convert import Converter

BIT = TensorType(1.0, 0, 1, False)
"""The grid of masks: 0 and 1."""


def indices(converter: Converter, node: fx.Node) -> Finite:
    """An input of whole numbers."""
    source, module = converter.input_of(node), converter.modules[str(node.target)]
    if not converter.sample(source):
        raise converter.refusal(
            node, ", one of a sample, have an integer form with a dimension of size 1 behind the batch"
        )
    limit = limit_of(node, converter.kinds, converter.shapes, converter.modules)
    return Finite(node.name, str(source.target), converter.sample(source), limit, module)


def whole(converter: Converter, node: fx.Node) -> Any:
    """A function of the elements of whole numbers; of masks made of several, their negation, "and" or "or"."""
    tensors = [each for each in node.all_input_nodes if converter.kinds[each] is not k.SHAPE]
    values = {each: converter.value(each, node) for each in tensors}
    finite = [value for value in values.values() if isinstance(value, Finite)]
    if len(finite) == len(values) and len({(each.input, each.moves) for each in finite}) == 1:

        def function(x: Tensor) -> Tensor:
            args, kwargs = fx.map_arg((node.args, node.kwargs), lambda each: values[each].function(x))
            target: Any = getattr(Tensor, node.target) if isinstance(node.target, str) else node.target
            return target(*args, **kwargs)

        return replace(finite[0], name=node.name, function=function)
    name = str(getattr(node.target, "__name__", node.target)).strip("_")
    name = name.removeprefix("logical_").removeprefix("bitwise_")
    if name in ("and", "or") and len(tensors) == 2:
        return _joined(converter, node, name)
    if name in ("not", "invert", "bool") and len(tensors) == 1:
        return mask_codes(converter, tensors[0], node, inverted=name != "bool")
    raise converter.refusal(node, ": of whole numbers and other tensors, masks alone have it, joined by & and |")


def _joined(converter: Converter, node: fx.Node, how: str) -> Codes:
    """a ∧ b as a product of codes, a ∨ b as ¬(¬a ∧ ¬b)."""
    either = how == "or"
    a, b = aligned(converter, node, take=lambda each, user: mask_codes(converter, each, user, inverted=either))
    codes = _both(converter, node.name, a, b)
    return _inverted(converter, codes) if either else codes


def _both(converter: Converter, name: str, a: Codes, b: Codes) -> Codes:
    return converter.emit(name, lambda n: Multiply(name=n, inputs=(a.name, b.name), type=BIT))


def _inverted(converter: Converter, codes: Codes) -> Codes:
    table = torch.tensor([1, 0], dtype=torch.int16, device="cpu")
    return converter.emit(f"not_{codes.name}", lambda n: Lookup(name=n, inputs=(codes.name,), type=BIT, table=table))


def mask_codes(converter: Converter, tensor: fx.Node, node: fx.Node, *, inverted: bool) -> Codes:
    """The codes of a mask, 1 for True, or for False where it is inverted."""
    value = converter.value(tensor, node)
    if isinstance(value, Finite):
        return _table(converter, value, lambda x: value.function(x).bool() != inverted, BIT)
    if isinstance(value, Held):
        codes = (value.tensor.bool() != inverted).to(torch.int16)
        codes = codes if codes.ndim else codes.reshape(1)
        made = converter.emit(value.name, lambda n: Constant(name=n, inputs=(), type=BIT, codes=codes))
        return converter.moved(made, value.moves)
    if isinstance(value, Codes) and value.type == BIT:
        return _inverted(converter, value) if inverted else value
    raise converter.refusal(
        node, " takes a mask that is computed from data; bools and whole numbers have an integer form"
    )


def finite_codes(converter: Converter, value: Finite, node: fx.Node) -> Codes:
    """The codes of a function of whole numbers with the values 0 and c: one bit, with the step c."""
    found = value.function(torch.arange(value.limit, device="cpu")).double()
    step = float(found.max())
    if not step > 0 or not bool(((found == 0) | (found == step)).all()):
        raise converter.refusal(
            node,
            " takes a function of whole numbers with more values than 0 and another one; embeddings have an integer "
            "form",
        )
    return _table(converter, value, lambda x: value.function(x) != 0, TensorType(step, 0, 1, False))


def _table(converter: Converter, value: Finite, function: Any, kind: TensorType) -> Codes:
    """A table of one column, which an input's elements are looked up in."""
    codes = function(torch.arange(value.limit, device="cpu")).to(torch.int16).reshape(-1, 1)
    made = converter.emit(value.name, lambda n: Embedding(name=n, inputs=(value.input,), type=kind, codes=codes))
    return converter.moved(made, [reshape_to(value.name, value.shape or (1,)), *value.moves])


def mask(converter: Converter, node: fx.Node) -> Masked:
    """Scores of −∞ in some places: the mask goes along with the scores to the softmax."""
    source = converter.input_of(node)
    value = converter.value(source, node)
    scores = value.codes if isinstance(value, Masked) else converter.codes_at(source, node)
    if converter.shapes[source] != converter.shapes[node]:
        raise converter.refusal(node, " repeats its scores to the shape of the mask; expand them first")

    def take(each: fx.Node, user: fx.Node) -> Codes:
        return scores if each is source else mask_codes(converter, each, user, inverted=True)

    _, shown = aligned(converter, node, ("input", "mask"), take=take)
    whole, shape = converter.sample(node), aligned_shape(converter, node, converter.arguments(node)["mask"])
    if isinstance(value, Masked):
        shape = whole if value.shapes is None else broadcast_shape([shape, value.shapes[0]])
        shown = _both(converter, node.name, value.shown, shown)
    return Masked(scores, shown, (shape, whole))


def moved_mask(converter: Converter, value: Masked, moves: Sequence[Move]) -> Masked:
    """Codes behind a mask in other places, and the mask with them."""
    shown = value.shown
    if value.shapes is not None:
        own, whole = value.shapes
        expand = Move(f"{shown.name}_repeated", lambda n, x: Expand(name=n, inputs=(x,), shape=whole))
        shown = converter.moved(shown, [reshape_to(shown.name, own), expand])
    return Masked(converter.moved(value.codes, moves), converter.moved(shown, moves), None)


def embedding(converter: Converter, node: fx.Node) -> Computation:
    """Rows of a table."""
    given = converter.arguments(node)
    value = converter.value(given["input"], node)
    if not isinstance(value, Finite) or value.moves:
        raise converter.refusal(
            node, " takes indices that are no input of the network, or stand in another order than there"
        )
    if node.op == "call_module":
        module = converter.modules[str(node.target)]
        assert isinstance(module, nn.Embedding)
        weight: Tensor = module.weight
    else:
        weight = converter.parameter(given["weight"], node)
    rows = weight.detach()[value.function(torch.arange(value.limit, device=weight.device))].cpu()

    def make(name: str, y: Any) -> Embedding:
        assert isinstance(y, TensorType)
        codes = codes_at(rows / f32(y.scale), y).clamp(y.qn, y.qp).to(torch.int16)
        return Embedding(name=name, inputs=(value.input,), type=y, codes=codes)

    return Computation(node.name, make)


HANDLERS = {k.INDICES: indices, k.WHOLE: whole, k.MASK: mask, k.EMBEDDING: embedding}
