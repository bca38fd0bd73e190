"""Against the field: the same network and batch with other libraries' learned quantizers, in one process, in turn.

For each: step time and saved memory against full precision, eager and compiled, and whether its value and gradients are the papers'. The
peers live in an environment of their own, .benchmarks-venv, which the command makes at its first run: it downloads packages then.
A peer that can't be installed, run or compiled is in the table with the reason.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import logging
import os
import subprocess
import sys
import venv
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks import harness, memory
from benchmarks.gradients import verdicts
from benchmarks.peer_quantizers import PEERS
from benchmarks.result import Bars, Table
from benchmarks.workload import FULL_PRECISION, TrainingStep, float_network, image_size, images, network

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = ROOT / ".benchmarks-venv"
# numpy for the oracle, matplotlib for the plots, ninja for NNCF's C++ extension.
NEEDED = ("numpy>=1.26", "matplotlib>=3.8", "ninja")
PACKAGES = ("brevitas==0.13.4", "torchao==0.18.0", "nncf==3.4.0")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--network", default="cifar-resnet20")
    parser.add_argument("--batch", type=int, help="default: 128, with --quick 32")
    parser.add_argument("--bits", type=int, default=2)
    parser.add_argument("--only", nargs="+", choices=list(PEERS), metavar="PEER", help=f"of {', '.join(PEERS)}")
    parser.add_argument("--modes", nargs="+", default=["compiled", "eager"], choices=["compiled", "eager"])
    parser.add_argument("--repetitions", type=int, help="default: 20, with --quick 5")


def run(options: argparse.Namespace) -> Iterator[Table]:
    """The tables; in the peers' own environment, made first where it is not there."""
    if Path(sys.prefix).resolve() != ENVIRONMENT.resolve():
        set_up()
        sys.exit(run_there(options))
    yield gradients_table(options)
    yield steps_table(options)


