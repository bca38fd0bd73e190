"""Install torch as constraints.txt pins it: the CPU build where there is no NVIDIA GPU.

Run with an environment's own Python, before anything else is installed; tools/install.py does it with the lock. On Linux a plain
`pip install torch` brings gigabytes of CUDA libraries, unless the machine's pip is configured otherwise; so pip is asked
first what a plain install would bring, and PyTorch's CPU index is used only where that would be CUDA.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

CONSTRAINTS = Path(__file__).resolve().parent.parent / "constraints.txt"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"


def pinned(name: str, constraints: str) -> str:
    """The line `name==version` of a constraints file."""
    for line in constraints.splitlines():
        if line.strip().startswith(f"{name}=="):
            return line.strip()
    raise SystemExit(f"{CONSTRAINTS}: has no line {name}==VERSION, which the set-up installs")


def has_gpu() -> bool:
    """Whether there is an NVIDIA GPU with a working driver."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return False
    listing = subprocess.run([tool, "-L"], capture_output=True, text=True, check=False)
    return listing.returncode == 0 and "GPU" in listing.stdout


def brings_cuda(report: dict) -> bool:
    """Whether an installation report of pip has NVIDIA's libraries in it."""
    names = [item["metadata"]["name"].lower() for item in report["install"]]
    return any(name.startswith(("nvidia-", "cuda-")) for name in names)


def pip(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "pip", *arguments]


def would_install(*arguments: str) -> dict:
    """pip's report of what `pip install` with these arguments would bring."""
    dry = pip("install", "--dry-run", "--ignore-installed", "--quiet", "--report", "-", *arguments)
    answer = subprocess.run(dry, stdout=subprocess.PIPE, text=True, check=False)
    if answer.returncode != 0:
        raise SystemExit(f"pip cannot find {arguments[0]} for this Python and machine; its message is above")
    return json.loads(answer.stdout)


def install_command(gpu: bool, torch: str, torchvision: str) -> Sequence[str]:
    """The command that installs the right build."""
    plain = pip("install", torch)
    if gpu:
        return plain
    if not brings_cuda(would_install(torch)):
        return plain
    # torchvision of the same build. What both depend on comes with the rest of the set-up.
    return pip("install", "--no-deps", "--index-url", CPU_INDEX, torch, torchvision)


def main() -> int:
    constraints = CONSTRAINTS.read_text()
    command = install_command(has_gpu(), pinned("torch", constraints), pinned("torchvision", constraints))
    print("+", *command[1:], flush=True)
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
