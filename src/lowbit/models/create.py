"""A network by its name."""

from __future__ import annotations

import copy
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from lowbit._torchvision import import_torchvision
from lowbit.errors import LowbitError, did_you_mean
from lowbit.models.networks import NETWORKS, Network
from lowbit.models.weights import first_line, load_weights
from lowbit.references import called, imported, is_reference

_LIBRARIES = ("timm", "torchvision")


def names() -> list[str]:
    """The short names; `create` takes timm's and torchvision's beside them."""
    return list(NETWORKS)


def create(
    name: str, *, num_classes: int | None = None, weights: str | Path | None = None, pretrained: bool = False
) -> nn.Module:
    """A network in full precision.

    Args:
        name: one of `names()`, any name of timm's `create_model`, or a classification network of torchvision
            ("torchvision:NAME" where timm has the name too), in which underscores serve as dashes and the other way
            round; or a class or function of your own that gives a network, as "package.module:name".
        num_classes: outputs of the last layer; by default as many as the network was published with. Your own class or
            function gets it where it takes an argument of this name.
        weights: a local file of weights, see `load_weights`. Without it they are random.
        pretrained: start from the weights that timm or torchvision publishes under this name, fetched or from its
            cache. timm's tag behind a dot chooses among several ("resnet18.tv_in1k").

    Raises:
        LowbitError: the name is unknown (close ones are in the message); `pretrained` weights cannot be had;
            `weights` and `pretrained` are both given; the file does not fit; a number of classes for the auto-encoder.
    """
    if weights is not None and pretrained:
        raise LowbitError(f"{name}: weights and pretrained are both given: keep one of the two")
    network = NETWORKS.get(name.replace("_", "-"))
    if is_own(name):
        if pretrained:
            raise LowbitError(f"{name}: your own network has no published weights; give a file of weights (--init)")
        model = _create_yours(name, num_classes)
    elif network is not None and not isinstance(network.build, str):
        if pretrained:
            raise LowbitError(f"{name}: there are no published weights to fetch; give a local file of weights (--init)")
        model = _create_own(network, num_classes)
    else:
        library, name_there = _library_and_name(name)
        create_there = _create_torchvision if library == "torchvision" else _create_timm
        model = create_there(name_there, num_classes, pretrained)
    if weights is not None:
        load_weights(model, weights)
    return model


def is_own(name: str) -> bool:
    """Whether a name is that of a user's own class or function, `package.module:name`."""
    return is_reference(name) and name.partition(":")[0] not in _LIBRARIES


def has_published_weights(name: str) -> bool:
    """Whether timm or torchvision publishes weights under this name.

    Raises:
        LowbitError: the name is unknown.
    """
    network = NETWORKS.get(name.replace("_", "-"))
    if is_own(name) or (network is not None and not isinstance(network.build, str)):
        return False
    library, there = _library_and_name(name)
    if library == "timm":
        return _import_timm().models.is_model_pretrained(there)
    return len(import_torchvision().models.get_model_weights(there)) > 0


def published_settings(name: str) -> dict[str, Any]:
    """What timm says of the weights that it publishes under this name: mean, std, input_size, …; else nothing.

    Raises:
        LowbitError: the name is unknown.
    """
    library, there = _library_and_name(name)
    found = _import_timm().get_pretrained_cfg(there) if library == "timm" else None
    return {} if found is None else found.to_dict()


def _create_yours(name: str, num_classes: int | None) -> nn.Module:
    build = imported(name, "network")
    if isinstance(build, nn.Module):
        return copy.deepcopy(build)  # the module's own stays as it is
    if not callable(build):
        raise LowbitError(
            f"network {name!r} is a {type(build).__name__}: give a class, or a function that returns a network"
        )
    model = called(build, name, "network", **({} if num_classes is None else {"num_classes": num_classes}))
    if not isinstance(model, nn.Module):
        raise LowbitError(f"network {name!r} returns a {type(model).__name__}, expected a torch.nn.Module")
    return model


def _create_own(network: Network, num_classes: int | None) -> nn.Module:
    assert not isinstance(network.build, str)
    if network.num_classes is not None:
        return network.build(num_classes=network.num_classes if num_classes is None else num_classes)
    if num_classes is not None:
        raise LowbitError(f"{network.name}: has no classes, its output is a reconstruction; leave num_classes out")
    return network.build()


def _library_and_name(name: str) -> tuple[str, str]:
    """Which library makes the network, and the name it has there.

    Raises:
        LowbitError: neither knows it.
    """
    # A tag behind a dot names weights of timm's: resnet18.a1_in1k. Some short names have a dot of their own.
    base, dot, tag = (name, "", "") if name.replace("_", "-") in NETWORKS else name.partition(".")
    short = NETWORKS.get(base.replace("_", "-"))
    if short is not None and isinstance(short.build, str) and (not tag or short.build.startswith("timm:")):
        base = short.build
    library, there = base.split(":", 1) if ":" in base else ("", base)
    there = there.replace("-", "_")
    timm, torchvision = _import_timm(), import_torchvision()
    if library in ("", "timm") and timm.is_model(there):
        return "timm", f"{there}{dot}{tag}"
    others = torchvision.models.list_models(module=torchvision.models)
    if library in ("", "torchvision") and there in others and not tag:
        return "torchvision", there
    known = list(dict.fromkeys([*names(), *timm.list_models(), *others]))
    hint = did_you_mean(name.replace("_", "-"), known) or did_you_mean(there, known)
    raise LowbitError(
        f"unknown network {name!r}.{hint} Short names are {', '.join(names())}; timm.list_models() and "
        "torchvision.models.list_models() have others; your own is package.module:name"
    )


def _create_timm(name: str, num_classes: int | None, pretrained: bool) -> nn.Module:
    timm = _import_timm()
    arguments = {} if num_classes is None else {"num_classes": num_classes}
    try:
        return timm.create_model(name, pretrained=pretrained, **arguments)
    except (OSError, RuntimeError, ValueError) as error:
        if not pretrained:
            raise LowbitError(f"timm cannot make {name}: {error}") from error
        raise _no_weights(name, error) from error


def _create_torchvision(name: str, num_classes: int | None, pretrained: bool) -> nn.Module:
    models = import_torchvision().models
    try:
        if not pretrained:
            return models.get_model(name, weights=None, **({} if num_classes is None else {"num_classes": num_classes}))
        model = models.get_model(name, weights="DEFAULT", progress=False)
    except (OSError, RuntimeError, ValueError) as error:
        if not pretrained:
            raise LowbitError(f"torchvision cannot make {name}: {error}") from error
        raise _no_weights(name, error) from error
    if num_classes is not None:
        _replace_head(name, model, num_classes)
    return model


def _replace_head(name: str, model: nn.Module, num_classes: int) -> None:
    """A new last layer where the published one has another number of classes, as timm does it."""
    linear = [(path, module) for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    path, head = linear[-1] if linear else ("", None)
    if head is None:
        raise LowbitError(f"{name}: its last layer is not linear; leave num_classes out to take the published one")
    if head.out_features != num_classes:
        model.set_submodule(path, nn.Linear(head.in_features, num_classes))


def _no_weights(name: str, error: Exception) -> LowbitError:
    return LowbitError(
        f"pretrained weights of {name} cannot be fetched ({first_line(error)}); "
        "without a network connection give a local file of weights (--init)"
    )


def _import_timm() -> ModuleType:
    import_torchvision()
    try:
        import timm
    except ModuleNotFoundError as error:
        raise LowbitError(
            f"{error}: networks beside lowbit's own come from timm: pip install 'lowbit[train]'"
        ) from error
    return timm
