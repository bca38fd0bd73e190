"""The table of methods: one entry per published method, made of the parts in this package.

A method combines a surrogate gradient of rounding, a gradient scaling, a step gradient, an initialization and a choice
of offset. A new one is

    METHODS["mine"] = Method("mine", surrogate_gradient=GradientFunction(my_derivative, 3.0),
    activations=METHODS["lsq"])

where `my_derivative(position, value)` is any elementwise function of tensors. See docs/add-a-method.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from lowbit._deprecated import renamed_arguments, renamed_property
from lowbit.errors import LowbitError, did_you_mean
from lowbit.grid import Grid
from lowbit.quantizer.initialization import (
    Init,
    get_init,
    least_squares_init,
    lsq_init,
    max_init,
    three_sigma_init,
    unit_init,
)
from lowbit.quantizer.rounding import GradientFunction, asr, dsq, ewgs, mde
from lowbit.quantizer.step import Balance, StepGradient, clip_inside, clip_scale, lsq_inside, ssg_inside

SCALES: dict[str, tuple[bool, bool]] = {
    "free": (False, False),
    "power-of-two": (True, True),
    "power-of-two-weights": (True, False),
    "power-of-two-activations": (False, True),
}
"""Whether the steps of weights and of activations are powers of two, by name."""


@renamed_arguments(slope="surrogate_gradient", pull="gradient_scaling")
@dataclass(frozen=True)
class Method:
    """One entry of the table: how a tensor is quantized and how its step and offset are learned.

    Args:
        name: what the method is called in messages and files.
        surrogate_gradient: the derivative of a soft round that replaces that of round() in the backward pass; None is
            the straight-through estimator's 1.
        gradient_scaling: a factor of the gradient that depends on the rounding error, as in EWGS; None is 1.
        step_gradient: how the step is learned; None keeps its initial value.
        init: the initialization of step and offset.
        signed: the activation grid; None decides from data (unsigned where nothing is negative, or with an offset).
        offset: when an activation quantizer learns an offset: "never", where activations go "negative", or "always".
        range: None, or a function (x, grid, step_shape) -> step that computes the step from x at every call.
        transform: None, or a differentiable map applied to the tensor before it is quantized.
        activations: the method that activations use instead of this one.
        power_of_two: compute with the power of two nearest to the step, in the logarithm; the step is learned through
            it.
    """

    name: str
    surrogate_gradient: GradientFunction | None = None
    gradient_scaling: GradientFunction | None = None
    step_gradient: StepGradient | None = StepGradient()
    init: Init = lsq_init
    signed: bool | None = None
    offset: Literal["never", "negative", "always"] = "never"
    range: Callable[[Tensor, Grid, tuple[int, ...]], Tensor] | None = None
    transform: Callable[[Tensor], Tensor] | None = None
    activations: Method | None = None
    power_of_two: bool = False

    slope = renamed_property("Method", "slope", "surrogate_gradient")
    pull = renamed_property("Method", "pull", "gradient_scaling")

    @property
    def for_activations(self) -> Method:
        """The method for the network's activations."""
        return self.activations or self

    def varied(
        self,
        *,
        init_weights: str | Init | None = None,
        init_activations: str | Init | None = None,
        balance: Balance | None = None,
        scales: str | None = None,
    ) -> Method:
        """The same method with other initializations, a balance or other scales; None keeps what the method has.

        Args:
            init_weights: of steps of weights: a name in `INITS`, or a rule (see `initialization`).
            init_activations: of steps of activations, likewise.
            balance: of every step that is learned.
            scales: a name in `SCALES`: which steps are powers of two.

        Raises:
            LowbitError: an unknown rule or name, or a balance where no step is learned.
        """
        sides = [
            side if init is None else replace(side, init=get_init(init))
            for side, init in ((self, init_weights), (self.for_activations, init_activations))
        ]
        if balance is not None:
            if not any(side.step_gradient for side in sides):
                raise LowbitError(f"method {self.name!r} learns no steps: it has no gradients to balance")
            sides = [
                replace(side, step_gradient=replace(side.step_gradient, balance=balance))
                if side.step_gradient
                else side
                for side in sides
            ]
        if scales is not None:
            if scales not in SCALES:
                raise LowbitError(
                    f"scales={scales!r}.{did_you_mean(str(scales), SCALES)} Known are {', '.join(SCALES)}"
                )
            sides = [replace(side, power_of_two=rounded) for side, rounded in zip(sides, SCALES[scales])]
        weights, activations = sides
        activations = replace(activations, activations=None)
        if replace(weights, activations=None) == activations:
            return activations
        return replace(weights, activations=activations)


def max_range(x: Tensor, grid: Grid, step_shape: tuple[int, ...]) -> Tensor:
    """s = max|x| / qp over the elements that share a step: the range of min-max quantization, at every call."""
    x = x.detach()
    missing = x.dim() - len(step_shape)
    shared = tuple(dim for dim in range(x.dim()) if dim < missing or step_shape[dim - missing] == 1)
    # Without dimensions to reduce, amax would reduce them all.
    magnitude = torch.maximum(x.amax(shared), -x.amin(shared)) if shared else x.abs()
    magnitude = magnitude.reshape(step_shape)
    # An all-zero channel has no range; any step serves it.
    return magnitude.float().clamp_min(torch.finfo(torch.float32).tiny) / grid.qp


