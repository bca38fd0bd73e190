"""Many cells at once, by processes that share an accelerator, until all are finished or the time is up."""

from __future__ import annotations

import multiprocessing
import os
import time
import traceback
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from multiprocessing.connection import Connection, wait
from typing import Any

from campaigns.accuracy import results
from campaigns.accuracy.cell import Cell, without_seed
from campaigns.accuracy.run import Places, run_cell
from campaigns.accuracy.twins import Twins


def run_at_once(
    cells: Sequence[Cell], places: Places, twins: Twins, jobs: int, minutes: float, *, compile: bool = False
) -> None:
    """Run the cells that have no result, nor a twin that has one, in their order, as many at a time as there are jobs.

    Each is recorded when it finishes.

    A cell whose start has no result waits for it. One that fails is named, with its traceback, and does not hold up the
    others. When the minutes are over, what is not finished is left at its last checkpoint.
    """
    end = time.monotonic() + 60 * minutes
    twins.record(cells, places.results)
    done = set(results.read(places.results))
    waiting = twins.without([cell for cell in cells if cell.name not in done and cell.waiting is None])
    context = multiprocessing.get_context("spawn")
    # By the pipe to a process: the process, its cell, and the kind of the last one.
    running: dict[Any, tuple[Any, Cell | None, str]] = {}
    for number in range(min(jobs, len(waiting))):
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs, places, number, compile), daemon=True)
        process.start()
        theirs.close()
        running[ours] = (process, None, "")
    finished = 0
    try:
        while running and time.monotonic() < end:
            for pipe, (process, cell, kind) in list(running.items()):
                if cell is None and (chosen := _next(waiting, done, kind, _busy(running))) is not None:
                    waiting.remove(chosen)
                    pipe.send(chosen.name)
                    running[pipe] = (process, chosen, _kind(chosen))
            if not any(cell for _, cell, _ in running.values()):
                break
            for pipe in wait(list(running), timeout=1.0):
                process, cell, kind = running[pipe]
                try:
                    line, error = pipe.recv()
                except EOFError:
                    print(f"{cell and cell.name}: its process died", flush=True)
                    del running[pipe]
                    continue
                assert cell is not None
                running[pipe] = (process, None, kind)
                if line is None:
                    print(f"{cell.name}: {error}", flush=True)
                    continue
                results.append(places.results, line)
                twins.record([cell], places.results)
                done.add(cell.name)
                finished += 1
                left = end - time.monotonic()
                print(f"{cell.name}: {line['test']} % in {line['seconds']} s; {left:.0f} s left", flush=True)
    finally:
        for pipe, (process, *_) in running.items():
            pipe.close()
            process.terminate()
    print(f"{finished} cells finished, {len(waiting)} not begun", flush=True)


def _kind(cell: Cell) -> str:
    """Cells that differ by the seed alone have one step, which has to be compiled once."""
    return without_seed(cell.name)


def _busy(running: dict[Any, tuple[Any, Cell | None, str]]) -> set[str]:
    """The kinds that are running."""
    return {_kind(cell) for _, cell, _ in running.values() if cell is not None}


def _next(waiting: Sequence[Cell], done: set[str], kind: str, busy: set[str]) -> Cell | None:
    """A cell that can begin: of the same kind as before, else the first of a kind that does not run now, else the first."""
    ready = [cell for cell in waiting if done.issuperset(cell.needs)]
    same = (cell for cell in ready if _kind(cell) == kind)
    other = (cell for cell in ready if _kind(cell) not in busy)
    return next(same, None) or next(other, None) or next(iter(ready), None)


def _work(pipe: Connection, places: Places, number: int, compile: bool) -> None:
    """A process: runs the cells that it is told, one after the other."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import torch

    import lowbit.data.memory
    import lowbit.report
    import lowbit.train.assemble
    from campaigns.accuracy import tables
    from campaigns.accuracy.replay import Restarted

    torch.set_num_threads(1)
    lowbit.data.memory.decode_all = _once(lowbit.data.memory.decode_all)
    lowbit.train.assemble.Trainer = Restarted()
    lowbit.report.plot_run = lambda *_: None
    cells = {cell.name: cell for cell in tables.plan()}
    places.runs.mkdir(parents=True, exist_ok=True)
    log = places.runs / f"worker-{number}.log"
    with log.open("a", buffering=1) as said, redirect_stdout(said), redirect_stderr(said):
        while True:
            try:
                name = pipe.recv()
            except EOFError:
                return
            try:
                pipe.send((run_cell(cells[name], places, places.runs / name, compile=compile), None))
            except Exception:
                traceback.print_exc()
                pipe.send((None, "".join(traceback.format_exc()[-1500:])))


def _once(decode_all: Any) -> Any:
    """The same images are decoded once in a process."""
    kept: dict[tuple, Any] = {}

    def decode(source: Any, indices: range, **named: Any) -> Any:
        key = (source.split, len(source), source.labels.tobytes(), indices, named["size"])
        if key not in kept:
            kept[key] = decode_all(source, indices, **named | {"workers": 0})
        return kept[key]

    return decode
