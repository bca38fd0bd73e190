"""The public names of lowbit and their signatures, a line each: what `public_api.txt` holds this version to.

    PYTHONPATH=src:. python -m tests.public_api > tests/public_api.txt

A line that goes or changes is a change that users notice: the old name keeps working for a version (lowbit/_deprecated.py), and CHANGELOG.md says so.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from typing import Any

import torch

MODULES = ("lowbit", "lowbit.models", "lowbit.formats", "lowbit.report", "lowbit.recipes")
# What the documentation names beside them.
NAMES = {
    "lowbit.quantizer.rounding": ("GradientFunction", "arctan_derivative", "tanh_derivative", "error_scaling", "asr", "dsq", "mde", "ewgs"),
    "lowbit.quantizer.step": ("StepGradient",),
    "lowbit.quantizer.methods": ("lg_lsq", "lsq_plus"),
    "lowbit.qat.summary": ("LayerRow",),
    "lowbit.verification.report": ("Report", "Row"),
}  # fmt: skip
_BASES = (torch.nn.Module, torch.autograd.Function, tuple, Exception)


def signature(function: Any) -> str:
    try:
        text = str(inspect.signature(function))
    except (TypeError, ValueError):
        return "(…)"
    text = re.sub(r"<(?:function|class|built-in function) '?([\w.]+)'?(?: at 0x[0-9a-f]+)?>", r"\1", text)
    return re.sub(r"<object object at 0x[0-9a-f]+>", "…", text)  # a default that says nothing


def public(kind: type) -> Iterator[tuple[str, Any]]:
    """The public attributes that a class has from this library, in order of their names."""
    for name, member in inspect.getmembers_static(kind):
        # Asked each time: other libraries put methods into torch's classes.
        if not name.startswith("_") and (name in vars(kind) or not any(hasattr(base, name) for base in _BASES)):
            yield name, member


def described(name: str, value: Any) -> Iterator[str]:
    if isinstance(value, type):
        yield f"{name}{signature(value)}"
        fields = getattr(value, "__dataclass_fields__", {})
        for attribute, member in public(value):
            if attribute in fields:
                continue
            if isinstance(member, property):
                yield f"{name}.{attribute}: property"
            elif callable(member) or isinstance(member, (classmethod, staticmethod)):
                yield f"{name}.{attribute}{signature(getattr(value, attribute))}"
            else:
                yield f"{name}.{attribute}"
    elif callable(value):
        yield f"{name}{signature(value)}"
    elif isinstance(value, dict):
        yield f"{name}: {', '.join(sorted(value))}"
    else:
        yield name


def names() -> Iterator[tuple[str, Any]]:
    """Every public name with its value."""
    for module in MODULES:
        imported = importlib.import_module(module)
        for name in imported.__all__:
            yield f"{module}.{name}", getattr(imported, name)
    for module, chosen in NAMES.items():
        for name in chosen:
            yield f"{module}.{name}", getattr(importlib.import_module(module), name)


def lines() -> list[str]:
    return [line for name, value in names() for line in described(name, value)]


if __name__ == "__main__":
    print("\n".join(lines()))
