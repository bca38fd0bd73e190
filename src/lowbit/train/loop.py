"""The training loop: `run` takes a config to a run folder."""

from __future__ import annotations

import itertools
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, gather_object, set_seed
from torch import nn

import lowbit
from lowbit import models
from lowbit.data import Loader, Splits, eval_loader, num_classes, split_loaders
from lowbit.errors import LowbitError
from lowbit.layers.modes import evaluation
from lowbit.processes import agreed, lost, named
from lowbit.train.build import build_float, identity, load, prepare, read_config
from lowbit.train.checkpoint import Checkpoints, Which
from lowbit.train.config import TrainConfig, differences
from lowbit.train.tasks import make_task
from lowbit.train.tracking import Metrics, mean_steps, progress, save_versions, writable
from lowbit.train.trainer import CALMER, Trainer, evaluate


@dataclass(frozen=True)
class Result:
    """What a run ended with; accuracies are in percent.

    The first three are on the images that choices are made by: those for validation, or the test images where the
    config has none for validation.
    """

    folder: Path
    accuracy: float
    """Of the last checkpoint."""
    best_accuracy: float
    """Of the best checkpoint."""
    reestimated_accuracy: float | None
    """With batch-norm re-estimated after training, kept or not; None if that was not tried."""
    test_accuracy: float | None = None
    """Of the best checkpoint on the test images, where choices are made by others; else None."""


@dataclass
class Progress:
    """How far a run has come; saved in every checkpoint."""

    epochs_done: int = 0
    accuracy: float = math.nan
    best_accuracy: float = -math.inf
    reestimated_accuracy: float | None = None
    test_accuracy: float | None = None
    finished: bool = False
    held_out: str | None = None
    """Which training images are held out for validation, as a hash."""

    def result(self, folder: Path) -> Result:
        return Result(folder, self.accuracy, self.best_accuracy, self.reestimated_accuracy, self.test_accuracy)

    def outcome(self) -> str:
        """The accuracy on the test images, for the reader."""
        if self.test_accuracy is None:
            return f"test accuracy {self.accuracy:.2f} %, best {self.best_accuracy:.2f} %"
        return (
            f"test accuracy {self.test_accuracy:.2f} % of the checkpoint with the best validation accuracy, "
            f"{self.best_accuracy:.2f} %"
        )


def run(config: TrainConfig, *, resume: bool = False) -> Result:
    """Train as the config says, into the folder `config.output`; `resume` continues the run that is there.

    A resumed run ends with the same weights, bit for bit, as one that was never interrupted.

    Raises:
        LowbitError: bad input, before anything is written: paths, names, weights or settings that don't fit, a folder
            that holds a run already, a run continued with another config. Also a loss that is not finite.
    """
    with named():
        return _run(config, resume)


