"""What a kind of operation is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import fx, nn

from lowbit.lowering.calls import Modules

Lack = Callable[[fx.Node, Modules], str | None]


@dataclass(frozen=True, eq=False)
class Kind:
    """One kind of operation and how networks write it.

    Attributes:
        name: of the kind.
        functions, methods, modules: its spellings: what is called, names of methods of a tensor, classes of modules.
        library_modules: names of classes that compute it in timm and torchvision.
        computes: whether its result is to be put on a grid before anything else computes with it.
        moves_codes: whether its result has its inputs' codes, in other places.
        parameters: names of arguments that stay in full precision, or are indices or masks: no tensors on a grid.
        lack: why a call of this kind has no integer form, as far as its arguments tell; None where it has one.
        instead: the kind that a call with these arguments has in its place; None where it has this one.
    """

    name: str
    functions: tuple[Callable, ...] = ()
    methods: tuple[str, ...] = ()
    modules: tuple[type[nn.Module], ...] = ()
    library_modules: tuple[str, ...] = ()
    computes: bool = False
    moves_codes: bool = False
    parameters: tuple[str, ...] = ()
    lack: Lack = lambda node, modules: None
    instead: Callable[[fx.Node, Modules], Kind | None] = lambda node, modules: None
