"""Weights that are computed before each call of their layer: by torch's hooks, or by its parametrizations.

Weight normalization, spectral normalization and pruning keep what is learned under another name (`weight_g`,
`weight_orig`) and put the weight in its place as a plain attribute. A quantizer would be initialized from whatever
stands there at that moment, and an integer network has no such computation.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from lowbit.errors import LowbitError


def computed(module: nn.Module) -> Iterator[tuple[str, str, str]]:
    """What of a module's own parameters is computed: the attribute, by what, and the call that ends it."""
    if parametrize.is_parametrized(module):
        assert isinstance(module.parametrizations, nn.ModuleDict)
        for name, steps in module.parametrizations.items():
            by = ", ".join(type(step).__name__.removeprefix("_") for step in steps.children())
            yield name, f"a parametrization ({by})", "torch.nn.utils.parametrize.remove_parametrizations"
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm):
            yield hook.name, "torch.nn.utils.weight_norm", "torch.nn.utils.remove_weight_norm"
        elif isinstance(hook, SpectralNorm):
            yield hook.name, "torch.nn.utils.spectral_norm", "torch.nn.utils.remove_spectral_norm"
        elif isinstance(hook, prune.BasePruningMethod):
            yield hook._tensor_name, "torch.nn.utils.prune", "torch.nn.utils.prune.remove"


def plain_class(module: nn.Module) -> type[nn.Module]:
    """The class of a module without its parametrizations."""
    return type(module).__mro__[1] if parametrize.is_parametrized(module) else type(module)


def check_not_computed(name: str, module: nn.Module) -> None:
    """Refuse a module with a parameter that is computed before each call.

    Raises:
        LowbitError: naming the module, its class, and what to call.
    """
    for attribute, by, remedy in computed(module):
        raise LowbitError(
            f"layer {name!r} ({plain_class(module).__name__}): its {attribute} is computed before each call, by "
            f"{by}: make it a parameter again with {remedy}(layer, {attribute!r})"
        )


def copied(model: nn.Module) -> nn.Module:
    """A deep copy of the model.

    Tensors that hooks compute before each call are copied without the graph they come from.

    Raises:
        LowbitError: something in it can't be copied; names the module and the attribute.
    """
    made: dict[int, Tensor] = {}
    for module in model.modules():
        for attribute, _, _ in computed(module):
            value = vars(module).get(attribute)
            if isinstance(value, Tensor):
                made[id(value)] = value.detach().clone()
    try:
        return copy.deepcopy(model, dict(made))
    except Exception as error:  # whatever the objects in it raise
        for name, module in model.named_modules():
            for attribute, value in vars(module).items():
                if attribute != "_modules" and not _can_be_copied(value, made):
                    raise LowbitError(
                        f"module {name!r} ({type(module).__name__}): its attribute {attribute!r} can't be copied "
                        f"({_first_sentence(error)}), and prepare makes a copy of the network: delete it first, or "
                        "set it to None"
                    ) from error
        raise


def _can_be_copied(value: object, made: dict[int, Tensor]) -> bool:
    try:
        copy.deepcopy(value, dict(made))
    except Exception:
        return False
    return True


def _first_sentence(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text.partition(". ")[0].rstrip(".")
