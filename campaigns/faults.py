"""`python -m campaigns.faults`: damaged and hostile integer files, counted by what becomes of them.

lowbit's own file and the JSON file of four small networks, changed in one of these ways:

    flip        one bit, anywhere           flips       2 to 64 bits
    header      one bit of the header       truncated   the end cut off
    signed      one to three random values at random places of the graph, with a checksum that fits
    numbers     random numbers in a tensor, with a checksum that fits
    sizes       another, valid-looking graph, whose shapes, kernels, paddings and factors are random, up to 65,536

Every file is loaded, checked and run in both roundings, in a process of its own kind:

    refused     LowbitError
    same        loaded, and computes exactly what the original does
    other       loaded and runs; it is signed, so it is another network
    silent      loaded although damaged, and computes something else: must not happen
    traceback   any other exception: must not happen
    hang        more than 10 s of a processor or 60 s in all, or 2 GB more than before: must not happen

Outcomes are kept in --outcomes as they come; the same command goes on where it was stopped. The exit status is 1 where
something happened that must not.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import csv
import hashlib
import json
import multiprocessing
import os
import platform
import random
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from tests.format_graphs import transformer, two_inputs_and_two_outputs, upsampling
from tests.integer_graphs import GraphBuilder, every_operation, resnet_like
from torch import Tensor

from lowbit.errors import LowbitError
from lowbit.files import atomic_write
from lowbit.formats import json as json_format
from lowbit.integer import file
from lowbit.integer.graph import Graph, TensorType, Weight
from lowbit.integer.network import IntegerNetwork
from lowbit.integer.ops import (
    OPERATIONS,
    Add,
    AveragePool,
    Concatenate,
    Convolution,
    Expand,
    GlobalAveragePool,
    MatMul,
    MaxPool,
    Multiply,
    Normalize,
    Pad,
    PadChannels,
    Quantize,
    Reduce,
    Requantize,
    Reshape,
    Softmax,
    Subtract,
    Transpose,
    Upsample,
)
from lowbit.integer.ops.softmax import exponentials
from lowbit.integer.run import run

NETWORKS: tuple[Callable[[], GraphBuilder], ...] = (
    lambda: resnet_like(0, 3),
    lambda: every_operation(1, 4),
    two_inputs_and_two_outputs,
    lambda: upsampling((2, 3)),
    transformer,
)
FORMATS = ("lowbit", "json")
KINDS = ("flip", "flips", "header", "truncated", "signed", "numbers", "sizes")
OUTCOMES = ("refused", "same", "other", "silent", "traceback", "hang")
BAD = ("silent", "traceback", "hang")
SECONDS = 10
BYTES = 2 * 10**9
VALUES = (
    None, True, False, -1, 0, 1, 2, 3, 7, 8, 15, 16, 17, 64, 255, 1000, 5000, 20_000, 65_536, 2**20, 2**24,
    2**31 - 1, -(2**31), 2**31, 2**63, 10**400, 0.0, -0.5, 0.5, 1e-40, 1e-38, 2.0**-126, 2.0**-125, 1e30, 3e38, 1e308,
    "", "image", "n1.Convolution", "a:b", "\ud800", "\x1b[2J", "x" * 100_000, [], {}, [1], [[1, 1]], [[1, 1]] * 9,
    [2**31 - 1] * 8, [5000, 5000], [[20_000, 20_000]] * 2, [2000, 2000], [1] * 5000,
)  # fmt: skip


@cache
def original(index: int) -> tuple[Graph, Any]:
    """A network, and inputs of its own."""
    builder = NETWORKS[index]()
    return builder.graph(), builder.input(2)


@cache
def written(index: int, format: str) -> bytes:
    """The network's file."""
    return _file_of(original(index)[0], format)


