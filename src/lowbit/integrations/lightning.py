"""A callback for Lightning's Trainer."""

from __future__ import annotations

from typing import Any

from lightning import Callback, LightningModule, Trainer
from torch import nn

from lowbit.integrations.training import TrainingHooks


class LowbitCallback(Callback):
    """Accompanies Lightning's loop over a network from `lowbit.prepare` and `lowbit.calibrate`.

        trainer = lightning.Trainer(…, callbacks=[LowbitCallback(quantized)])

    It sets the progress of methods that anneal a parameter, re-estimates batch-norm on training batches when training
    ends, and warns where an optimizer would decay the learned steps.

    Args:
        network: the prepared network, which takes the inputs of the training batches; None for the LightningModule
            itself.
        batchnorm_batches: training batches to re-estimate batch-norm with; 0 leaves it as it is.
        diagnosis_batches: training batches for `lowbit.diagnose` at the end, whose result is `diagnosis`; 0 for none.

    Raises:
        LowbitError: when training begins, a network without quantizers or with one that has no step.
    """

    def __init__(
        self, network: nn.Module | None = None, batchnorm_batches: int = 32, diagnosis_batches: int = 0
    ) -> None:
        self._network = network
        self._hooks = TrainingHooks(batchnorm_batches, diagnosis_batches)

    @property
    def diagnosis(self) -> Any:
        """What `lowbit.diagnose` found at the end of training, or None."""
        return self._hooks.diagnosis

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._hooks.begin(self._network or pl_module, trainer.optimizers)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._hooks.step(self._network or pl_module, trainer.global_step, trainer.estimated_stepping_batches)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._hooks.end(self._network or pl_module, trainer.train_dataloader)
