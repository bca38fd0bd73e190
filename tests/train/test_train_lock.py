"""One run folder, one run: who holds it is named, and a crash lets go of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import lowbit.train.folder
from lowbit.cli.main import main
from lowbit.errors import LowbitError
from lowbit.train import TrainConfig, run
from lowbit.train.checkpoint import Checkpoints
from lowbit.train.lock import LOCK, locked
from lowbit.train.trainer import Trainer

# Holds a folder's lock, with a worker that outlives it; the worker's number is printed once the lock is held.
HOLDER = """
import os, sys, time
from pathlib import Path
from lowbit.train.lock import locked
with locked(Path(sys.argv[1])):
    worker = os.fork()
    if worker:
        print(worker, flush=True)
    time.sleep(60)
"""


def interrupt(config: TrainConfig, monkeypatch: pytest.MonkeyPatch, at: float, action) -> None:
    """Run, and do something when `at` epochs are done."""

    def look(trainer: Trainer, epochs_done: float) -> None:
        if epochs_done >= at:
            action()

    run(config, on_step=look)


def stop() -> None:
    raise KeyboardInterrupt


def test_beside_a_live_run_resume_and_a_fresh_start_exit_with_2(config, tmp_path, monkeypatch, capsys) -> None:
    config.save(tmp_path / "config.json")
    statuses, said = [], []

    def try_both() -> None:
        if statuses:
            return
        capsys.readouterr()
        statuses.append(main(["train", "--resume", "--output", config.output]))
        said.append(capsys.readouterr().err)
        statuses.append(main(["train", "digits-cnn-fp", "--output", config.output]))
        said.append(capsys.readouterr().err)
        assert (Path(config.output) / LOCK).exists()

    interrupt(config, monkeypatch, 1.25, try_both)
    assert statuses == [2, 2]
    assert all(f"process {os.getpid()} on {os.uname().nodename}, since 20" in words for words in said), said
    assert not (Path(config.output) / LOCK).exists()


def test_of_two_fresh_starts_one_goes_on(config: TrainConfig, monkeypatch) -> None:
    real = lowbit.train.folder._enter

    def late(*arguments, **named) -> None:
        """Between this process's look at the folder and its first file, another run takes place there."""
        monkeypatch.setattr(lowbit.train.folder, "_enter", real)
        run(config)
        real(*arguments, **named)

    monkeypatch.setattr(lowbit.train.folder, "_enter", late)
    with pytest.raises(LowbitError, match="holds a run already"):
        run(config)
    assert Checkpoints(Path(config.output)).training_state()["progress"]["finished"]


def test_a_fresh_start_is_refused_while_another_is_about_to_write(config: TrainConfig) -> None:
    folder = Path(config.output)
    folder.mkdir()
    with locked(folder), pytest.raises(LowbitError, match="another process trains in this folder"):
        run(config)
    assert list(folder.iterdir()) == []


def test_a_killed_process_lets_go_also_where_its_workers_live_on(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    worker = int(holder.stdout.readline())
    try:
        with pytest.raises(LowbitError, match=f"process {holder.pid} on "), locked(tmp_path):
            pass
        holder.kill()
        holder.wait()
        time.sleep(0.1)
        with locked(tmp_path):
            pass
    finally:
        os.kill(worker, signal.SIGKILL)
        holder.kill()
        holder.stdout.close()
    assert list(tmp_path.iterdir()) == []