def _file_of(graph: Graph, format: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "original"
        (file.save if format == "lowbit" else json_format.write)(graph, path)
        return path.read_bytes()


def case(seed: int, number: int) -> tuple[int, str, str, random.Random]:
    """(network, format, kind, random numbers) of a file."""
    per_format, kind = divmod(number, len(KINDS))
    per_network, format = divmod(per_format, len(FORMATS))
    return per_network % len(NETWORKS), FORMATS[format], KINDS[kind], random.Random(f"{seed}:{number}")


def mutated(seed: int, number: int) -> bytes:
    """The content of a changed file."""
    index, format, kind, chooser = case(seed, number)
    data = bytearray(written(index, format))
    if kind == "sizes":
        return _file_of(_sized(chooser), format)
    if kind == "truncated":
        return bytes(data[: chooser.randrange(len(data))])
    if kind in ("flip", "flips", "header"):
        if format == "lowbit":
            end = 8 + int.from_bytes(data[:8], "little")
        else:
            end = data.index(b'"tensors"')
        for _ in range(chooser.randint(2, 64) if kind == "flips" else 1):
            data[chooser.randrange(end if kind == "header" else len(data))] ^= 1 << chooser.randrange(8)
        return bytes(data)
    graph, tensors, sign = _opened(bytes(data), format)
    if kind == "signed":
        for _ in range(chooser.randint(1, 3)):
            _replace_somewhere(graph, chooser)
    else:
        _renumber(tensors, chooser)
    return sign()


def _opened(data: bytes, format: str) -> tuple[Any, dict[str, Any], Callable[[], bytes]]:
    """(graph, tensors, what writes both back, with a checksum that fits) of a file's content."""
    if format == "json":
        content = json.loads(data)

        def sign_text() -> bytes:
            digest = json_format._checksum(content["lowbit"], content["graph"], content["tensors"])
            return json.dumps(content | {"sha256": digest}).encode()

        return content["graph"], content["tensors"], sign_text
    tensors = dict(sorted(safetensors.torch.load(data).items()))
    header = json.loads(json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]["lowbit"])

    def sign() -> bytes:
        header["sha256"] = file.checksum(file._canonical(header["graph"]), tensors)
        return safetensors.torch.save(tensors, metadata={"lowbit": json.dumps(header)})

    return header["graph"], tensors, sign


def _replace_somewhere(graph: Any, chooser: random.Random) -> None:
    """Change one place of the graph, mostly to a value of the same type; or every whole number of a node.

    Or take an entry of a list away, or put it in twice.
    """
    act = chooser.random()
    if act < 0.25:  # windows, factors, sizes and zero points that are large together
        node = chooser.choice(graph["nodes"])
        for place, key in _leaves(node):
            if type(place[key]) is int and chooser.random() < 0.7:
                place[key] = int(2 ** chooser.uniform(0, 16))
        return
    if act < 0.35:
        entries = chooser.choice([place[key] for place, key in _leaves(graph, lists=True)])
        key = chooser.randrange(len(entries))
        if chooser.random() < 0.5:
            del entries[key]
        else:
            entries.insert(key, copy.deepcopy(entries[key]))
        return
    place, key = chooser.choice(list(_leaves(graph)))
    old = place[key]
    like = [value for value in VALUES if type(value) is type(old)]
    if isinstance(old, str):
        like = [*OPERATIONS, *(node["name"] for node in graph["nodes"] if isinstance(node, dict) and "name" in node)]
    elif type(old) is float:
        like = [
            *(value for value in like if value >= 0),
            old * 2.0 ** chooser.randint(-40, 40),
            old * 2.0 ** chooser.randint(-3, 3),
        ]
    elif type(old) is int:
        like = [*like, old + 1, old - 1, old * 2, chooser.randint(0, 9)]
    place[key] = copy.deepcopy(chooser.choice(like if like and chooser.random() < 0.85 else VALUES))


def _sized(chooser: random.Random) -> Graph:
    """A graph of random sizes, not validated: a quantized input, an operation with windows or factors, one more."""

    def size(largest: float) -> int:
        return int(2 ** chooser.uniform(0, largest))

    y = TensorType(0.5, 0, 8, False)
    channels, rank = size(4), chooser.randint(1, 3)
    kernel = tuple(size(chooser.choice((2, 12 / rank))) for _ in range(rank))
    around: dict[str, Any] = {
        "stride": tuple(size(chooser.choice((1, 15))) for _ in kernel),
        "padding": tuple((size(chooser.choice((1, 16))), size(chooser.choice((1, 16)))) for _ in kernel),
    }
    dilation = tuple(size(chooser.choice((1, 6))) for _ in kernel)
    fields: dict[str, Any] = {"name": "big", "inputs": ("in",), "type": y}
    weight = Weight(torch.ones(size(3), channels, *kernel, dtype=torch.int8), torch.tensor(0.5), 8)
    big = chooser.choice(
        [
            lambda: MaxPool(**fields, kernel=kernel, dilation=dilation, **around),
            lambda: AveragePool(**fields, kernel=kernel, **around),
            lambda: Convolution(**fields, weight=weight, dilation=dilation, **around),
            lambda: Upsample(**fields, factors=tuple(size(12) for _ in kernel)),
            lambda: PadChannels(**fields, before=size(20), after=size(20)),
            lambda: Concatenate(**fields | {"inputs": ("in",) * size(11)}, axis=chooser.randint(1, rank + 1)),
            lambda: Pad(**fields, padding=tuple((size(16), size(16)) for _ in range(rank + 1))),
            lambda: Expand(**fields, shape=tuple(size(12) for _ in range(rank + 1))),
            lambda: Transpose(**fields, order=tuple(chooser.sample(range(1, rank + 2), rank + 1))),
        ]
    )()
    fields |= {"name": "after", "inputs": ("big",)}
    after = chooser.choice(
        [
            lambda: Add(**fields | {"inputs": ("big", "big")}),
            lambda: Multiply(**fields | {"inputs": ("big", "big")}),
            lambda: Subtract(**fields | {"inputs": ("big", "big")}),
            lambda: Requantize(**fields | {"type": replace(y, scale=0.25)}),
            lambda: GlobalAveragePool(**fields),
            lambda: MatMul(**fields | {"inputs": ("big", "in" if chooser.random() < 0.5 else "big")}),
            lambda: Normalize(**fields, count=size(20), centered=chooser.random() < 0.5, eps=1e-5),
            lambda: Softmax(**fields, axis=chooser.randint(1, rank + 1), table=exponentials(y, size(20))),
            lambda: Reduce(**fields, axes=(chooser.randint(1, rank + 1),), keepdim=True, function="mean"),
            lambda: Reshape(**fields, shape=(-1,)),
        ]
    )()
    shape = (channels, *(size(chooser.choice((5, 24 / rank))) for _ in kernel))
    return Graph({"image": shape}, (Quantize(name="in", inputs=("image",), type=y), big, after), ("after",))