def _run(config: TrainConfig, resume: bool) -> Result:
    with agreed():
        accelerator = _accelerator(config)
        folder = _run_folder(config, resume)
        # Looked at before any process writes: what is there now is somebody's.
        absent = [path for path in (*_files(folder), folder) if not path.exists()]
        checkpoints = Checkpoints(folder)
        config = resolve(config)
        if config.precision != "no" and not accelerator.native_amp:
            raise LowbitError(
                f"precision {config.precision!r} does not work here, on {accelerator.device.type}: use bf16 or no"
            )
        if resume:
            _check_same(read_config(folder), config, folder)
        goes_on = resume and checkpoints.exists
        weights = checkpoints.weights("last", identity(config)) if goes_on else None
        saved = checkpoints.training_state() if goes_on else None
        state = Progress(**saved["progress"]) if saved else Progress()
    main = accelerator.is_main_process
    with _determinism(config.deterministic), progress(config.epochs, state.epochs_done, speak=main) as bar:
        if state.finished:
            bar.say(f"{folder}: this run is finished ({state.outcome()}); nothing to resume")
            return state.result(folder)

        # From the config to a network in training. Nothing is written before all of this has worked.
        set_seed(config.seed)
        with agreed():
            _check_start(config)
            # A checkpoint has all weights; only a teacher still needs those that training started from.
            start = config.model.without_weights() if saved and config.task != "distill" else config.model
            original = build_float(start)
            task = make_task(config, original, accelerator.device)
            model = prepare(original, config.quantization)
            splits = split_loaders(config.data, seed=config.seed, **_place(accelerator))
            train = splits.train
            check_classes(config, train.num_classes)
            for shape in {train.image_shape, splits.test.image_shape}:
                check_shape(config, original, shape)
            if saved and state.held_out != splits.held_out:
                raise LowbitError(
                    f"{config.data.path}: not the images that the run was started with, so others would be held "
                    "out for validation; continue it with those, or train anew"
                )
            state = replace(state, held_out=splits.held_out)
            if len(train) < config.accumulate:
                raise LowbitError(
                    f"accumulate is {config.accumulate}, but an epoch has only {len(train)} batches: lower it, or data.batch_size"
                )
            if saved:
                models.load_weights(model, weights)
        model.to(accelerator.device, memory_format=config.memory_format)
        if not saved and config.quantization is not None:
            lowbit.calibrate(model, itertools.islice(train, config.quantization.calibration_batches))
            if config.quantization.integer_only:
                lowbit.snap_offsets(model)
                _warn_unless_integer(model, train.image_shape, bar.say)
        trainer = Trainer(config, model, task, accelerator, bar.say, saved["trainer"] if saved else None)

        with _started(config, folder, absent, main=main, fresh=not resume), \
             Metrics(folder, epochs_done=state.epochs_done, active=main) as metrics:  # fmt: skip
            metrics.write("resume" if saved else "start", epochs_done=state.epochs_done, steps=mean_steps(model))
            bar.say(_opening(config, splits, accelerator))

            for epoch in range(state.epochs_done, config.epochs):
                began = time.monotonic()
                # Everything random in an epoch depends on the seed and the epoch, so there is no state to carry over.
                set_seed((config.seed * 1_000_003 + epoch + 1) % 2**32, device_specific=True)
                train.set_epoch(epoch)
                numbers = trainer.train_epoch(epoch, train, bar.update)
                chosen_by, loader = _choice(splits)
                loss, accuracy = _evaluated(trainer, loader, chosen_by, state)
                numbers |= {f"{chosen_by}_loss": loss, f"{chosen_by}_accuracy": accuracy}
                numbers["seconds"] = time.monotonic() - began
                if config.data.corrupt == "skip":
                    numbers["skipped"] = len(_skipped(train, loader))
                metrics.epoch(epoch, steps=mean_steps(trainer.network), **numbers)
                bar.say(_epoch_line(epoch, config.epochs, chosen_by, numbers))
                best = accuracy > state.best_accuracy
                state = replace(
                    state,
                    epochs_done=epoch + 1,
                    accuracy=accuracy,
                    best_accuracy=max(accuracy, state.best_accuracy),
                )
                _save(checkpoints, f"epoch-{epoch + 1:04d}", trainer, state, best=best)

            state = _finish(config, trainer, state, splits, checkpoints, metrics, bar.say)
        return state.result(folder)


def _warn_unless_integer(model: nn.Module, shape: tuple[int, ...], say: Callable[[str], None]) -> None:
    """Say before training what would be found after it. No error: ranges that are too wide may narrow in training."""
    device = next(model.parameters()).device
    try:
        lowbit.to_integer(model, torch.zeros(1, *shape, device=device))
    except LowbitError as error:
        say(f"warning: this network could not be exported as it starts: {error}")


def _choice(splits: Splits) -> tuple[str, Loader]:
    """The images that checkpoints and statistics are chosen by, and what they are called."""
    return ("test", splits.test) if splits.validation is None else ("validation", splits.validation)


def _evaluated(trainer: Trainer, loader: Loader, name: str, state: Progress) -> tuple[float, float]:
    """(loss, accuracy in percent) on the images called `name` after one more epoch than `state` has.

    Raises:
        LowbitError: the loss is not finite, or a weight is not, which low bits may hide; on every process. A training
            loss tells that only a step later, and after the last step there is none.
    """
    loss, accuracy = evaluate(trainer.network, loader, trainer.accelerator, trainer.config.memory_format)
    with agreed():
        broken = trainer.not_finite()
        if broken is not None or not math.isfinite(loss):
            what = f"the {name} loss is {loss}" if broken is None else f"{broken} holds NaN or infinity"
            kept = f"; the checkpoint of epoch {state.epochs_done} stays as it is" if state.epochs_done else ""
            raise LowbitError(f"{what} after epoch {state.epochs_done + 1}: {CALMER}{kept}")
    return loss, accuracy


