"""The peers' quantizers with a learned step: as they stand in a network, and alone at a given step and offset.

Each peer is used through its own interface; only the published eager LSQ (lsq-net) is written out, from its formulas:
straight-through rounding and the scaled gradient of the step by adding what is detached.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lowbit
from lowbit import Grid


@dataclass(frozen=True)
class Alone:
    """A peer's quantizer at one step and offset.

    forward: x to x̂. parameters: what it learns. papers: their gradients as those of step and offset (None where it has none), by
    the chain rule from its own parameters to the papers' (x̂ = s·q + β).
    """

    forward: Callable[[Tensor], Tensor]
    parameters: Sequence[Tensor]
    papers: Callable[[Sequence[Tensor]], tuple[Tensor, Tensor | None]]


@dataclass(frozen=True)
class Peer:
    """One contestant.

    network: from (the float network, ours prepared and calibrated, a batch) to the same network with this peer's quantizers.
    alone: from (grid, step, offset or None) to its quantizer; raises NotImplementedError for what it does not have.
    packages: what it is installed from, beside torch.
    """

    network: Callable[[nn.Module, nn.Module, Tensor], nn.Module]
    alone: Callable[[Grid, Tensor, Tensor | None], Alone]
    packages: tuple[str, ...] = ()


class WithQuantizers(nn.Module):
    """A convolution or linear layer between a peer's quantizers of its input and its weight."""

    def __init__(self, layer: nn.Module, weight: nn.Module, inputs: nn.Module) -> None:
        super().__init__()
        self.layer, self.weight, self.inputs = layer, weight, inputs

    def forward(self, x: Tensor) -> Tensor:
        x, weight = self.inputs(x), self.weight(self.layer.weight)
        if isinstance(self.layer, nn.Linear):
            return F.linear(x, weight, self.layer.bias)
        return self.layer._conv_forward(x, weight, self.layer.bias)


def replaced(model: nn.Module, ours: nn.Module, make: Callable[[nn.Module, nn.Module], nn.Module]) -> nn.Module:
    """A copy of the float model in which `make(its layer, our layer)` stands for each layer that ours quantizes."""
    model = copy.deepcopy(model)
    for name, layer in list(model.named_modules()):
        prepared = ours.get_submodule(name)
        if isinstance(getattr(prepared, "weight_quantizer", None), lowbit.Quantizer):
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, make(layer, prepared))
    return model


def inserted(make: Callable[[Grid, Tensor], nn.Module]) -> Callable[[nn.Module, nn.Module, Tensor], nn.Module]:
    """The network with `make(grid, step)` at weights and inputs, on our grids and from our steps."""

    def network(model: nn.Module, ours: nn.Module, x: Tensor) -> nn.Module:
        def layer(own: nn.Module, prepared: nn.Module) -> nn.Module:
            weight, inputs = prepared.weight_quantizer, prepared.input_quantizer
            return WithQuantizers(own, make(weight.grid, weight.step), make(inputs.grid, inputs.step))

        made = replaced(model, ours, layer)
        made.train()(x)  # some of them make their parameters here
        return made

    return network


# lowbit


def our_network(model: nn.Module, ours: nn.Module, x: Tensor) -> nn.Module:
    return ours


def our_quantizer(grid: Grid, step: Tensor, offset: Tensor | None) -> Alone:
    step = step.clone().requires_grad_()
    learned = [step] if offset is None else [step, offset.clone().requires_grad_()]

    def forward(x: Tensor) -> Tensor:
        return lowbit.fake_quantize(x, step, grid, offset=None if offset is None else learned[1], method="lsq+")

    return Alone(forward, learned, lambda found: (found[0], None if offset is None else found[1]))


# lsq-net's formulation


class EagerLsq(nn.Module):
    """LSQ of eager operations: s scaled in the gradient, x/s, clamp, round with a straight-through gradient, times s."""

    def __init__(self, grid: Grid, step: Tensor) -> None:
        super().__init__()
        self.grid, self.step = grid, nn.Parameter(step.clone())

    def forward(self, x: Tensor) -> Tensor:
        g = (x.numel() * self.grid.qp) ** -0.5
        scaled = self.step * g
        step = scaled + (self.step - scaled).detach()
        position = torch.clamp(x / step, self.grid.qn, self.grid.qp)
        return (position + (torch.round(position) - position).detach()) * step


def eager_quantizer(grid: Grid, step: Tensor, offset: Tensor | None) -> Alone:
    if offset is not None:
        raise NotImplementedError("has no offset")
    module = EagerLsq(grid, step)
    return Alone(module, [module.step], lambda found: (found[0], None))


# torch's operator


