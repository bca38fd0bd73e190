"""What a training loop does for a prepared network beyond its own steps, apart from the library whose loop it is."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from itertools import islice
from typing import Any

import torch
from torch import nn

from lowbit.diagnosis import Diagnosis, diagnose
from lowbit.errors import LowbitError
from lowbit.layers.sites import quantizers
from lowbit.qat.batchnorm import reestimate_batchnorm
from lowbit.qat.training import set_progress


class TrainingHooks:
    """Accompanies the training of a prepared and calibrated network.

    It sets the progress of methods that anneal a parameter before every step. At the end it re-estimates batch-norm's
    statistics, which oscillating weights leave behind, and diagnoses the network if that is asked for.

    Args:
        batchnorm_batches: training batches that batch-norm is re-estimated with at the end; 0 leaves it as it is.
        diagnosis_batches: training batches for `lowbit.diagnose` at the end; 0 for none.

    Attributes:
        diagnosis: what `lowbit.diagnose` found, after training.
    """

    def __init__(self, batchnorm_batches: int = 32, diagnosis_batches: int = 0) -> None:
        self.batchnorm_batches, self.diagnosis_batches = batchnorm_batches, diagnosis_batches
        self.diagnosis: Diagnosis | None = None

    def begin(self, model: nn.Module, optimizers: Iterable[torch.optim.Optimizer]) -> None:
        """Check the network, and warn where an optimizer decays steps that are not to be decayed.

        Raises:
            LowbitError: no quantizers, or one without a step.
        """
        found = list(quantizers(model))
        if not found:
            raise LowbitError("the model has no quantizers: lowbit.prepare and lowbit.calibrate come before training")
        waiting = next((quantizer for _, quantizer in found if not quantizer.initialized), None)
        if waiting is not None:
            raise LowbitError(f"{waiting.name} has no step yet: run lowbit.calibrate(model, batches) before training")
        steps = {
            id(parameter): name
            for name, quantizer in found
            for parameter in (quantizer.raw_step, quantizer.offset)
            if parameter is not None and not (quantizer.method.step_gradient and quantizer.method.step_gradient.decayed)
        }
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                decayed = [steps[id(p)] for p in group["params"] if group.get("weight_decay") and id(p) in steps]
                if decayed:
                    warnings.warn(
                        f"weight decay of {group['weight_decay']} applies to {len(decayed)} learned steps and "
                        "offsets, such as "
                        f"that of {decayed[0]!r}: make the optimizer from lowbit.parameter_groups(model, "
                        "weight_decay=…)",
                        stacklevel=3,
                    )
                    return

    def step(self, model: nn.Module, done: int, total: int | float) -> None:
        """Set the progress before the step after `done` of `total`; unlimited training stays at its beginning."""
        if 0 < total < float("inf"):
            set_progress(model, done / total)

    def end(self, model: nn.Module, batches: Iterable[Any] | None) -> None:
        """Re-estimate batch-norm and diagnose, on the first of these training batches."""
        set_progress(model, 1.0)
        if batches is None:
            return
        if self.batchnorm_batches:
            reestimate_batchnorm(model, islice(batches, self.batchnorm_batches))
        if self.diagnosis_batches:
            self.diagnosis = diagnose(model, list(islice(batches, self.diagnosis_batches)))
