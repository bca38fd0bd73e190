"""torchvision, also where its wheel was built for CUDA and torch was built for the CPU."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

import torch

from lowbit.errors import LowbitError

# The operators torchvision registers shapes for while it is imported. They live in its compiled part, which a
# CUDA-built wheel cannot load on CPU torch; declared without a kernel, they let everything that is not detection work.
_MISSING_OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_library: torch.library.Library | None = None  # the declarations live as long as this object does


def import_torchvision() -> ModuleType:
    """Return the torchvision module; call this before anything that imports torchvision itself (timm does).

    Where `import torchvision` works, this is that import and nothing else. Where it fails because the operator
    `torchvision::nms` does not exist, the operator is declared (without a kernel) and the import is made again:
    models, transforms and data sets then work, detection operators raise when called.

    Raises:
        LowbitError: torchvision is not installed.
    """
    global _library
    try:
        return importlib.import_module("torchvision")
    except ModuleNotFoundError as error:
        raise LowbitError(
            f"torchvision cannot be imported ({error}); lowbit's data and models need it: pip install 'lowbit[train]'"
        ) from error
    except RuntimeError as error:
        if "torchvision::nms" not in str(error) or _library is not None:
            raise
    # The failed import leaves half-built submodules behind; a second import must not find them.
    for name in [name for name in sys.modules if name == "torchvision" or name.startswith("torchvision.")]:
        del sys.modules[name]
    _library = torch.library.Library("torchvision", "DEF")
    for operator in _MISSING_OPERATORS:
        _library.define(operator)
    return importlib.import_module("torchvision")
