"""How far an epoch has come: what a checkpoint in the middle of one needs beside the trained network."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import lowbit


@dataclass
class Midway:
    """Of one process: what it has counted in the epoch's first batches."""

    losses: Tensor
    """float32 [batches done]."""
    right: int | Tensor = 0
    """Right answers."""
    seen: int = 0
    """Samples."""
    counted: bool = True
    """Whether the task says which answers are right."""
    looks: list[dict[str, Any]] = field(default_factory=list)
    """Of `diagnosis.watch`, not written to the log yet."""

    def state(self, models: Iterable[nn.Module]) -> dict[str, Any]:
        """All of it as a checkpoint takes it, with this process's random numbers and the statistics of its own batches."""
        return {
            "losses": self.losses.cpu(),
            "right": int(self.right),
            "seen": self.seen,
            "counted": self.counted,
            "looks": self.looks,
            "random": _random_state(),
            "statistics": [[each.cpu() for each in _statistics(model)] for model in models],
        }

    @classmethod
    def restored(cls, states: list[dict[str, Any]], rank: int, processes: int, models: Iterable[nn.Module]) -> Midway:
        """What `state` gave on every process, brought back on this one.

        Where there are as many processes as there were, each continues as it was, to the bit. Another number of them continues with
        the mean of all.
        """
        models = list(models)
        same = len(states) == processes
        mine = states[rank] if same else states[0]
        for place, model in enumerate(models):
            for number, tensor in enumerate(_statistics(model)):
                values = [each["statistics"][place][number] for each in ([mine] if same else states)]
                mean = values[0] if same else torch.stack([value.float() for value in values]).mean(0)
                tensor.copy_(mean.to(tensor))
        if same:
            _set_random_state(mine["random"])
            return cls(mine["losses"], mine["right"], mine["seen"], mine["counted"], mine["looks"])
        losses = torch.stack([each["losses"] for each in states]).mean(0)
        right, seen = (sum(each[name] for each in states) // processes for name in ("right", "seen"))
        return cls(losses, right, seen, mine["counted"], mine["looks"] if rank == 0 else [])


def _statistics(model: nn.Module) -> Iterator[Tensor]:
    """What every process measures of its own part of the batches until the end of an epoch."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            yield from (each for each in (module.running_mean, module.running_var) if each is not None)
    for _, quantizer in lowbit.quantizers(model):
        if quantizer.relative_gradients is not None:
            yield quantizer.relative_gradients


def _random_state() -> dict[str, Any]:
    python, numpy = random.getstate(), np.random.get_state(legacy=False)
    words = numpy["state"]
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "python": [python[0], list(python[1]), python[2]],
        "numpy": {
            "key": torch.from_numpy(words["key"].astype(np.int64)),
            "pos": int(words["pos"]),
            "has_gauss": int(numpy["has_gauss"]),
            "gauss": float(numpy["gauss"]),
        },
    }


def _set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    numpy = state["numpy"]
    words = {"key": numpy["key"].numpy().astype(np.uint32), "pos": numpy["pos"]}
    np.random.set_state(
        {"bit_generator": "MT19937", "state": words, "has_gauss": numpy["has_gauss"], "gauss": numpy["gauss"]}
    )
