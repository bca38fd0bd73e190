"""A callback for Hugging Face's Trainer, and for what is derived from it, such as TRL's trainers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lowbit.integrations.training import TrainingHooks


class LowbitCallback(TrainerCallback):
    """Accompanies Trainer's loop over a network from `lowbit.prepare` and `lowbit.calibrate`.

        trainer = Trainer(model=quantized, …, callbacks=[LowbitCallback()])

    It sets the progress of methods that anneal a parameter, re-estimates batch-norm on training batches when training
    ends (the model that Trainer holds then has the new statistics; checkpoints within training have the running ones),
    and warns where Trainer's optimizer would decay the learned steps.

    Args:
        batchnorm_batches: training batches to re-estimate batch-norm with; 0 leaves it as it is.
        diagnosis_batches: training batches for `lowbit.diagnose` at the end, whose result is `diagnosis`; 0 for none.

    Raises:
        LowbitError: when training begins, a model without quantizers or with one that has no step.
    """

    def __init__(self, batchnorm_batches: int = 32, diagnosis_batches: int = 0) -> None:
        self._hooks = TrainingHooks(batchnorm_batches, diagnosis_batches)

    @property
    def diagnosis(self) -> Any:
        """What `lowbit.diagnose` found at the end of training, or None."""
        return self._hooks.diagnosis

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        optimizer = kwargs.get("optimizer")
        self._hooks.begin(kwargs["model"], [] if optimizer is None else [optimizer])

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._hooks.step(kwargs["model"], state.global_step, state.max_steps)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        loader = kwargs.get("train_dataloader")
        self._hooks.end(kwargs["model"], None if loader is None else _Inputs(loader))


class _Inputs:
    """The batches of a loader as keyword arguments of a model."""

    def __init__(self, loader: Iterable[Mapping[str, Any]]) -> None:
        self._loader = loader

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (dict(batch) for batch in self._loader)
