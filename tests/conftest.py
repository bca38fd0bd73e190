"""Fixtures of the whole suite."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import settings

from lowbit._torchvision import import_torchvision

# timm, transformers and lightning import torchvision by themselves, which fails where its wheel does not fit torch and nobody has
# imported it this way before: each test is to pass alone.
if importlib.util.find_spec("torchvision") is not None:
    import_torchvision()

# A busy machine is no failure of a law.
settings.register_profile("lowbit", deadline=None)
settings.load_profile("lowbit")

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with CIFAR-10-JPEG and the trained CIFAR ResNets; skips where a checkout has none beside it."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"needs the data folder {SHARED_DATA}, which this checkout does not have beside it")
    return SHARED_DATA


@pytest.fixture(scope="session")
def compiler() -> str:
    """The C++ compiler that torch.compile needs on the CPU; skips where there is none."""
    for name in (os.environ.get("CXX"), "g++", "clang++"):
        if name and shutil.which(name):
            return name
    pytest.skip("torch.compile needs a C++ compiler on the CPU, and this machine has none")