def _files(folder: Path) -> list[Path]:
    """What training writes to a run folder before its first checkpoint is complete."""
    return [folder / name for name in ("config.json", "versions.json", "metrics.jsonl", "tensorboard", "checkpoints")]


@contextmanager
def _started(config: TrainConfig, folder: Path, absent: list[Path], *, main: bool, fresh: bool) -> Iterator[None]:
    """The run folder, made by the first process; if a fresh run fails before a checkpoint, what was `absent` is again.

    Raises:
        LowbitError: the folder can't be written; on every process.
    """
    with agreed():
        if main:
            with writable(folder):
                folder.mkdir(parents=True, exist_ok=True)
                (folder / "metrics.jsonl").touch()
                if fresh:
                    config.save(folder / "config.json")
                    save_versions(folder / "versions.json")
    try:
        yield
    except Exception as error:
        # Not after Ctrl-C, nor where another process has died: then the run goes on from its start.
        if fresh and not lost(error) and not Checkpoints(folder).exists:
            for path in absent:
                if path == folder:
                    with suppress(OSError):  # not empty: something else is there by now
                        folder.rmdir()
                elif path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)
        raise


def evaluate_run(folder: str | Path, *, checkpoint: Which = "best", data: str | None = None) -> tuple[float, float]:
    """(loss, accuracy in percent) of a run's checkpoint on the test images, of another data path where one is given.

    Raises:
        LowbitError: the folder holds no run or no checkpoint, or the data is unusable.
    """
    with named():
        with agreed():
            model, config = load(folder, checkpoint)
            config = replace(config, data=replace(config.data, path=data or config.data.path))
            accelerator = _accelerator(config)
            test = eval_loader(config.data, **_place(accelerator))
            check_test(config, model, test)
        with _determinism(config.deterministic):
            model.to(accelerator.device, memory_format=config.memory_format)
            return evaluate(model, test, accelerator, config.memory_format)


def check_test(config: TrainConfig, network: nn.Module, test: Loader) -> None:
    """Refuse test images of other classes or another shape than the network's, where training images don't tell.

    Raises:
        LowbitError: they don't fit.
    """
    # Where classes are numbered in the order of their names, one that is missing shifts the numbers of others.
    check_classes(config, test.num_classes, fewer=test.class_names is None)
    check_shape(config, network, test.image_shape)


def resolve(config: TrainConfig) -> TrainConfig:
    """The config with the number of classes of the data in it, where it doesn't say one."""
    if config.model.num_classes is not None:
        return config
    return replace(config, model=replace(config.model, num_classes=num_classes(config.data)))


def _check_start(config: TrainConfig) -> None:
    """Refuse a network at low bits that starts from nothing."""
    if config.quantization is not None and not config.model.trained and not config.model.from_scratch:
        raise LowbitError(
            f"{config.model.name} would start at low bits from random weights: give trained ones (--init FILE or the "
            "folder of a run in full precision; --model.pretrained where its library has them), or "
            "--model.from-scratch if random ones are meant"
        )


def check_classes(config: TrainConfig, num_classes: int, *, fewer: bool = False) -> None:
    """Refuse data of more classes than the network's, and of `fewer` where those may stand for others.

    Raises:
        LowbitError: the numbers don't fit.
    """
    wanted = config.model.num_classes
    if num_classes > wanted or (num_classes < wanted and not fewer):
        raise LowbitError(
            f"{config.data.path}: {num_classes} classes, but the network has {wanted} (model.num_classes); give data with "
            f"as many, or train with --model.num-classes {num_classes}"
        )


@torch.no_grad()
def check_shape(config: TrainConfig, network: nn.Module, shape: tuple[int, ...]) -> None:
    """Refuse images that the network cannot take.

    Raises:
        LowbitError: one of this shape (channels, height, width) does not go through it.
    """
    try:
        with evaluation(network):
            network(torch.zeros(1, *shape))
    except Exception as error:  # networks refuse in their own ways, often in a layer far behind the input
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise LowbitError(
            f"{config.model.name} does not take images of {'x'.join(map(str, shape))} ({reason}): set data.channels and "
            "data.image_size to what it takes"
        ) from error