def _leaves(value: Any, lists: bool = False) -> Iterator[tuple[Any, Any]]:
    """(container, key) of every value that is no container; or of every list that is not empty."""
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        inner = value[key]
        if isinstance(inner, dict | list):
            if lists and isinstance(inner, list) and inner:
                yield value, key
            yield from _leaves(inner, lists)
        elif not lists:
            yield value, key


def _renumber(tensors: dict[str, Any], chooser: random.Random) -> None:
    """Random numbers, of the tensor's own type or another, in one tensor."""
    name = chooser.choice(sorted(tensors))
    value = tensors[name]
    if isinstance(value, Tensor):
        generator = torch.Generator().manual_seed(chooser.randrange(2**31))
        flat = torch.randint(0, 256, (value.numel() * value.element_size(),), dtype=torch.uint8, generator=generator)
        tensors[name] = flat.view(value.dtype).reshape(value.shape)
    else:
        values = value["values"] or [0]
        for _ in range(chooser.randint(1, 3)):
            values[chooser.randrange(len(values))] = chooser.choice(VALUES)


# ---------------------------------------------------------------- what becomes of a file


def outcome(path: Path, seed: int, number: int) -> tuple[str, str]:
    """(outcome, message) of a file; without time and memory, which are the caller's."""
    index, format, kind, _ = case(seed, number)
    graph, x = original(index)
    try:
        network = IntegerNetwork(file.load(path) if format == "lowbit" else json_format.load(path))
        same = dict(network.graph.inputs) == dict(graph.inputs) and network.graph.outputs == graph.outputs
        generator = torch.Generator().manual_seed(0)
        given = x if same else {n: torch.rand(1, *s, generator=generator) for n, s in network.graph.inputs.items()}
        for rounding in ("float", "fixed"):
            # Tensor by tensor, as a runtime would: a network that exists needs no more memory than its largest tensors.
            expected = run(graph, x, rounding) if same else iter(())
            for name, codes in run(network.graph, given, rounding):
                same = same and next(expected, ("", codes))[0] == name
                same = same and torch.equal(codes, original_codes(index, rounding)[name])
            same = same and next(expected, None) is None
    except LowbitError as error:
        return "refused", str(error).replace(str(path), "FILE")
    except (MemoryError, RuntimeError) as error:
        memory = isinstance(error, MemoryError) or "memory" in str(error)
        return "hang" if memory else "traceback", f"{type(error).__name__}: {error}"
    except Exception as error:
        return "traceback", f"{type(error).__name__}: {error}"
    if same:
        return "same", ""
    return ("other" if kind in ("signed", "numbers", "sizes") else "silent"), ""


@cache
def original_codes(index: int, rounding: str) -> dict[str, Tensor]:
    return dict(run(*original(index), rounding))


def _worker(pipe: Connection, path: Path, seed: int) -> None:
    """Judge the numbers that come through a pipe, with a bound on memory."""
    torch.set_num_threads(1)
    for index in range(len(NETWORKS)):
        original_codes(index, "float"), original_codes(index, "fixed")
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + BYTES,) * 2)
    with contextlib.suppress(EOFError, BrokenPipeError):  # the campaign was stopped
        pipe.send(None)
        while True:
            number = pipe.recv()
            path.write_bytes(mutated(seed, number))
            pipe.send(outcome(path, seed, number))


