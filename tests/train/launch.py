"""Jobs of several processes on the CPU."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
PROCESSES = 2


def launch(
    arguments: Sequence[str], *, launcher: Sequence[str] = TORCHRUN, timeout: float = 300, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a script, or `-m` and a module, in two processes; one that hangs fails."""
    return subprocess.run(
        [*launcher, *arguments], capture_output=True, text=True, timeout=timeout, env=ENVIRONMENT | environment
    )


def forked(script: str, *arguments: str, timeout: float = 300, **environment: str) -> subprocess.CompletedProcess[str]:
    """As `launch` of a script, by processes that branch off one that has torch and lowbit imported: half of a short job's time.

    Without torchrun nobody ends the others where one fails; they notice it themselves, or the time is up.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lowbit.train", "lowbit.cli.main", "lowbit.recipes", "torch._dynamo"])
    with socket.socket() as free, tempfile.TemporaryDirectory() as folder:
        free.bind(("127.0.0.1", 0))
        common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "OMP_NUM_THREADS": "1"}
        free.close()
        outputs = [[Path(folder) / f"{rank}-{name}" for name in ("out", "err")] for rank in range(PROCESSES)]
        processes = []
        for rank, files in enumerate(outputs):
            places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": PROCESSES, "LOCAL_WORLD_SIZE": PROCESSES}
            variables = {**common, **environment, **{name: str(value) for name, value in places.items()}}
            processes.append(context.Process(target=_run, args=([script, *arguments], variables, files)))
            processes[-1].start()
        until = time.monotonic() + timeout
        for process in processes:
            process.join(max(0.0, until - time.monotonic()))
        late = [process for process in processes if process.is_alive()]
        for process in late:
            process.kill()
            process.join()
        out, err = ("".join(file.read_text() for file in files if file.exists()) for files in zip(*outputs))
    if late:
        raise subprocess.TimeoutExpired([script, *arguments], timeout, out, err)
    status = next((process.exitcode for process in processes if process.exitcode), 0)
    return subprocess.CompletedProcess([script, *arguments], status, out, err)


def _run(arguments: list[str], environment: Mapping[str, str], files: Sequence[Path]) -> None:
    """In one of the processes: what the interpreter does with a script."""
    os.environ.update(environment)
    for number, file in enumerate(files, 1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
    sys.argv = arguments
    sys.path.insert(0, str(Path(arguments[0]).parent))
    runpy.run_path(arguments[0], run_name="__main__")
