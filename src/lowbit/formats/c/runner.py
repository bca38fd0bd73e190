"""An exported C file, compiled by this machine's compiler and run, with every layer's codes readable by name."""

from __future__ import annotations

import math
import os
import re
import shutil
import subprocess
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lowbit.errors import LowbitError
from lowbit.formats.c.interface import fingerprint, float_inputs, outputs_of
from lowbit.formats.c.roundings import ROUNDINGS
from lowbit.formats.c.writer import MARK
from lowbit.formats.registry import not_this_network
from lowbit.integer.graph import FloatType, Graph
from lowbit.integer.result import Result

COMPILERS = ("cc", "gcc", "clang")
FLAGS = ("-std=c99", "-Wall", "-Wextra", "-Wconversion", "-Werror", "-O2")
_TIMEOUT = 600  # seconds, of the compiler


def compiler() -> str:
    """The C compiler: $CC, or the first of `COMPILERS` that there is. Raises LowbitError where there is none."""
    names = [os.environ["CC"]] if os.environ.get("CC") else COMPILERS
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        raise LowbitError(
            f"an exported C file is proved by compiling and running it, and there is no C compiler ({', '.join(names)}): "
            "install one (apt install gcc libc6-dev; on macOS xcode-select --install), or set CC"
        )
    return found


class CRunner:
    """A C file that was compiled for this machine.

    Args:
        path: net.c; net.h lies beside it.
        graph: what it was written from.
        command: the compiler, by default this machine's.
        flags: for it.

    Attributes:
        rounding: the name of the one that the file is written in.

    Raises:
        LowbitError: no compiler, a file of another network, or one that does not compile without a warning.
    """

    def __init__(
        self, path: Path, graph: Graph, command: Sequence[str] | None = None, flags: Sequence[str] = FLAGS
    ) -> None:
        self.path, self.graph = path, graph
        self.folder = Path(tempfile.mkdtemp(prefix="lowbit-c-"))
        weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
        name, self.rounding = checked_name(path, graph)
        write_harness(self.folder / "harness.c", graph, name, path.with_suffix(".h").name)
        self.program = self.folder / "network"
        options = [*(command or [compiler()]), *flags, f"-D{name.upper()}_TRACE", f"-I{path.parent.absolute()}"]
        sources = ["-x", "c", str(path.absolute()), str(self.folder / "harness.c")]
        compile_files(path, [*options, *sources, "-o", str(self.program)])

    def command(self) -> list[str]:
        """What runs the program."""
        return [str(self.program)]

    def __call__(self, inputs: Mapping[str, Tensor]) -> Result:
        """Every layer's codes (int16) and the outputs as float32. Raises LowbitError where the program fails."""
        samples = np.concatenate([x.flatten(1).numpy() for x in inputs.values()], 1)
        samples.astype("<f4").tofile(self.folder / "inputs.bin")
        done = subprocess.run(self.command(), cwd=self.folder, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if done.returncode:
            raise LowbitError(
                f"{self.path}: the compiled network fails with status {done.returncode}: {done.stderr:.1000}"
            )
        return read_results(self.path, self.graph, self.folder / "codes.bin", len(samples))


def compile_files(path: Path, command: Sequence[str]) -> None:
    """Run a compiler. Raises LowbitError with what it says."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise LowbitError(f"{path}: {Path(command[0]).name} does not compile it:\n{done.stderr:.2000}")


def checked_name(path: Path, graph: Graph) -> tuple[str, str]:
    """With what the file's functions begin, and the name of its rounding. Raises LowbitError for a file that is not of this network, or without a header."""
    with open(path, "rb") as file:
        first = file.readline(300)
    found = re.match(re.escape(MARK) + rb" (\w+) ([0-9a-f]{8})(?: ([\w-]+))?:", first)
    if found is None:
        raise not_this_network(path, "its first line does not name a network")
    if found[2].decode() != fingerprint(graph):
        raise not_this_network(path, "its layers are others")
    if not path.with_suffix(".h").is_file():
        raise LowbitError(f"{path}: its header {path.with_suffix('.h').name} is not beside it; export it again")
    rounding = (found[3] or b"shift").decode()
    if rounding not in ROUNDINGS:
        raise LowbitError(f"{path}: it says that it rounds as {rounding!r}; there are {', '.join(ROUNDINGS)}")
    return found[1].decode(), rounding


def write_harness(path: Path, graph: Graph, name: str, header: str) -> None:
    """The program's main: it runs the network over the samples of a file, and writes what every layer gives."""
    given = {variable: math.prod(graph.inputs[key]) for key, variable in float_inputs(graph).items()}
    got = {port.variable: port.count for port in outputs_of(graph)}
    values = {
        "header": header,
        "name": name,
        "buffers": "\n".join(f"static float {variable}[{count}];" for variable, count in (given | got).items()),
        "reads": "\n".join(
            f"        if (fread({variable}, sizeof(float), {count}, inputs) != {count})\n            break;"
            for variable, count in given.items()
        ),
        "arguments": ", ".join(given | got),
        "writes": "\n".join(f"        put({variable}, sizeof {variable});" for variable in got),
    }
    path.write_text(filled("harness.c", values))


def filled(name: str, values: Mapping[str, str]) -> str:
    """A C file of this package with the values in place of @key."""
    text = resources.files("lowbit.formats.c").joinpath("kernels", name).read_text(encoding="utf-8")
    for key, value in values.items():
        text = text.replace(f"@{key}", value)
    return text


def read_results(path: Path, graph: Graph, file: Path, samples: int) -> Result:
    """What the program wrote. Raises LowbitError where it is not as much as the network gives."""
    counts = [math.prod(node.shape_of()) for node in graph.nodes]
    floats = [port.count for port in outputs_of(graph)]
    size = 2 * sum(counts) + 4 * sum(floats)
    content = np.fromfile(file, np.uint8)
    if len(content) != size * samples:
        raise not_this_network(path, f"it gives {len(content)} bytes for {samples} samples, not {size} each")
    content = content.reshape(samples, size)
    codes, outputs, at = {}, {}, 0
    for node, count in zip(graph.nodes, counts):
        if not isinstance(node.type, FloatType):
            values = np.ascontiguousarray(content[:, at : at + 2 * count]).view("<i2").astype(np.int16)
            codes[node.name] = torch.from_numpy(values).reshape(samples, *node.shape_of())
        at += 2 * count
    for port in outputs_of(graph):
        values = np.ascontiguousarray(content[:, at : at + 4 * port.count]).view("<f4").astype(np.float32)
        outputs[port.node.name] = torch.from_numpy(values).reshape(samples, *port.node.shape_of())
        at += 4 * port.count
    return Result(codes, outputs)
