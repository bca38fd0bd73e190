"""Every test starts with the same random numbers."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Networks are built with random weights before anything else."""
    torch.manual_seed(0)
