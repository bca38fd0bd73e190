"""Write requirements/: every package of the environment of `make`, with the hashes of its files. Run by `make lock`.

common.txt     everything but torch and what only its CUDA build needs, for every Python and system (uv's universal resolution)
torch.txt      torch as PyPI has it, and for Linux NVIDIA's libraries
torch-cpu.txt  the CPU builds of torch and torchvision, as PyTorch's CPU index has them; where that cannot be reached, those
               that pip takes here, by name
tools.txt      what `make docs` and `make wheel` take, an environment of its own, without torch

The versions in constraints.txt are chosen by hand; all others are the newest that fit.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from install import LOCK, ROOT
from install_torch import CONSTRAINTS, CPU_INDEX, pinned, pip

EXTRAS = ("train", "stream", "export", "litert", "bench", "examples", "demo", "dev")
TOOLS = ("docs", "package")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
_CUDA = re.compile(r"(nvidia|cuda)-|(torch|triton)$")
_HEAD = "# Written by `make lock`, from pyproject.toml and constraints.txt; installed by tools/install.py.\n"


def compiled(*arguments: str, source: str | None = None) -> dict[str, str] | None:
    """uv's lines for a set of requirements on every system, by package; None where it cannot resolve them."""
    command = ["uv", "pip", "compile", "--quiet", "--no-config", "--universal", "--python-version", "3.11"]
    command += ["--generate-hashes", "--no-header", "--no-annotate"]
    answer = subprocess.run([*command, *arguments], input=source, stdout=subprocess.PIPE, text=True, check=False)
    return by_package(answer.stdout) if answer.returncode == 0 else None


def by_package(text: str) -> dict[str, str]:
    """The lines of a requirements file, by package; one may have several versions, each for some Pythons."""
    entries: dict[str, str] = {}
    for entry in re.split(r"(?m)^(?=[A-Za-z0-9])", text):
        if entry.strip():
            name = entry.split("==")[0]
            entries[name] = entries.get(name, "") + entry.rstrip() + "\n"
    return entries


def everything() -> dict[str, str]:
    """All packages of the environment of `make`, from PyPI; among them what builds lowbit's own."""
    extras = [argument for extra in EXTRAS for argument in ("--extra", extra)]
    with tempfile.TemporaryDirectory() as folder:
        build = Path(folder) / "build.txt"
        build.write_text("\n".join(PROJECT["build-system"]["requires"]) + "\n")
        entries = compiled(str(ROOT / "pyproject.toml"), str(build), *extras, "-c", str(CONSTRAINTS))
    if entries is None:
        raise SystemExit("uv cannot resolve the requirements; its message is above")
    return entries


def tools() -> dict[str, str]:
    """All packages of the environment of tools."""
    wanted = list(PROJECT["build-system"]["requires"])
    for extra in TOOLS:
        wanted += PROJECT["project"]["optional-dependencies"][extra]
    entries = compiled("-", source="\n".join(wanted))
    if entries is None:
        raise SystemExit("uv cannot resolve the requirements of the tools; its message is above")
    return entries


def cpu_builds() -> list[str]:
    """The lines of the CPU builds, with comments that say whose they are."""
    constraints = CONSTRAINTS.read_text()
    wanted = [pinned(name, constraints) for name in ("torch", "torchvision")]
    builds = "\n".join(f"{each}+cpu" for each in wanted)
    entries = compiled("--no-deps", "--default-index", CPU_INDEX, "-", source=builds)
    if entries is not None:
        return [f"# {CPU_INDEX}\n", *entries.values()]
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(pip("download", "--quiet", "--no-deps", "--dest", folder, *wanted), check=True)
        for file in sorted(Path(folder).iterdir()):
            if "+cpu" in file.name:
                name, version = file.name.split("-")[:2]
                lines += [f"# {file.name}\n", f"{name}=={version} \\\n    --hash=sha256:{digest(file)}\n"]
    return lines


def digest(file: Path) -> str:
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def main() -> int:
    entries = everything()
    files = {
        "common.txt": [entry for name, entry in entries.items() if not _CUDA.match(name)],
        "torch.txt": [entry for name, entry in entries.items() if _CUDA.match(name)],
        "torch-cpu.txt": cpu_builds(),
        "tools.txt": list(tools().values()),
    }
    LOCK.mkdir(exist_ok=True)
    for name, lines in files.items():
        (LOCK / name).write_text(_HEAD + "".join(lines))
    print(json.dumps({name: sum("==" in line for line in lines) for name, lines in files.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