def tanh_transform(w: Tensor) -> Tensor:
    """DoReFa's map of weights, max|w|·tanh(w)/max|tanh(w)| (Zhou et al. 2016, arXiv 1606.06160, Eq. 9).

    The paper leaves the result in [−1, 1]; multiplied back by max|w|, a trained network starts near itself.
    """
    squashed = torch.tanh(w)
    return squashed * (w.detach().abs().max() / squashed.detach().abs().max())


def lsq_plus(configuration: int) -> Method:
    """LSQ+ with the activation quantizer of the paper's Table 1.

    1 unsigned without offset (LSQ's), 2 signed without, 3 signed with offset, 4 unsigned with offset: the entries
    "lsq+1" to "lsq+4" of the table. Its entry "lsq+" takes 4 where activations go negative and 1 elsewhere.
    """
    if configuration not in (1, 2, 3, 4):
        raise LowbitError(f"LSQ+ has the configurations 1 to 4, got {configuration!r}")
    activations = Method(
        f"lsq+{configuration}",
        init=least_squares_init,
        signed=configuration in (2, 3),
        offset="always" if configuration >= 3 else "never",
    )
    return replace(METHODS["lsq+"], name=activations.name, activations=activations)


_BALANCE = Balance()


def lg_lsq(
    *,
    ssg: bool = True,
    balance: Balance | None = _BALANCE,
    asr_k: float | None = 2.0,
    mde_delta: float | None = 0.05,
    base: str = "lsq",
) -> Method:
    """LG-LSQ (reconstructed, methods.md §4) with each part on its own switch, on top of LSQ or LSQ+.

    Args:
        ssg: SSG's form of the step's gradient, from the soft quantizer.
        balance: SSG's magnitude, measured during training, instead of LSQ's fixed g, for weights and activations; None
            keeps g.
        asr_k: ASR's sharpness; None is the straight-through estimator.
        mde_delta: MDE's strength; None switches it off.
        base: the method that gives initialization, offset and the activations, "lsq" or "lsq+".
    """
    method = get_method(base)
    method = replace(
        method,
        name="lg-lsq" if base == "lsq" else f"lg-{base}",
        surrogate_gradient=None if asr_k is None else asr(asr_k),
        gradient_scaling=None if mde_delta is None else mde(mde_delta),
        step_gradient=StepGradient(inside=ssg_inside if ssg else lsq_inside),
        activations=method.for_activations,
    )
    return method.varied(balance=balance)


_LSQ = Method("lsq")
_DOREFA_WEIGHTS = Method("dorefa", step_gradient=None, init=max_init, range=max_range, transform=tanh_transform)

METHODS: dict[str, Method] = {
    # Esser et al., ICLR 2020, arXiv 1902.08153
    "lsq": _LSQ,
    # Bhalgat et al., CVPRW 2020, arXiv 2004.09576
    "lsq+": Method(
        "lsq+",
        init=three_sigma_init,
        activations=Method("lsq+", init=least_squares_init, offset="negative"),
    ),
    # Choi et al. 2018, arXiv 1805.06085; weights as DoReFa, as in the paper
    "pact": replace(
        _DOREFA_WEIGHTS,
        name="pact",
        activations=Method(
            "pact", step_gradient=StepGradient(inside=clip_inside, scale=clip_scale, decayed=True), init=max_init
        ),
    ),
    # Zhou et al. 2016, arXiv 1606.06160
    "dorefa": replace(_DOREFA_WEIGHTS, activations=Method("dorefa", step_gradient=None, init=unit_init)),
    # Straight-through estimator in the range of the data (Jacob et al., CVPR 2018, arXiv 1712.05877)
    "minmax": Method(
        "minmax",
        step_gradient=None,
        init=max_init,
        range=max_range,
        activations=Method("minmax", step_gradient=None, init=max_init),
    ),
    # Lee et al., CVPR 2021, arXiv 2104.00903
    "ewgs": Method("ewgs", gradient_scaling=ewgs()),
    # Gong et al., ICCV 2019, arXiv 1908.05033
    "dsq": Method("dsq", surrogate_gradient=dsq()),
}


def get_method(method: str | Method) -> Method:
    """The method of that name, or the method itself.

    Raises:
        LowbitError: no such method; the message names the close ones.
    """
    if isinstance(method, Method):
        return method
    if isinstance(method, str) and method in METHODS:
        return METHODS[method]
    raise LowbitError(
        f"unknown method {method!r}.{did_you_mean(str(method), METHODS)} Known are {', '.join(sorted(METHODS))}"
    )


# Lin et al. 2022, arXiv 2202.09009 (reconstructed)
METHODS["lg-lsq"] = lg_lsq()

# Bhalgat et al., the configurations one by one
METHODS |= {f"lsq+{configuration}": lsq_plus(configuration) for configuration in (1, 2, 3, 4)}

DEFAULT = METHODS["lsq"].varied(init_activations="least-squares")
"""Where no method is named: LSQ from the start that measured best (decision 0029)."""