def _finish(
    config: TrainConfig,
    trainer: Trainer,
    state: Progress,
    splits: Splits,
    checkpoints: Checkpoints,
    metrics: Metrics,
    say: Callable[[str], None],
) -> Progress:
    """Batch-norm re-estimation, the test, the last lines and plots, and the checkpoint that says it is finished."""
    accuracy, reestimated = state.accuracy, None
    train = splits.train
    chosen_by, loader = _choice(splits)
    if config.bn_batches:
        before = {name: value.clone() for name, value in trainer.network.state_dict().items()}
        set_seed(config.seed, device_specific=True)
        train.set_epoch(config.epochs)
        trainer.reestimate_batchnorm(itertools.islice(train, config.bn_batches))
        loss, reestimated = evaluate(trainer.network, loader, trainer.accelerator, config.memory_format)
        keep = math.isfinite(loss) and (config.bn_keep == "always" or reestimated > accuracy)
        say(
            f"batch-norm re-estimated: {chosen_by} accuracy {accuracy:.2f} % -> {reestimated:.2f} %, "
            f"{'kept' if keep else 'left as trained'}"
        )
        if keep:
            accuracy = reestimated
        else:
            trainer.network.load_state_dict(before)
    best = accuracy > state.best_accuracy
    state = replace(
        state,
        accuracy=accuracy,
        best_accuracy=max(accuracy, state.best_accuracy),
        reestimated_accuracy=reestimated,
        finished=True,
    )
    numbers = {
        f"{chosen_by}_accuracy": state.accuracy,
        "best_accuracy": state.best_accuracy,
        "reestimated_accuracy": state.reestimated_accuracy,
    }
    if splits.validation is not None:
        numbers["test_loss"], state.test_accuracy = _test(trainer, splits.test, metrics.folder, now=best)
        numbers["test_accuracy"] = state.test_accuracy
    metrics.write("final", **numbers)
    with agreed():
        if trainer.accelerator.is_main_process:
            from lowbit.report import plot_run

            with writable(metrics.folder):
                plot_run(metrics.folder)
    _save(checkpoints, "final", trainer, state, best=best)
    say(f"{metrics.folder}: {state.outcome()}")
    return state


def _test(trainer: Trainer, test: Loader, folder: Path, *, now: bool) -> tuple[float, float]:
    """(loss, accuracy in percent) of the best checkpoint on the test images; `now` if that is what the trainer holds.

    Raises:
        LowbitError: the checkpoint can't be read; on every process.
    """
    network, config = trainer.network, trainer.config
    if not now:
        with agreed():
            network, _ = load(folder, "best")
        network.to(trainer.accelerator.device, memory_format=config.memory_format)
    return evaluate(network, test, trainer.accelerator, config.memory_format)


def _save(checkpoints: Checkpoints, name: str, trainer: Trainer, state: Progress, *, best: bool) -> None:
    """Written by the first process; the others wait for it, and stop with it where it fails."""
    main = trainer.accelerator.is_main_process
    if main or trainer.sharded:  # parts are put together by all
        network = trainer.network_state(keep=main)
        training = {"progress": asdict(state), "trainer": trainer.state_dict(keep=main)}
    with agreed():
        if main:
            with writable(checkpoints.folder):
                checkpoints.save(name, network, training, identity(trainer.config), best=best)


def _run_folder(config: TrainConfig, resume: bool) -> Path:
    """The run folder, after a look at what is in it."""
    if config.output is None:
        raise LowbitError("output: no run folder is given; name one (--output)")
    if not config.data.path:
        raise LowbitError("data.path: no data is given; name the folder of the data set (--data)")
    folder = Path(config.output)
    if folder.exists() and not folder.is_dir():
        raise LowbitError(f"{folder}: is a file; give a folder for the run (--output)")
    exists = (folder / "config.json").exists()
    if exists and not resume:
        raise LowbitError(f"{folder}: holds a run already; continue it with --resume, or choose another --output")
    if not resume and (folder / "checkpoints").exists():
        raise LowbitError(f"{folder / 'checkpoints'}: is there already, and of no run; choose another --output")
    if resume and not exists:
        raise LowbitError(f"{folder}: no run to resume; leave out --resume, or name its folder with --output")
    return folder


