"""A run that is stopped in the middle of an epoch goes on from there, to the bit, whatever it is trained on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.train import midway_job
from tests.train.launch import launch

from lowbit.errors import LowbitError
from lowbit.train import TrainConfig, load, run
from lowbit.train.checkpoint import Checkpoints
from lowbit.train.machine import Pauses


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("midway")
    midway_job.write(folder)
    return folder


@pytest.mark.parametrize("source", midway_job.SOURCES)
def test_one_process_goes_on(folder: Path, source: str) -> None:
    config = next(config for config in midway_job.configs(folder) if config.recipe == source)
    midway_job.check(replace(config, ema=0.9 if source == "memory" else None), 1.8, 10)


def test_two_processes_go_on(folder: Path, tmp_path: Path) -> None:
    midway_job.write(tmp_path)
    root = Path(__file__).resolve().parents[2]
    done = launch([midway_job.__file__, str(tmp_path)], timeout=500, PYTHONPATH=f"{root}:{root / 'src'}")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("all went on to the same bits") == 2


def stopped(config: TrainConfig, at: float) -> TrainConfig:
    config = replace(config, checkpoint_minutes=1e-9)

    def stop(trainer, epochs_done: float) -> None:
        if epochs_done >= at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(config, on_step=stop)
    return config


def test_what_is_there_in_the_middle_is_a_checkpoint_like_others(config: TrainConfig) -> None:
    config = stopped(config, 1.6)
    names = sorted(path.name for path in (Path(config.output) / "checkpoints").iterdir() if path.is_dir())
    assert names == ["epoch-0001", "epoch-0002-batch-000003"]  # the best, and the last
    assert not load(config.output, "last")[0].training
    run(replace(config, checkpoint_minutes=0.0), resume=True)  # that field may change
    assert sorted(path.name for path in (Path(config.output) / "checkpoints").iterdir() if path.is_dir())[-1] == "final"


def test_a_state_of_other_batches_is_refused(config: TrainConfig, monkeypatch) -> None:
    config = stopped(config, 1.6)
    state = Checkpoints(Path(config.output)).training_state()
    state["trainer"]["midway"][0]["losses"] = torch.zeros(2)
    monkeypatch.setattr(Checkpoints, "training_state", lambda self: state)
    with pytest.raises(LowbitError, match="training state does not fit"):
        run(config, resume=True)


class Processes:
    """Of an accelerator: how many processes there are, and what one process's clock says to all."""

    def __init__(self, count: int) -> None:
        self.num_processes, self.is_main_process, self.device = count, True, "cpu"

    def reduce(self, tensor: torch.Tensor, how: str) -> torch.Tensor:
        return tensor


def test_when_a_checkpoint_is_due(monkeypatch) -> None:
    now = [0.0]
    monkeypatch.setattr("lowbit.train.machine.time.monotonic", lambda: now[0])
    one, several, never = Pauses(2, Processes(1)), Pauses(2, Processes(2)), Pauses(0, Processes(1))
    assert not one.due()
    now[0] = 121.0
    assert one.due() and not never.due()
    assert [several.due() for _ in range(20)] == [False] * 19 + [True]
    one.begin()
    assert not one.due()