def set_up() -> None:
    """Make the environment, unless it is there with these packages. A peer that pip can't install is left out."""
    stamp = ENVIRONMENT / "packages.txt"
    constraints = ROOT / "constraints.txt"
    wanted = "\n".join([*NEEDED, *PACKAGES, constraints.read_text()])
    if stamp.is_file() and stamp.read_text() == wanted:
        return
    print(f"making {ENVIRONMENT}", flush=True)
    venv.create(ENVIRONMENT, with_pip=True, clear=True)
    python = str(ENVIRONMENT / "bin" / "python")
    pip = [python, "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, "--upgrade", "pip>=24"], check=True)
    subprocess.run([python, str(ROOT / "tools" / "install_torch.py")], check=True)
    subprocess.run([*pip, "-c", str(constraints), *NEEDED], check=True)
    for package in PACKAGES:
        if subprocess.run([*pip, "-c", str(constraints), package], check=False).returncode != 0:
            print(f"{package} could not be installed; pip's message is above")
    stamp.write_text(wanted)


def run_there(options: argparse.Namespace) -> int:
    """The same command by the environment's Python; its exit status."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")]),
        # NNCF compiles an extension at its first use, and on a slow machine gives up after a minute.
        "TORCH_EXTENSIONS_DIR": str(ENVIRONMENT / "extensions"),
        "NNCF_EXTENSION_LOAD_TIMEOUT": "0",
        "NNCF_CI": "1",  # no telemetry
        "PATH": os.pathsep.join([str(ENVIRONMENT / "bin"), os.environ.get("PATH", "")]),
    }
    python = str(ENVIRONMENT / "bin" / "python")
    command = [python, "-m", "benchmarks", *options.arguments]
    return subprocess.run(command, env=environment, check=False).returncode


def gradients_table(options: argparse.Namespace) -> Table:
    """Every peer's value and gradients against the papers', per tensor and per channel, without and with an offset."""
    rows = []
    for name in options.only or PEERS:
        for channel in (False, True):
            for offset in (False, True):
                label = f"{name}: per {'channel' if channel else 'tensor'}{', offset' if offset else ''}"
                found = dict.fromkeys(("value", "x", "step", "offset"), "-")
                note = ""
                try:
                    found = verdicts(PEERS[name].alone, channel=channel, offset=offset)
                except Exception as error:  # whatever a peer raises is what the table is to say
                    note = reason(error)
                rows.append({"quantizer": label, **found, "note": note})
    subject = "Gradients against the papers' (LSQ, LSQ+), by the float64 oracle of the test suite, 3 bits"
    return Table("peers-gradients", subject, with_versions(), rows)


def contestants(options: argparse.Namespace, x: Tensor) -> dict[str, Callable[[], nn.Module]]:
    """What makes each contestant's network."""
    model = float_network(options.network, "cpu")

    def ours(method: str) -> nn.Module:
        return network(options.network, method, options.bits, x)

    made: dict[str, Callable[[], nn.Module]] = {FULL_PRECISION: lambda: ours(FULL_PRECISION)}
    for name in options.only or PEERS:
        made[name] = lambda name=name: PEERS[name].network(model, ours("lsq"), x)
    return made


def steps_table(options: argparse.Namespace) -> Table:
    """Step time and saved memory of every contestant, eager and compiled."""
    batch = options.batch or (32 if options.quick else 128)
    size = image_size(options.network)
    x = images(batch, size, "cpu")
    torch._logging.set_logs(all=logging.ERROR)  # pages of what the compiler met; the table says the outcome
    torch._dynamo.config.recompile_limit = (
        64  # layers that break the graph are compiled one by one, each for its shapes
    )
    steps: dict[str, TrainingStep] = {}
    sizes: dict[str, dict[str, int]] = {}
    notes: dict[str, str] = {}
    for mode in options.modes:
        for name, make in contestants(options, x).items():
            label = f"{mode} {name}"
            try:
                steps[label], sizes[label], notes[label] = started(make, x, compiled=mode == "compiled")
            except Exception as error:  # whatever a peer raises is what the table is to say
                notes[label] = reason(error)
            print(f"{label}: {notes[label] or 'ready'}", flush=True)
    times = harness.interleave(steps, repetitions=options.repetitions or (5 if options.quick else 20))
    rows = []
    for label, note in notes.items():
        base = f"{label.split()[0]} {FULL_PRECISION}"
        found = dict.fromkeys(
            ("median ms", "ratio", "lower quartile", "upper quartile", "saved MB", "saved ratio"), "-"
        )
        if label in steps:
            found |= times[label].columns(times[base])
            saved = sizes[label]["saved"]
            found |= {"saved MB": f"{saved / 1e6:.2f}", "saved ratio": f"{saved / sizes[base]['saved']:.3f}"}
        rows.append({"step": label, **found, "note": note})
    subject = f"Training step: {options.network}, batch {batch}, {size}x{size}, W{options.bits}A{options.bits}"
    return Table("peers-step", subject, with_versions(), rows, Bars("ratio", "lower quartile", "upper quartile"))


def started(make: Callable[[], nn.Module], x: Tensor, *, compiled: bool) -> tuple[TrainingStep, dict[str, int], str]:
    """(a step that has run, its bytes, a note): in one graph if that can be compiled, else with graph breaks."""
    if not compiled:
        step = TrainingStep(make(), x, compiled=False)
        return step, memory.measure(step), ""
    try:
        step = TrainingStep(make(), x, compiled=True)
        return step, memory.measure(step), ""
    except NotImplementedError:
        raise
    except Exception as error:
        step = TrainingStep(make(), x, compiled=True, fullgraph=False)
        return step, memory.measure(step), f"not as one graph: {reason(error)}"


def reason(error: Exception) -> str:
    """The first line of what went wrong, short enough for a table."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    text = lines[0] if isinstance(error, NotImplementedError) else f"{type(error).__name__}: {lines[0]}"
    return text if len(text) <= 120 else f"{text[:117]}..."


def with_versions() -> str:
    """The machine, and which versions of the peers."""
    found = []
    for package in dict.fromkeys(package for peer in PEERS.values() for package in peer.packages):
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{package} not installed")
    return f"{harness.machine()}; {', '.join(found)}"