def _check_same(before: TrainConfig, now: TrainConfig, folder: Path) -> None:
    """Refuse to continue a run with other settings: its result would be neither the one nor the other."""
    movable = ("output", "data.path", "data.workers", "model.init", "shard", "grad_checkpointing")
    changed = [line for name, line in differences(before, now) if name not in movable]
    if changed:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise LowbitError(
            f"{folder}: the run was started with other settings ({'; '.join(changed[:3])}{more}); "
            f"`lowbit train --resume --output {folder}` goes on with those"
        )


def _accelerator(config: TrainConfig) -> Accelerator:
    # Both are shared by all Accelerators of a process; a second run may want another precision.
    AcceleratorState._reset_state()
    GradientState._reset_state()
    launched = int(os.environ.get("WORLD_SIZE", 1))
    try:
        accelerator = Accelerator(
            mixed_precision=config.precision,
            gradient_accumulation_steps=config.accumulate,
            # Every process normalises by its own statistics or all by the same; the first's are never handed to others.
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
            # accelerate looks for accelerators only, unless it is told.
            cpu=True if launched > 1 and not torch.accelerator.is_available() else None,
        )
    except ValueError as error:
        raise LowbitError(f"precision {config.precision!r} does not work here: {error}") from error
    if accelerator.num_processes < launched:
        raise LowbitError(
            f"the launcher started {launched} processes, but this machine's {accelerator.device} can't work in several: "
            "set ACCELERATE_USE_CPU=true to train on the CPU"
        )
    if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise LowbitError(
            f"accelerate is configured for {accelerator.distributed_type.value}: lowbit divides a network by its own "
            "config (--shard); launch with `accelerate launch --multi_gpu` or torchrun"
        )
    return accelerator


def _place(accelerator: Accelerator) -> dict[str, Any]:
    return {
        "rank": accelerator.process_index,
        "world_size": accelerator.num_processes,
        "device": accelerator.device,
    }


@contextmanager
def _determinism(wanted: bool) -> Iterator[None]:
    """Within: the same bits again on the same machine, also on an accelerator."""
    if not wanted:
        yield
        return
    on, warn = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn, fill = torch.backends.cudnn.benchmark, torch.utils.deterministic.fill_uninitialized_memory
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    torch.utils.deterministic.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(on, warn_only=warn)
        torch.backends.cudnn.benchmark = cudnn
        torch.utils.deterministic.fill_uninitialized_memory = fill


def _opening(config: TrainConfig, splits: Splits, accelerator: Accelerator) -> str:
    """Two lines on what is trained, on what, and how."""
    q = config.quantization
    kind = "full precision" if q is None else f"W{q.weights or 32}A{q.activations or 32} by {q.method}"
    start = config.model.init or ("timm's weights" if config.model.pretrained else "random weights")
    ranks = accelerator.num_processes
    validation = "" if splits.validation is None else f", {splits.validation.num_images:,} validation"
    held = ", sharded" if config.shard and torch.distributed.is_initialized() else ""
    return (
        f"{config.recipe}: {config.model.name}, {kind}, from {start}; "
        f"{splits.train.num_images:,} training{validation} and {splits.test.num_images:,} test images\n"
        f"on {accelerator.device}{f' with {ranks} processes' if ranks > 1 else ''}{held}, "
        f"{'channels-last' if config.channels_last else 'contiguous'}, precision {config.precision}, "
        f"{'compiled step' if config.compile and not held else 'eager step'}; {config.output}"
    )


def _skipped(*loaders: Loader) -> set[str]:
    """What the loaders of all processes have left out."""
    return set(gather_object([image for loader in loaders for image in loader.skipped]))


def _epoch_line(epoch: int, epochs: int, chosen_by: str, numbers: dict[str, float]) -> str:
    return (
        f"epoch {epoch + 1}/{epochs}  train loss {numbers['train_loss']:.4f} accuracy {numbers['train_accuracy']:.2f} %  "
        f"{chosen_by} loss {numbers[f'{chosen_by}_loss']:.4f} accuracy {numbers[f'{chosen_by}_accuracy']:.2f} %  "
        f"lr {numbers['lr']:.4g}  {numbers['seconds']:.1f} s"
        + (f"  {numbers['skipped']} images that cannot be read so far" if numbers.get("skipped") else "")
    )