def judged(numbers: Sequence[int], seed: int, seconds: float = SECONDS) -> Iterator[tuple[int, str, str]]:
    """Yield (number, outcome, message) of every file, from a process that is ended and started anew when it hangs."""
    context = multiprocessing.get_context("spawn")
    process = pipe = None
    folder = tempfile.TemporaryDirectory()
    try:
        for number in numbers:
            if process is None:
                pipe, other = context.Pipe()
                process = context.Process(
                    target=_worker, args=(other, Path(folder.name) / "mutated", seed), daemon=True
                )
                process.start()
                other.close()
                pipe.recv()
            pipe.send(number)
            try:
                in_time = _answers(pipe, process, seconds)
                found = pipe.recv() if in_time else ("hang", f"more than {seconds:g} s")
            except EOFError:
                found = "traceback", "the process died"
            if found[0] == "hang" or found[1] == "the process died":
                process.kill()
                process.join()
                process = None
            yield number, *found
    finally:
        if process is not None:
            process.kill()
            process.join()
        folder.cleanup()


def _answers(pipe: Connection, process: BaseProcess, seconds: float) -> bool:
    """Whether there is an answer within so many seconds of processor time, and six times as many of any other."""

    def used() -> float:
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    began, processor = time.monotonic(), used()
    while not pipe.poll(0.5):
        if used() - processor > seconds or time.monotonic() - began > 6 * seconds:
            return False
    return True


# ---------------------------------------------------------------- the table


def table(rows: Sequence[tuple[int, str]], seed: int) -> str:
    """Counts by format and kind, as Markdown."""
    counts = Counter((*case(seed, number)[1:3], found) for number, found in rows)
    lines = [f"| file | change | files | {' | '.join(OUTCOMES)} |", f"|---|---|{'---|' * (len(OUTCOMES) + 1)}"]
    for format in FORMATS:
        for kind in KINDS:
            each = [counts[format, kind, found] for found in OUTCOMES]
            lines.append(f"| {format} | {kind} | {sum(each)} | {' | '.join(map(str, each))} |")
    total = [sum(found == name for _, found in rows) for name in OUTCOMES]
    lines.append(f"| all | | {len(rows)} | {' | '.join(map(str, total))} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m campaigns.faults", description=__doc__.split("\n")[0])
    parser.add_argument("--files", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--outcomes", type=Path, default=Path("faults.csv"), help="kept as they come")
    parser.add_argument("--report", type=Path, default=None, metavar="FILE", help="write the table as Markdown")
    options = parser.parse_args(arguments)

    rows: dict[int, tuple[str, str]] = {}
    if options.outcomes.exists():
        with open(options.outcomes, newline="") as stored:
            for seed, number, found, message in csv.reader(stored):
                if int(seed) == options.seed and int(number) < options.files:
                    rows[int(number)] = found, message
    began = time.perf_counter()
    with open(options.outcomes, "a", newline="") as stored:
        writer = csv.writer(stored)
        missing = [number for number in range(options.files) if number not in rows]
        for number, found, message in judged(missing, options.seed):
            rows[number] = found, message
            message = ascii(message[:200])[1:-1]
            writer.writerow((options.seed, number, found, message))
            stored.flush()
            if found in BAD:
                print(f"{number} {case(options.seed, number)[:3]}: {found}: {message}", flush=True)
    counts = table([(number, found) for number, (found, _) in sorted(rows.items())], options.seed)
    print(counts, f"\n{time.perf_counter() - began:.0f} s")
    if options.report is not None:
        files = hashlib.sha256(b"".join(written(i, f) for i in range(len(NETWORKS)) for f in FORMATS)).hexdigest()[:12]
        versions = (
            f"torch {torch.__version__}, safetensors {safetensors.__version__}, Python {platform.python_version()}"
        )
        with atomic_write(options.report) as temporary:
            command = (
                f"python -m campaigns.faults --files {options.files} --seed {options.seed} --report {options.report}"
            )
            temporary.write_text(
                f"# Damaged and hostile integer files\n\n    {command}\n\n"
                f"{versions}; originals {files} (the first digits of their SHA-256).\n\n{counts}\n\n"
                "What the changes and outcomes are: `campaigns/faults.py`. Silent, traceback and hang must be 0.\n"
            )
    return int(any(found in BAD for found, _ in rows.values()))


if __name__ == "__main__":
    raise SystemExit(main())
