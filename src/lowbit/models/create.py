"""A network by its name, with weights from a file."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from lowbit._torchvision import import_torchvision
from lowbit.errors import LowbitError, did_you_mean
from lowbit.models.cifar_resnet import CifarResNet
from lowbit.models.digits import DigitsCnn

_OWN: dict[str, Callable[[int], nn.Module]] = {
    **{f"cifar-resnet{depth}": partial(CifarResNet, depth) for depth in (20, 32, 44, 56, 110)},
    "digits-cnn": DigitsCnn,
}


def names() -> list[str]:
    """The names of lowbit's own networks; `create` takes timm's beside them."""
    return list(_OWN)


def create(
    name: str, *, num_classes: int | None = None, weights: str | Path | None = None, pretrained: bool = False
) -> nn.Module:
    """A network in full precision.

    Args:
        name: one of `names()` (underscores serve as dashes), or any name of timm's `create_model`.
        num_classes: outputs of the last layer; by default 10 for lowbit's own, timm's default for timm's.
        weights: a local file of weights, see `load_weights`. Without it they are random.
        pretrained: start from the weights timm publishes under this name, fetched or from its cache.

    Raises:
        LowbitError: the name is unknown (close ones are in the message); `pretrained` weights cannot be had;
            `weights` and `pretrained` are both given; the file does not fit.
    """
    if weights is not None and pretrained:
        raise LowbitError(f"{name}: weights and pretrained are both given: keep one of the two")
    own = _OWN.get(name.replace("_", "-"))
    if own is not None:
        if pretrained:
            raise LowbitError(f"{name}: there are no published weights to fetch; give a local file as weights")
        model = own(10 if num_classes is None else num_classes)
    else:
        model = _create_timm(name, num_classes, pretrained)
    if weights is not None:
        load_weights(model, weights)
    return model


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Copy the tensors of a file into a network, all of them and no others.

    Takes safetensors (`.safetensors`) and what `torch.save` wrote of a state dict (`.pt`, `.pth`, `.bin`; read
    without running code from it). Only batch-norm's counters `num_batches_tracked` may be absent.

    Raises:
        LowbitError: no such file, not of these formats, or other names or shapes than the network's.
    """
    path = Path(path)
    found = _read_tensors(path)
    wanted = model.state_dict()
    missing = [key for key in wanted if key not in found and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in found if key not in wanted]
    shapes = [
        f"{key} {tuple(found[key].shape)} for {tuple(wanted[key].shape)}"
        for key in wanted
        if key in found and found[key].shape != wanted[key].shape
    ]
    problems = [
        f"{what} {', '.join(keys[:3])}{f' and {len(keys) - 3} more' if len(keys) > 3 else ''}"
        for what, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if keys
    ]
    if problems:
        raise LowbitError(
            f"{path}: not weights of this {type(model).__name__}: {'; '.join(problems)}; "
            "give the weights of the same network with the same number of classes"
        )
    try:
        model.load_state_dict(found, strict=False)
    except RuntimeError as error:  # what a layer refuses by itself, such as a quantizer of other bits
        raise LowbitError(f"{path}: {error}") from error


def _read_tensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise LowbitError(f"weights {path} {'is not a file' if path.exists() else 'does not exist'}")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise LowbitError(f"{path}: not a readable safetensors file ({error})") from error
    if path.suffix not in (".pt", ".pth", ".bin"):
        raise LowbitError(f"{path}: weights must be a .safetensors, .pt, .pth or .bin file")
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises KeyError, EOFError, UnpicklingError, RuntimeError and more
        raise LowbitError(
            f"{path}: not a file of tensors ({_first_line(error)}); save a state dict, not a whole module"
        ) from error
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise LowbitError(f"{path}: holds no state dict (a dict of tensors by name)")
    return tensors


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _create_timm(name: str, num_classes: int | None, pretrained: bool) -> nn.Module:
    timm = _import_timm()
    # A tag behind the dot names weights: resnet18.a1_in1k is resnet18's.
    if not timm.is_model(name):
        known = [*names(), *timm.list_models()]
        hint = did_you_mean(name.replace("_", "-"), known) or did_you_mean(name, known)
        raise LowbitError(
            f"unknown network {name!r}.{hint} lowbit's own are {', '.join(names())}; timm.list_models() has all others"
        )
    arguments = {} if num_classes is None else {"num_classes": num_classes}
    try:
        return timm.create_model(name, pretrained=pretrained, **arguments)
    except (OSError, RuntimeError, ValueError) as error:
        if not pretrained:
            raise LowbitError(f"timm cannot make {name}: {error}") from error
        raise LowbitError(
            f"pretrained weights of {name} cannot be fetched ({_first_line(error)}); "
            "without a network connection give a local file as weights"
        ) from error


def _import_timm() -> ModuleType:
    import_torchvision()
    try:
        import timm
    except ModuleNotFoundError as error:
        raise LowbitError(
            f"{error}: networks beside lowbit's own come from timm: pip install 'lowbit[train]'"
        ) from error
    return timm