class TorchLearnable(nn.Module):
    """torch._fake_quantize_learnable_per_tensor_affine, its gradient factor LSQ's g; per channel along the first dimension."""

    def __init__(self, grid: Grid, step: Tensor, offset: Tensor | None = None) -> None:
        super().__init__()
        self.grid, self.channel = grid, step.dim() > 0
        self.scale = nn.Parameter(step.reshape(-1).clone())
        zero = torch.zeros_like(step) if offset is None else -offset / step
        self.zero_point = nn.Parameter(zero.reshape(-1).clone(), requires_grad=offset is not None)

    def forward(self, x: Tensor) -> Tensor:
        qn, qp = self.grid.qn, self.grid.qp
        g = (x.numel() / self.scale.numel() * qp) ** -0.5
        if self.channel:
            return torch._fake_quantize_learnable_per_channel_affine(x, self.scale, self.zero_point, 0, qn, qp, g)
        return torch._fake_quantize_learnable_per_tensor_affine(x, self.scale, self.zero_point, qn, qp, g)


def of_scale_and_zero_point(step: Tensor, offset: Tensor | None) -> Callable:
    """From the gradients of (s, z) to those of (s, β): β = −s·z, so ∂/∂β = −∂/∂z / s and ∂/∂s|β = ∂/∂s|z − (z/s)·∂/∂z."""

    def papers(found: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
        by_scale = found[0].reshape(step.shape)
        if offset is None:
            return by_scale, None
        by_zero = found[1].reshape(step.shape)
        return by_scale + (offset / step) / step * by_zero, -by_zero / step

    return papers


def torch_quantizer(grid: Grid, step: Tensor, offset: Tensor | None) -> Alone:
    module = TorchLearnable(grid, step, offset)
    learned = [module.scale] if offset is None else [module.scale, module.zero_point]
    return Alone(module, learned, of_scale_and_zero_point(step, offset))


# torchao


def torchao_module(grid: Grid, step: Tensor, offset: Tensor | None = None) -> nn.Module:
    """torchao's LearnableFakeQuantize, learning, with its own scaling of gradients."""
    from torchao.quantization.pt2e import MinMaxObserver, PerChannelMinMaxObserver
    from torchao.quantization.pt2e.learnable_fake_quantize import LearnableFakeQuantize

    kind = "symmetric" if offset is None else "affine"
    if step.dim():
        arguments = dict(observer=PerChannelMinMaxObserver, ch_axis=0, qscheme=getattr(torch, f"per_channel_{kind}"))
    else:
        arguments = dict(observer=MinMaxObserver, qscheme=getattr(torch, f"per_tensor_{kind}"))
    dtype = torch.int8 if grid.signed else torch.uint8
    module = LearnableFakeQuantize(
        quant_min=grid.qn, quant_max=grid.qp, use_grad_scaling=True, dtype=dtype, **arguments
    )
    module.enable_range_learning()
    zero = torch.zeros_like(step) if offset is None else -offset / step
    module._initialize_or_update_qparams(step.reshape(-1).clone(), zero.reshape(-1).clone())
    if offset is None:
        module.zero_point.requires_grad_(False)
    return module


def torchao_quantizer(grid: Grid, step: Tensor, offset: Tensor | None) -> Alone:
    module = torchao_module(grid, step, offset)
    learned = [module.scale] if offset is None else [module.scale, module.zero_point]
    return Alone(module, learned, of_scale_and_zero_point(step, offset))


def torchao_qat_network(model: nn.Module, ours: nn.Module, x: Tensor) -> nn.Module:
    raise NotImplementedError("quantizes linear layers alone, a scale per group of inputs; has no convolution")


def torchao_qat_quantizer(grid: Grid, step: Tensor, offset: Tensor | None) -> Alone:
    """torchao's IntxFakeQuantizer with range learning, a scale per row."""
    from torchao.quantization.granularity import PerAxis
    from torchao.quantization.qat import IntxFakeQuantizeConfig, IntxFakeQuantizer

    if not step.dim():
        raise NotImplementedError("has a scale per row, per group or per token, none per tensor")
    dtype = getattr(torch, f"{'' if grid.signed else 'u'}int{grid.bits}")
    config = IntxFakeQuantizeConfig(
        dtype, PerAxis(0), is_symmetric=offset is None, is_dynamic=False, range_learning=True
    )
    module = IntxFakeQuantizer(config)
    zero = torch.zeros_like(step) if offset is None else -offset / step
    module.scale = nn.Parameter(step.clone())
    module.zero_point = nn.Parameter(zero.clone(), requires_grad=offset is not None)
    module._initialized = True
    learned = [module.scale] if offset is None else [module.scale, module.zero_point]
    return Alone(module, learned, of_scale_and_zero_point(step, offset))


# Brevitas


def brevitas_network(model: nn.Module, ours: nn.Module, x: Tensor) -> nn.Module:
    """Brevitas' own layers; scales are parameters that start from statistics of the weights and of one batch."""
    import brevitas.nn as qnn
    from brevitas.inject.enum import ScalingImplType
    from brevitas.quant import Int8ActPerTensorFloat, Int8WeightPerTensorFloat, Uint8ActPerTensorFloat

    class Weight(Int8WeightPerTensorFloat):
        scaling_impl_type = ScalingImplType.PARAMETER_FROM_STATS
        narrow_range = False

    class Signed(Int8ActPerTensorFloat):
        collect_stats_steps = 1

    class Unsigned(Uint8ActPerTensorFloat):
        collect_stats_steps = 1

    def layer(own: nn.Module, prepared: nn.Module) -> nn.Module:
        inputs = prepared.input_quantizer.grid
        settings = dict(
            weight_quant=Weight,
            weight_bit_width=prepared.weight_quantizer.grid.bits,
            input_quant=Signed if inputs.signed else Unsigned,
            input_bit_width=inputs.bits,
            bias=own.bias is not None,
        )
        if isinstance(own, nn.Linear):
            made = qnn.QuantLinear(own.in_features, own.out_features, **settings)
        else:
            made = qnn.QuantConv2d(
                own.in_channels, own.out_channels, own.kernel_size, own.stride, own.padding, own.dilation,
                groups=own.groups, **settings,
            )  # fmt: skip
        made.load_state_dict(own.state_dict(), strict=False)
        return made

    made = replaced(model, ours, layer).to(memory_format=torch.channels_last).train()
    for _ in range(3):  # statistics, then parameters
        made(x)
    return made


def brevitas_quantizer(grid: Grid, step: Tensor, offset: Tensor | None) -> Alone:
    from brevitas.core.bit_width import BitWidthConst
    from brevitas.core.quant import IntQuant, RescalingIntQuant
    from brevitas.core.scaling import IntScaling, ParameterScaling
    from brevitas.core.zero_point import ParameterZeroPoint, ZeroZeroPoint

    threshold = -grid.qn if grid.signed else grid.qp
    integers = IntQuant(narrow_range=False, signed=grid.signed, input_view_impl=nn.Identity())
    scaling = ParameterScaling(step * threshold, tuple(step.shape))
    zero = ZeroZeroPoint()
    if offset is not None:
        zero = ParameterZeroPoint(-offset, integers, True, tuple(offset.shape))
    quant = RescalingIntQuant(
        integers, scaling, IntScaling(narrow_range=False, signed=grid.signed), zero, BitWidthConst(grid.bits)
    )
    learned = [scaling.value] if offset is None else [scaling.value, zero.value]

    def papers(found: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
        return found[0] * threshold, None if offset is None else -found[1]

    return Alone(lambda x: quant(x)[0], learned, papers)


# NNCF


def nncf_network(model: nn.Module, ours: nn.Module, x: Tensor) -> nn.Module:
    """nncf.quantize, per tensor. At 8 bits: it takes no fewer on its public way, and its cost does not depend on them."""
    import nncf
    from nncf.quantization.advanced_parameters import (
        AdvancedQuantizationParameters,
        OverflowFix,
        QuantizationParameters,
    )

    one = QuantizationParameters(per_channel=False)
    settings = AdvancedQuantizationParameters(
        overflow_fix=OverflowFix.DISABLE,
        disable_bias_correction=True,
        activations_quantization_params=one,
        weights_quantization_params=one,
    )
    made = nncf.quantize(copy.deepcopy(model).eval(), nncf.Dataset([x]), subset_size=1, advanced_parameters=settings)
    return made.train()


def nncf_quantizer(grid: Grid, step: Tensor, offset: Tensor | None) -> Alone:
    from nncf.torch.quantization.quantize_functions import asymmetric_quantize, symmetric_quantize

    levels = grid.qp - grid.qn + 1
    if offset is None:
        scale = (step * grid.qp).clone().requires_grad_()

        def symmetric(x: Tensor) -> Tensor:
            return symmetric_quantize(x, levels, grid.qn, grid.qp, scale, 0.0)

        return Alone(symmetric, [scale], lambda found: (found[0] * grid.qp, None))
    low = offset.clone().requires_grad_()
    extent = (step * (levels - 1)).clone().requires_grad_()

    def asymmetric(x: Tensor) -> Tensor:
        return asymmetric_quantize(x, levels, grid.qn, grid.qp, low, extent, 0.0)

    return Alone(asymmetric, [extent, low], lambda found: (found[0] * (levels - 1), found[1]))


PEERS = {
    "lowbit": Peer(our_network, our_quantizer),
    "lsq-net's formulation": Peer(inserted(EagerLsq), eager_quantizer),
    "torch's learnable operator": Peer(inserted(TorchLearnable), torch_quantizer),
    "torchao, LearnableFakeQuantize": Peer(inserted(torchao_module), torchao_quantizer, ("torchao",)),
    "torchao, QAT with range learning": Peer(torchao_qat_network, torchao_qat_quantizer, ("torchao",)),
    "Brevitas": Peer(brevitas_network, brevitas_quantizer, ("brevitas",)),
    "NNCF": Peer(nncf_network, nncf_quantizer, ("nncf",)),
}
