"""Old public names: each works for one version more, and warns with the new one.

What 0.1.0 called otherwise keeps its old name until 0.3.0. Everything that is kept for that lies where the new name
does and goes through this module, so that it is found by searching for it.
"""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any

_REMOVED_IN = "0.3.0"


def warn_renamed(old: str, new: str, *, stacklevel: int = 3) -> None:
    """Warn that `old` is now called `new`; `stacklevel` as in `warnings.warn`, counted from here."""
    message = f"{old} is deprecated and will be removed in lowbit {_REMOVED_IN}: use {new}"
    warnings.warn(message, DeprecationWarning, stacklevel=stacklevel)


def renamed_in_module(module: str, names: Mapping[str, str]) -> Callable[[str], Any]:
    """A module's `__getattr__` for names that it had before.

    Args:
        module: the module's `__name__`.
        names: the new name for each old one. A new name with dots is one of another module, such as "lowbit.grid.Grid".
    """

    def find(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        new = names[name] if "." in names[name] else f"{module}.{names[name]}"
        warn_renamed(f"{module}.{name}", new)
        home, _, attribute = new.rpartition(".")
        return getattr(importlib.import_module(home), attribute)

    return find


def renamed_method(owner: str, old: str, new: str) -> Callable[..., Any]:
    """A method that calls the one with the new name."""

    def call(self: Any, *arguments: Any, **options: Any) -> Any:
        warn_renamed(f"{owner}.{old}()", f"{owner}.{new}()")
        return getattr(self, new)(*arguments, **options)

    call.__name__, call.__doc__ = old, f"Deprecated name of `{new}`."
    return call


def renamed_property(owner: str, old: str, new: str, read: Callable[[Any], Any] | None = None) -> property:
    """A read-only property that returns the one with the new name, or what `read` makes of the object."""

    def get(self: Any) -> Any:
        warn_renamed(f"{owner}.{old}", f"{owner}.{new}")
        return getattr(self, new) if read is None else read(self)

    return property(get, doc=f"Deprecated name of `{new}`.")


def renamed_arguments(**names: str) -> Callable[[Any], Any]:
    """A decorator for a function or a class: takes keyword arguments by their old names too, `old="new"`.

    Where both are given the old one counts, so that `dataclasses.replace(method, old=…)` does what it did.
    """

    def decorate(target: Any) -> Any:
        called = target.__init__ if isinstance(target, type) else target

        @functools.wraps(called)
        def call(*arguments: Any, **options: Any) -> Any:
            for old, new in names.items():
                if old in options:
                    warn_renamed(f"the argument {old!r} of {target.__name__}", repr(new))
                    options[new] = options.pop(old)
            return called(*arguments, **options)

        if isinstance(target, type):
            target.__init__ = call  # type: ignore[misc]
            return target
        return call

    return decorate
