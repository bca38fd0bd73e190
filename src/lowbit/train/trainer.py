"""The network in training: one epoch of optimizer steps, evaluation, and the state that a checkpoint needs."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_ema_multi_avg_fn

import lowbit
from lowbit._torchvision import import_torchvision
from lowbit.data import Loader
from lowbit.diagnosis.watch import Watch
from lowbit.errors import LowbitError, did_you_mean
from lowbit.inputs import Inputs, batch_size, each
from lowbit.layers.sites import upgrade_names
from lowbit.processes import lost
from lowbit.qat.oscillation import OscillationFreezer
from lowbit.qat.transition import TransitionRate
from lowbit.train.batchnorm import average, average_batchnorm, synchronise_batchnorm
from lowbit.train.compiled import CompiledStep, check_gradients
from lowbit.train.config import OptimizerConfig, QuantizationConfig, TrainConfig
from lowbit.train.machine import arranged
from lowbit.train.midway import Midway
from lowbit.train.parallel import Sharded, Whole, divided_like, gathered, like
from lowbit.train.recompute import recompute_activations
from lowbit.train.tasks import Task

# Seconds between two looks at loss and accuracy: a look waits for the device, a step does not.
_LOOK = 0.5

CALMER = "lower optimizer.lr, set schedule.warmup_epochs or grad_clip, and start a new run"
"""The remedy where training has diverged."""

Report = Callable[[int, int, int, float, float], None]
"""Is told (epoch, steps done, steps of the epoch, mean loss so far, accuracy so far in percent, which may be no number)."""

OnStep = Callable[["Trainer", float], None]
"""Is told before every batch: the trainer, and how many epochs are done (1.5 in the middle of the second)."""


class Trainer:
    """A network with its optimizer and what is attached to it.

    Args:
        model: on its device, with every quantizer initialized; where a run resumes, with the saved weights of `network`.
        say: prints one line.
        saved: what `state_dict` gave, where a run resumes.
        on_step: called before every batch.

    Raises:
        LowbitError: the saved state is another version's.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: nn.Module,
        task: Task,
        accelerator: Accelerator,
        say: Callable[[str], None],
        saved: dict[str, Any] | None = None,
        on_step: OnStep | None = None,
    ) -> None:
        self.on_step = on_step
        self.midway: Callable[[], Midway] | None = None
        self._states: list[dict[str, Any]] = (saved or {}).get("midway") or []
        self.config, self.model, self.task, self.accelerator = config, model, task, accelerator
        # One process has nothing to divide.
        self.sharded = config.shard and torch.distributed.is_initialized()
        self.parallel = Sharded(accelerator) if self.sharded else Whole(accelerator)
        if config.sync_batchnorm:
            synchronise_batchnorm(model)
        if config.grad_checkpointing:
            recompute_activations(model)
        self.average = self._make_average(saved)
        # An optimizer, and what is attached to it, must see the parameters as they are after the division.
        self.parallel.divide(model)
        raw = make_optimizer(config.optimizer, model, self.parallel.groups)
        self.attached = _attached(config.quantization, model, raw)
        self.initial_lr = [group["lr"] for group in raw.param_groups]
        self._settings = {name for group in raw.param_groups for name in group}
        # One process looks for all. Divided weights have no codes as a whole.
        watched = config.quantization is not None and accelerator.is_main_process and not self.sharded
        self.watch = Watch(model, raw) if watched else None
        self.wrapped = self.parallel.wrap(model)
        self.optimizer = accelerator.prepare(raw)
        if saved is not None:
            with _fitting():
                self._restore(saved)
        compiled = config.compile and not self.sharded
        self.step = CompiledStep(self._step, say) if compiled else self._step
        self._unchecked = compiled

    def _make_average(self, saved: dict[str, Any] | None) -> AveragedModel | None:
        decay = self.config.ema
        if decay is None:
            return None
        if self.sharded:
            average = AveragedModel(self.model, avg_fn=get_ema_avg_fn(decay))
        else:  # all parameters at once, because they are all of one kind
            average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(decay))
        if saved is not None:
            with _fitting():
                behind, count = saved["behind_average"]["model"], saved["behind_average"]["count"]
                self.model.load_state_dict(behind)
                average.n_averaged.copy_(like(average.n_averaged, count, "the number of averaged steps"))
        self.parallel.divide(average.module)
        return average

    def _models(self) -> list[nn.Module]:
        return [self.model, *([] if self.average is None else [self.average.module])]

    def _restored(self) -> Midway:
        """What was counted of the epoch that is resumed."""
        accelerator = self.accelerator
        before = Midway.restored(self._states, accelerator.process_index, accelerator.num_processes, self._models())
        if self.watch is not None:
            self.watch.looks += before.looks
        return before

    def midway_state(self) -> list[dict[str, Any]] | None:
        """How far the epoch is, of every process, beside `state_dict`; None between epochs. All processes must ask for it."""
        if self.midway is None:
            return None
        counted = self.midway()
        counted.looks = [] if self.watch is None else list(self.watch.looks)
        return gather_object([counted.state(self._models())])

    @property
    def network(self) -> nn.Module:
        """The network that is evaluated and saved: the average where there is one, else the trained network."""
        return self.model if self.average is None else self.average.module

    def _step(self, inputs: Inputs, targets: Any) -> tuple[Tensor, Tensor | None]:
        """(loss, number of right answers, where the task knows it) of a batch."""
        loss, outputs = self.task(self.wrapped, inputs, targets)
        return loss, self.task.right(outputs, targets)

    def train_epoch(
        self,
        epoch: int,
        loader: Loader,
        report: Report,
        *,
        first: int = 0,
        pause: Callable[[int], None] = lambda _: None,
    ) -> dict[str, float]:
        """One pass over the loader; returns train_loss, train_accuracy (percent, where there is one) and lr (of the last step).

        Args:
            first: the batch to resume from, where the saved state is from the middle of this epoch.
            pause: called after every step of the optimizer but the last with the number of batches done; may save a checkpoint.

        Raises:
            LowbitError: the loss is not finite.
        """
        config, accelerator = self.config, self.accelerator
        # Only whole optimizer steps: gradients left over would leak into the next epoch.
        steps = len(loader) // config.accumulate * config.accumulate
        losses = torch.zeros(steps, device=accelerator.device)
        right = torch.zeros((), dtype=torch.int64, device=accelerator.device)
        seen, checked, looked, counted = 0, first, time.monotonic(), True
        if self.watch is not None:
            self.watch.begin(epoch, steps // config.accumulate, config.epochs, first // config.accumulate)
        loader.set_epoch(epoch, first)
        batches = enumerate(itertools.islice(loader, steps - first), first)
        if first:
            with _fitting():
                before = self._restored()
                losses[:first] = before.losses
            right += before.right
            seen, counted = before.seen, before.counted
        self.wrapped.train()
        for i, (inputs, targets) in batches:
            if self.on_step is not None:
                self.on_step(self, epoch + i / steps)
            self._set_progress(epoch + i / steps)
            inputs = each(partial(arranged, layout=config.memory_format), inputs)
            loss, count = self._learn(inputs, targets)
            if self.average is not None and accelerator.sync_gradients:
                self.average.update_parameters(self.model)
            losses[i] = loss
            counted = counted and count is not None
            right += 0 if count is None else count
            seen += batch_size(inputs)
            if time.monotonic() - looked > _LOOK or i + 1 == steps:
                _check_finite(losses[checked : i + 1], epoch, checked)
                so_far = 100 * int(right) / seen if counted else math.nan
                report(epoch, i + 1, steps, float(losses[: i + 1].mean()), so_far)
                checked, looked = i + 1, time.monotonic()
            if accelerator.sync_gradients and i + 1 < steps:
                self.midway = partial(Midway, losses[: i + 1], right, seen, counted)
                pause(i + 1)
        self.midway = None
        self._average_statistics()
        accuracy = {"train_accuracy": 100 * float(accelerator.reduce(right / seen, "mean"))} if counted else {}
        loss = float(accelerator.reduce(losses.mean(), "mean"))
        return {"train_loss": loss, **accuracy, "lr": float(self.optimizer.param_groups[0]["lr"])}

    def _learn(self, inputs: Inputs, targets: Any) -> tuple[Tensor, Tensor | None]:
        """The passes of one batch and, with its last batch, a step of the optimizer; what `_step` returns, detached."""
        accelerator = self.accelerator
        with self.parallel.batch(self.wrapped):
            with accelerator.autocast():
                loss, count = self.step(inputs, targets)
            accelerator.backward(loss)
            self._check_gradients()
            if accelerator.sync_gradients:
                self.parallel.finish_gradients(self.model.parameters(), self.config.grad_clip)
            self.optimizer.step()
            self.optimizer.zero_grad()
        return loss.detach(), count

    def _check_gradients(self) -> None:
        """After the first backward pass of a compiled step: see `check_gradients`."""
        if self._unchecked:
            check_gradients(self.model)
            self._unchecked = False

    def _set_progress(self, epochs_done: float) -> None:
        """Set what changes over training: learning rates, rounding parameters, the task's factors."""
        factor = self.config.schedule.factor(epochs_done, self.config.epochs)
        for group, lr in zip(self.optimizer.param_groups, self.initial_lr):
            if isinstance(group["lr"], Tensor):  # which something else reads, a recorded step
                group["lr"].fill_(lr * factor)
            else:
                group["lr"] = lr * factor
        fraction = epochs_done / self.config.epochs
        lowbit.set_progress(self.model, fraction)
        self.task.set_progress(fraction)
        for handle in self.attached:
            if isinstance(handle, TransitionRate):
                handle.set_progress(fraction)

    def reestimate_batchnorm(self, batches: Iterable) -> None:
        """`lowbit.reestimate_batchnorm` on the network that is evaluated; several processes take the mean of theirs."""
        with self.accelerator.autocast():
            lowbit.reestimate_batchnorm(self.network, batches)
        average_batchnorm(self.network)

    @torch.no_grad()
    def not_finite(self) -> str | None:
        """The first parameter of `network` with NaN or infinity in what this process holds of it, or None."""
        named = [(n, p.to_local() if isinstance(p, DTensor) else p) for n, p in self.network.named_parameters()]
        fine = torch.stack([p.isfinite().all() for _, p in named]).tolist()
        return next((name for (name, _), ok in zip(named, fine) if not ok), None)

    def _average_statistics(self) -> None:
        """One set of statistics on all processes, so that all evaluate, save and continue with one network."""
        for model in self._models():
            average_batchnorm(model)
            average(quantizer.relative_gradients for _, quantizer in lowbit.quantizers(model))

    def network_state(self, *, keep: bool) -> dict[str, Tensor]:
        """The state of `network`, whole. All processes must ask for it; those that don't keep it get nothing useful."""
        return gathered(self.network.state_dict(), keep=keep)

    def state_dict(self, *, keep: bool) -> dict[str, Any]:
        """All state but that of `network`, as `network_state` gives it; the same for any number of processes."""
        scaler = self.accelerator.scaler
        optimizer = self.optimizer.state
        state = {
            "optimizer": {name: optimizer[p] for name, p in self.model.named_parameters() if p in optimizer},
            "groups": [
                {name: value for name, value in group.items() if name not in self._settings}
                for group in self.optimizer.param_groups
            ],
            "attached": [handle.state_dict() for handle in self.attached],
            "scaler": None if scaler is None else scaler.state_dict(),
            "behind_average": None
            if self.average is None
            else {"model": self.model.state_dict(), "count": self.average.n_averaged},
        }
        return gathered(state, keep=keep)

    def _restore(self, saved: dict[str, Any]) -> None:
        if "param_groups" in saved["optimizer"]:
            raise LowbitError(
                "an earlier version of lowbit wrote the checkpoint; continue it with that, or start a new run"
            )
        upgrade_names(self.network, saved["optimizer"])
        parameters = dict(self.model.named_parameters())
        # Others keep rows and columns of what they measure: these have one number for each weight.
        whole = self.config.optimizer.name in ("sgd", "adam", "adamw")
        if whole and len({tuple(sorted(state)) for state in saved["optimizer"].values()}) > 1:
            raise ValueError("the optimizer keeps more of some parameters than of others")
        for name, state in saved["optimizer"].items():
            # "step" is a counter, and of the shape of a learned step by chance.
            parameter = parameters[name]
            self.optimizer.state[parameter] = {
                key: divided_like(parameter, value, f"{key} of {name}")
                if isinstance(value, Tensor) and key != "step" and (whole or value.shape == parameter.shape)
                else value.to(parameter.device)
                if isinstance(value, Tensor) and key != "step"
                else value
                for key, value in state.items()
            }
        for group, kept in zip(self.optimizer.param_groups, saved.get("groups", [])):
            group.update(kept)  # some of timm's count their steps there
        for handle, state in zip(self.attached, saved["attached"], strict=True):
            handle.load_state_dict(state)
        scaler = self.accelerator.scaler
        if saved["scaler"] is not None:
            assert scaler is not None  # a run resumes in the precision it began in
            scaler.load_state_dict(saved["scaler"])


@contextmanager
def _fitting() -> Iterator[None]:
    """Within: saved state that is not of this network and optimizer is a LowbitError."""
    try:
        yield
    except LowbitError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        if lost(error):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise LowbitError(
            f"the checkpoint's training state does not fit this run's network and optimizer ({reason}); start a new run in "
            "another folder"
        ) from error


def _attached(
    config: QuantizationConfig | None, model: nn.Module, optimizer: torch.optim.Optimizer
) -> list[OscillationFreezer | TransitionRate]:
    """The remedies for oscillation that are attached to the optimizer."""
    attached: list[OscillationFreezer | TransitionRate] = []
    if config is not None and config.freezing is not None:
        attached.append(OscillationFreezer(model, optimizer, threshold=config.freezing))
    if config is not None and config.transition_rate is not None:
        attached.append(TransitionRate(model, optimizer, config.transition_rate))
    return attached


def make_optimizer(
    config: OptimizerConfig, model: nn.Module, arrange: Callable[[list[dict]], list[dict]] = lambda groups: groups
) -> torch.optim.Optimizer:
    """The optimizer over `lowbit.parameter_groups`, arranged as it takes them.

    Raises:
        LowbitError: neither torch nor timm has an optimizer of that name.
    """
    groups = arrange(lowbit.parameter_groups(model, weight_decay=config.weight_decay, step_lr=config.step_lr))
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov)
    if config.name == "adam":
        return torch.optim.Adam(groups, lr=config.lr)
    import_torchvision()
    from timm.optim import create_optimizer_v2, list_optimizers

    if config.name not in list_optimizers():
        known = ["sgd", "adam", *map(str, list_optimizers())]
        raise LowbitError(
            f"optimizer.name: no optimizer {config.name!r}.{did_you_mean(config.name, known)} timm.optim.list_optimizers() "
            "has them all"
        )
    return create_optimizer_v2(groups, opt=config.name, lr=config.lr, momentum=config.momentum)


def _check_finite(losses: Tensor, epoch: int, first: int) -> None:
    bad = (~losses.isfinite()).nonzero()
    if len(bad):
        step = first + int(bad[0])
        raise LowbitError(f"the loss is {float(losses[int(bad[0])])} at epoch {epoch + 1}, step {step + 1}: {CALMER}")
