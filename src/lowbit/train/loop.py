"""The training loop: `run` takes a config to a run folder."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path

from accelerate.utils import gather_object, set_seed

from lowbit.data import Loader, Splits
from lowbit.errors import LowbitError
from lowbit.files import remove_leftovers
from lowbit.processes import agreed, named
from lowbit.report.run import read_events, read_run
from lowbit.train.assemble import assemble
from lowbit.train.build import load, read_config, record
from lowbit.train.checkpoint import Checkpoints
from lowbit.train.checks import resolve
from lowbit.train.config import TrainConfig
from lowbit.train.evaluation import evaluate
from lowbit.train.folder import absent_files, check_same, run_folder, started
from lowbit.train.lock import locked
from lowbit.train.machine import determinism, make_accelerator, move
from lowbit.train.state import Origin, Progress, Result, Saved
from lowbit.train.tracking import Metrics, epoch_line, mean_steps, opening, progress, writable
from lowbit.train.trainer import CALMER, Trainer


def run(config: TrainConfig, *, resume: bool = False) -> Result:
    """Train as the config says, into the folder `config.output`; `resume` continues the run that is there.

    A resumed run ends with the same weights, bit for bit, as one that was never interrupted.

    Raises:
        LowbitError: bad input, before anything is written: paths, names, weights or settings that don't fit, a folder
            that holds a run already or in which another process trains, a run continued with another config. Also a
            loss that is not finite.
    """
    with named(), ExitStack() as held:
        return _run(config, resume, held)


def _run(config: TrainConfig, resume: bool, held: ExitStack) -> Result:
    with agreed():
        accelerator = make_accelerator(config)
        folder = run_folder(config, resume)
        # Looked at before any process writes: what is there now is somebody's.
        absent = absent_files(folder)
        checkpoints = Checkpoints(folder)
        config = resolve(config)
        if config.precision != "no" and not accelerator.native_amp:
            raise LowbitError(
                f"precision {config.precision!r} does not work here, on {accelerator.device.type}: use bf16 or no"
            )
        if resume:
            if accelerator.is_main_process:
                with writable(folder):
                    held.enter_context(locked(folder))
                    checkpoints.tidy()
                    for each in (folder, folder / "plots"):
                        remove_leftovers(each)
            check_same(read_config(folder), config, folder)
        # What is damaged here would else be found by the plots, after the last epoch.
        if resume:
            read_run(folder)
        else:
            read_events(folder / "metrics.jsonl")
        saved = Saved.last(checkpoints, config) if resume and checkpoints.exists else None
        state = saved.progress if saved else Progress()
    main = accelerator.is_main_process
    with determinism(config.deterministic), progress(config.epochs, state.epochs_done, speak=main) as bar:
        if state.finished:
            bar.say(f"{folder}: this run is finished ({state.outcome()}); nothing to resume")
            return state.result(folder)

        # Nothing is written before all of this has worked.
        set_seed(config.seed)
        trainer, splits, origin = assemble(config, accelerator, saved, bar.say)
        train = splits.train

        with started(config, folder, absent, main=main, fresh=not resume), \
             Metrics(folder, epochs_done=state.epochs_done, active=main) as metrics:  # fmt: skip
            changed = saved.changed(origin) if saved else []
            metrics.write(
                "resume" if saved else "start",
                epochs_done=state.epochs_done,
                steps=mean_steps(trainer.model),
                **({"changed": changed} if changed else {}),
            )
            bar.say(opening(config, splits, accelerator))
            if changed:
                bar.say(f"not as at the last checkpoint: {'; '.join(changed)}")

            for epoch in range(state.epochs_done, config.epochs):
                began = time.monotonic()
                # Everything random in an epoch depends on the seed and the epoch, so there is no state to carry over.
                set_seed((config.seed * 1_000_003 + epoch + 1) % 2**32, device_specific=True)
                train.set_epoch(epoch)
                numbers = trainer.train_epoch(epoch, train, bar.update)
                for look in [] if trainer.watch is None else trainer.watch.take():
                    metrics.write("look", **look)
                chosen_by, loader = _choice(splits)
                loss, accuracy = _evaluated(trainer, loader, chosen_by, state)
                numbers |= {f"{chosen_by}_loss": loss, f"{chosen_by}_accuracy": accuracy}
                numbers["seconds"] = time.monotonic() - began
                if config.data.corrupt == "skip":
                    numbers["skipped"] = len(_skipped(train, loader))
                metrics.epoch(epoch, steps=mean_steps(trainer.network), **numbers)
                bar.say(epoch_line(epoch, config.epochs, chosen_by, numbers))
                best = accuracy > state.best_accuracy
                state = replace(
                    state,
                    epochs_done=epoch + 1,
                    accuracy=accuracy,
                    best_accuracy=max(accuracy, state.best_accuracy),
                )
                _save(checkpoints, f"epoch-{epoch + 1:04d}", trainer, state, origin, best=best)

            state = _finish(config, trainer, state, splits, origin, checkpoints, metrics, bar.say)
        return state.result(folder)


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


def _finish(
    config: TrainConfig,
    trainer: Trainer,
    state: Progress,
    splits: Splits,
    origin: Origin,
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
    _save(checkpoints, "final", trainer, state, origin, best=best)
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
        move(network, trainer.accelerator.device, config.memory_format)
    return evaluate(network, test, trainer.accelerator, config.memory_format)


def _save(
    checkpoints: Checkpoints, name: str, trainer: Trainer, state: Progress, origin: Origin, *, best: bool
) -> None:
    """Written by the first process; the others wait for it, and stop with it where it fails."""
    main = trainer.accelerator.is_main_process
    parts = None
    if main or trainer.sharded:  # parts are put together by all
        network = trainer.network_state(keep=main)
        training = {"progress": asdict(state), "origin": asdict(origin), "trainer": trainer.state_dict(keep=main)}
        parts = network, training
    with agreed():
        if main and parts is not None:
            with writable(checkpoints.folder):
                checkpoints.save(name, *parts, record(trainer.config), best=best)


def _skipped(*loaders: Loader) -> set[str]:
    """What the loaders of all processes have left out."""
    return set(gather_object([image for loader in loaders for image in loader.skipped]))
