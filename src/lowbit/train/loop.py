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

from lowbit.data import DataSet, Loader, Splits
from lowbit.errors import LowbitError
from lowbit.files import remove_leftovers
from lowbit.processes import agreed, named
from lowbit.report.run import read_events, read_run
from lowbit.train.assemble import assemble
from lowbit.train.build import load, read_config, record
from lowbit.train.checkpoint import Checkpoints
from lowbit.train.config import TrainConfig
from lowbit.train.evaluation import evaluate
from lowbit.train.folder import absent_files, check_same, run_folder, started
from lowbit.train.lock import locked
from lowbit.train.machine import Pauses, determinism, make_accelerator, move
from lowbit.train.resolve import resolve
from lowbit.train.state import Origin, Progress, Result, Saved
from lowbit.train.trackers import check_trackers
from lowbit.train.tracking import Metrics, epoch_line, mean_steps, opening, progress, writable
from lowbit.train.trainer import CALMER, OnStep, Trainer


def run(config: TrainConfig, *, resume: bool = False, on_step: OnStep | None = None) -> Result:
    """Train as the config says, into the folder `config.output`; `resume` continues the run that is there.

    `on_step` is called before every batch with the trainer and the epochs done (1.5 in the middle of the second). An error or
    KeyboardInterrupt that it raises ends the run, which can be continued.

    A resumed run ends with the same weights, bit for bit, as one that was never interrupted.

    Raises:
        LowbitError: bad input, before anything is written: paths, names, weights or settings that don't fit, a folder
            that holds a run already or in which another process trains, a run continued with another config. Also a
            loss that is not finite.
    """
    with named(), ExitStack() as held:
        return _run(config, resume, on_step, held)


def _run(config: TrainConfig, resume: bool, on_step: OnStep | None, held: ExitStack) -> Result:
    with agreed():
        accelerator = make_accelerator(config)
        folder = run_folder(config, resume)
        # Looked at before any process writes: what is there now is somebody's.
        absent = absent_files(folder)
        checkpoints = Checkpoints(folder)
        data = DataSet(config.data)
        config = resolve(config, data)
        check_trackers(config.track)
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
        trainer, splits, origin = assemble(config, data, accelerator, saved, bar.say, on_step)
        train = splits.train

        with started(config, folder, absent, main=main, fresh=not resume), \
             Metrics(folder, epochs_done=state.epochs_done, active=main, config=config) as metrics:  # fmt: skip
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
                # Everything random in an epoch depends on the seed and the epoch: no state is carried over from the one before.
                set_seed((config.seed * 1_000_003 + epoch + 1) % 2**32, device_specific=True)
                first = state.batches_done
                pause = Pauses(config.checkpoint_minutes, trainer.accelerator)

                def save(batches: int, epoch: int = epoch, state: Progress = state, pause: Pauses = pause) -> None:
                    if pause.due():
                        name = f"epoch-{epoch + 1:04d}-batch-{batches:06d}"
                        _save(checkpoints, name, trainer, replace(state, batches_done=batches), origin, best=False)
                        pause.begin()

                numbers = trainer.train_epoch(epoch, train, bar.update, first=first, pause=save)
                for look in [] if trainer.watch is None else trainer.watch.take():
                    metrics.write("look", **look)
                chosen_by, loader = _choice(splits)
                loss, accuracy = _evaluated(trainer, loader, chosen_by, state)
                numbers |= _named(chosen_by, loss, accuracy)
                numbers["seconds"] = time.monotonic() - began
                if config.data.corrupt == "skip":
                    numbers["skipped"] = len(_skipped(train, loader))
                metrics.epoch(epoch, steps=mean_steps(trainer.network), **numbers)
                bar.say(epoch_line(epoch, config.epochs, chosen_by, numbers))
                best = state.is_best(loss, accuracy)
                state = state.after(loss, accuracy, epochs_done=epoch + 1, batches_done=0)
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
    loss, accuracy = evaluate(trainer.network, loader, trainer.accelerator, trainer.config.memory_format, trainer.task)
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
    loss, accuracy, reestimated = state.loss, state.accuracy, None
    train = splits.train
    chosen_by, loader = _choice(splits)
    if config.bn_batches:
        before = {name: value.clone() for name, value in trainer.network.state_dict().items()}
        set_seed(config.seed, device_specific=True)
        train.set_epoch(config.epochs)
        trainer.reestimate_batchnorm(itertools.islice(train, config.bn_batches))
        new_loss, reestimated = evaluate(
            trainer.network, loader, trainer.accelerator, config.memory_format, trainer.task
        )
        by_loss = math.isnan(reestimated)
        better = new_loss < loss if by_loss else reestimated > accuracy
        keep = math.isfinite(new_loss) and (config.bn_keep == "always" or better)
        numbers = (
            f"loss {loss:.4g} -> {new_loss:.4g}" if by_loss else f"accuracy {accuracy:.2f} % -> {reestimated:.2f} %"
        )
        say(f"batch-norm re-estimated: {chosen_by} {numbers}, {'kept' if keep else 'left as trained'}")
        if keep:
            loss, accuracy = new_loss, reestimated
        else:
            trainer.network.load_state_dict(before)
    best = state.is_best(loss, accuracy)
    reestimated = None if reestimated is None or math.isnan(reestimated) else reestimated
    state = state.after(loss, accuracy, reestimated_accuracy=reestimated, finished=True)
    if math.isnan(accuracy):
        final = {f"{chosen_by}_loss": state.loss, "best_loss": state.best_loss}
    else:
        final = {
            f"{chosen_by}_accuracy": accuracy,
            "best_accuracy": state.best_accuracy,
            "reestimated_accuracy": reestimated,
        }
    if splits.validation is not None:
        state.test_loss, tested = _test(trainer, splits.test, metrics.folder, now=best)
        state.test_accuracy = None if math.isnan(tested) else tested
        final |= _named("test", state.test_loss, tested)
    metrics.write("final", **final)
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
    return evaluate(network, test, trainer.accelerator, config.memory_format, trainer.task)


def _named(images: str, loss: float, accuracy: float) -> dict[str, float]:
    """Numbers on some images as the log has them; the accuracy only where there is one."""
    return {f"{images}_loss": loss} | ({} if math.isnan(accuracy) else {f"{images}_accuracy": accuracy})


def _save(
    checkpoints: Checkpoints, name: str, trainer: Trainer, state: Progress, origin: Origin, *, best: bool
) -> None:
    """Written by the first process; the others wait for it, and stop with it where it fails."""
    main = trainer.accelerator.is_main_process
    parts, midway = None, trainer.midway_state()
    if main or trainer.sharded:  # parts are put together by all
        network = trainer.network_state(keep=main)
        parts_of_all = {**trainer.state_dict(keep=main), "midway": midway}
        training = {"progress": asdict(state), "origin": asdict(origin), "trainer": parts_of_all}
        parts = network, training
    with agreed():
        if main and parts is not None:
            with writable(checkpoints.folder):
                checkpoints.save(name, *parts, record(trainer.config), best=best)


def _skipped(*loaders: Loader) -> set[str]:
    """What the loaders of all processes have left out."""
    return set(gather_object([image for loader in loaders for image in loader.skipped]))
