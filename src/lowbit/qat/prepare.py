"""From a float model to one with quantizers."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from lowbit.errors import LowbitError
from lowbit.layers.attention import is_attention, quantize_attention
from lowbit.layers.computed import check_not_computed, copied
from lowbit.layers.quantized import QuantizedLayer, add_quantizers, check_layer, float_class
from lowbit.layers.reading import quantize_reads
from lowbit.layers.rules import INSERTED, Rule, Rules, Setting, check_bits
from lowbit.layers.sites import input_sites, quantizers, upgrade_names
from lowbit.layers.unquantized import UnquantizedWarning, unquantized, warning_text
from lowbit.qat.integers import Recording, recorded, refuse_state
from lowbit.quantizer.initialization import Init
from lowbit.quantizer.methods import DEFAULT, Method, get_method
from lowbit.quantizer.module import Quantizer
from lowbit.quantizer.step import Balance


def prepare(
    model: nn.Module,
    *,
    weights: int | None = 4,
    activations: int | None = 4,
    method: str | Method | None = None,
    init_weights: str | Init | None = None,
    init_activations: str | Init | None = None,
    balance: Balance | None = None,
    scales: str | None = None,
    accumulator_bits: int | None = None,
    first_last: int | None = 8,
    rules: Sequence[Rule] = (),
    granularity: str = "tensor",
    narrow: bool = False,
    integer_only: bool = False,
    example_input: Any = None,
) -> nn.Module:
    """A copy of the model with quantizers at the weights and inputs of its convolution and linear layers.

    Where the model has timm's `Attention`, its matrix products are quantized too: q, k, v and the probabilities, with
    the attention's own name in rules ("blocks.0.attn") and the bits of activations.

    Parameter names stay, so checkpoints of the float model load into the result; the model given is left as it is. The
    quantizers have no steps yet: run `lowbit.calibrate` next, or load a checkpoint of a prepared network.

    Args:
        model: any module with nn.Conv1d/2d/3d, nn.ConvTranspose1d/2d/3d or nn.Linear layers.
        weights: bits of weights, 1 to 8; None leaves them in full precision.
        activations: bits of activations, likewise.
        method: a name in `lowbit.METHODS`, which is as its paper has it, or a `Method`. None is LSQ with one change:
            steps of activations are initialized where the squared error is least (docs/decisions/0029).
        init_weights: how steps of weights are initialized, instead of as the method does it: a name in
            `quantizer.initialization.INITS`, or a function as there. The `method` of a rule is taken as it is, here and
            below.
        init_activations: how steps of activations are initialized, likewise.
        balance: hold the gradients of steps at the pace of their weights, up to 4 bits (SSG's magnitude); None leaves
            the method's.
        scales: which steps are powers of two, learned in the logarithm: "power-of-two" (all of them),
            "power-of-two-weights" or "power-of-two-activations"; "free" is none, and None leaves the method's. With
            `integer_only` the gains of batch-norms behind such weights are powers of two as well, so that integers are
            requantized by shifts.
        accumulator_bits: the width, 2 to 32, that every sum of a layer's products must fit whatever its input is, with
            the bias of an integer-only network; training keeps the weights to it (`layers.accumulators`). None is no
            bound but 32 bits.
        first_last: bits of the first and the last layer (in the order of `named_modules`), both sides; the papers use
            8. None leaves the two in full precision.
        rules: exceptions by layer name; the first that matches decides.
        granularity: elements of a weight that share a step: "tensor", "channel", "group:N" or "channels:N".
        narrow: symmetric signed grids.
        integer_only: also quantize every tensor that an integer processor needs on a grid (additions, concatenations,
            pooling, lookups), so that `lowbit.to_integer` can convert the network. The result is then a
            torch.fx.GraphModule; the inserted quantizers have 8 bits and are called "activation_quantizers.…", which
            rules can match.
        example_input: for `integer_only`: a batch of inputs (a tensor, a tuple of them in the order of forward's
            arguments, or a dictionary by their names). With it sizes are numbers in forward, which control flow may
            depend on, and what has no integer form is found here, all of it. Without it that is left to
            `lowbit.calibrate`, whose first batch serves; a network that can't be recorded before is an ordinary module
            until then.

    Warns:
        UnquantizedWarning: once, naming what computes with weights in full precision because lowbit does not quantize
            it: nn.LSTM and its like, embeddings, nn.Bilinear, nn.MultiheadAttention, modules whose own methods multiply
            with a parameter. A rule with skip=True says that it is meant.

    Raises:
        LowbitError: nothing to quantize, a model that is prepared already, bits out of range, an unknown method, a rule
            that matches no layer, or a layer whose computation can't be reproduced; the message names it.
    """
    method = DEFAULT if method is None else get_method(method)
    method = method.varied(init_weights=init_weights, init_activations=init_activations, balance=balance, scales=scales)
    default = Setting(weights, activations, method, granularity, narrow, accumulator_bits=accumulator_bits)
    for name, bits in (("weights", weights), ("activations", activations), ("first_last", first_last)):
        check_bits(bits, name)
    layers = {name: module for name, module in model.named_modules() if float_class(module) is not None}
    if any(isinstance(module, (QuantizedLayer, Quantizer)) for module in model.modules()):
        raise LowbitError("the model is prepared already: prepare the float model it came from")
    if not layers:
        raise LowbitError("the model has no convolution or linear layer to quantize")
    matching = Rules(rules)
    settings = {}
    for name in layers:
        setting = default
        if name in (next(iter(layers)), next(reversed(layers))):
            # The papers' policy. A side that is in full precision everywhere stays so.
            setting = replace(
                default,
                weights=None if weights is None else first_last,
                activations=None if activations is None else first_last,
            )
        settings[name] = matching.setting(name, setting)
    chosen = {name: setting for name, setting in settings.items() if not setting.skip}
    for name in chosen:
        check_layer(name, layers[name])
    if integer_only:  # which computes with the parameters of every module
        for name, module in model.named_modules():
            check_not_computed(name, module)
    if not integer_only:
        _check_attention(model, chosen)
    whole = {} if integer_only else {name: each for name, each in model.named_modules() if is_attention(each)}
    attentions = {name: matching.setting(name, default) for name in whole}
    floats = [] if integer_only else [each for each in unquantized(model) if not matching.skips(each.name)]
    if not integer_only:
        matching.check_used()

    prepared = copied(model)
    for name, setting in chosen.items():
        add_quantizers(name, prepared.get_submodule(name), setting)
    for name, setting in attentions.items():
        if not setting.skip:
            quantize_attention(name, prepared.get_submodule(name), setting)
    if not integer_only:  # which records such calls
        quantize_reads(prepared)
    if integer_only:
        method_between = replace(get_method("lsq"), power_of_two=method.for_activations.power_of_two)
        between = Setting(None, 8, method_between, "tensor", narrow)
        prepared = recorded(prepared, Recording(matching, between, default), example_input)
    if floats:
        left = {id(weight): weight.numel() for each in floats for weight in each.weights.values()}
        share = sum(left.values()) / sum(parameter.numel() for parameter in model.parameters())
        warnings.warn(warning_text(floats, share), UnquantizedWarning, stacklevel=2)
    prepared.register_load_state_dict_pre_hook(refuse_state)
    prepared.register_load_state_dict_pre_hook(upgrade_names)
    prepared.register_load_state_dict_pre_hook(_forget_with_float_weights)
    prepared.register_load_state_dict_post_hook(_share_as_saved)
    return prepared


def _check_attention(model: nn.Module, chosen: dict[str, Setting]) -> None:
    for parent, module in model.named_modules():
        inner = f"{parent}.out_proj" if parent else "out_proj"
        if isinstance(module, nn.MultiheadAttention) and inner in chosen:
            raise LowbitError(
                f"layer {inner!r} is never called: nn.MultiheadAttention reads its weight directly. Leave it in full "
                f"precision with lowbit.Rule({inner!r}, skip=True), or use an attention made of linear layers (timm's)"
            )
        if isinstance(module, nn.TransformerEncoderLayer) and any(
            name.startswith(f"{parent}.") or not parent for name in chosen
        ):
            raise LowbitError(
                f"layer {parent!r} is an nn.TransformerEncoderLayer, which reads its weights directly in evaluation "
                "and would run in full precision there: use a transformer made of plain layers (timm's), or leave its "
                "layers out by rules"
            )


def _forget_with_float_weights(model: nn.Module, state_dict: dict, prefix: str, *_: object) -> None:
    """Before loading: where a checkpoint has a layer's weights but not its quantizers, those are initialized again.

    A part of a checkpoint (strict=False) leaves the quantizers of layers that it does not have as they are.
    """
    inside = {key[:dot] for key in state_dict for dot in range(len(key)) if key[dot] == "."}
    for name, quantizer in quantizers(model):
        holder = (prefix + name).rpartition(".")[0]
        of_layer = holder in inside or holder == f"{prefix}{INSERTED}"  # what stands between layers goes with them
        if state_dict and of_layer and prefix + name not in inside:
            quantizer.reset()


def _share_as_saved(model: nn.Module, incompatible_keys: object) -> None:
    """After loading: layers whose input quantizers were one when they were saved share one again."""
    first: dict[int, Quantizer] = {}
    for site in input_sites(model):
        number = site.quantizer.shared
        if number:
            site.quantizer = first.setdefault(number, site.quantizer)
