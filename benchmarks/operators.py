"""Which operators take the time of a file in ONNX Runtime, by its own profiler."""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

RUNS = 20
_LEAST = 0.01
"""The share of one file's time from which on an operator has a row."""


def times_of(path: Path, x: Tensor, threads: int) -> dict[str, float]:
    """Milliseconds of each operator that the file is executed with, after fusion.

    Of every node the least of `RUNS` runs counts: other processes lengthen the rest.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        feed = {session.get_inputs()[0].name: x.numpy()}
        for _ in range(RUNS):
            session.run(None, feed)
        events = json.loads(Path(session.end_profiling()).read_text())
    kernels = [event for event in events if event["name"].endswith("_kernel_time")]
    least: dict[tuple[str, str], float] = {}
    for event in kernels:
        key = (event["args"]["op_name"], event["name"])
        least[key] = min(least.get(key, event["dur"]), event["dur"])
    found: dict[str, float] = defaultdict(float)
    for (operator, _), microseconds in least.items():
        found[operator] += microseconds / 1e3
    return dict(found)


def rows(times: Mapping[str, Mapping[str, float]]) -> list[dict[str, str]]:
    """A row per operator, a column per file, the longest first; what is under 1 % in every file is one row."""
    names = {operator for each in times.values() for operator in each}

    def longest(operator: str) -> float:
        return max(each.get(operator, 0.0) / sum(each.values()) for each in times.values())

    shown = sorted((name for name in names if longest(name) >= _LEAST), key=longest, reverse=True)
    groups = {**{name: {name} for name in shown}, "others": names - set(shown), "all": names}
    return [
        {"operator": label, **{
            f"{file} ms": f"{sum(each.get(name, 0.0) for name in group):.2f}" for file, each in times.items()
        }}
        for label, group in groups.items()
    ]  # fmt: skip
