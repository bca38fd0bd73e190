"""Install the environment of `make`: the packages that requirements/ names, each file by its hash, and lowbit itself.

Run with the environment's own Python. torch is the CPU build where there is no NVIDIA GPU (see install_torch.py). Where
the lock has no hash of the CPU build that this machine would take, torch alone is installed by its version, and that is said.
"""

from __future__ import annotations

import subprocess
import sys

from install_torch import CONSTRAINTS, CPU_INDEX, brings_cuda, has_gpu, pinned, pip, would_install

ROOT = CONSTRAINTS.parent
LOCK = ROOT / "requirements"


def locked(*files: str, index: str | None = None) -> list[str]:
    """The command that installs the packages of files of the lock, and no others."""
    options = [] if index is None else ["--index-url", index]
    names = [argument for file in files for argument in ("-r", str(LOCK / file))]
    return pip("install", "--quiet", "--no-deps", "--require-hashes", *options, *names)


def knows(file: str, lock: str, index: str | None) -> bool:
    """Whether the lock of CPU builds has the hash of one: of all that the index has, or of those that it names."""
    comments = {line.removeprefix("# ") for line in lock.splitlines() if line.startswith("# ")}
    return file in comments or (index is not None and index in comments)


def commands(gpu: bool) -> list[list[str]]:
    """The commands that install everything, in order."""
    own = pip("install", "--quiet", "--no-deps", "--no-build-isolation", "-e", str(ROOT))
    from_pypi = [locked("common.txt", "torch.txt"), own]
    if gpu:
        return from_pypi
    constraints = CONSTRAINTS.read_text()
    torch, torchvision = pinned("torch", constraints), pinned("torchvision", constraints)
    index, report = None, would_install(torch)
    if brings_cuda(report):
        index, report = CPU_INDEX, would_install(torch, "--no-deps", "--index-url", CPU_INDEX)
    [entry] = [entry for entry in report["install"] if entry["metadata"]["name"] == "torch"]
    file = entry["download_info"]["url"].rsplit("/", 1)[1].replace("%2B", "+")
    if index is None and "+cpu" not in file:  # PyPI's own is for the CPU here
        return from_pypi
    if knows(file, (LOCK / "torch-cpu.txt").read_text(), index):
        return [locked("torch-cpu.txt", index=index), locked("common.txt"), own]
    print(f"requirements/torch-cpu.txt has no hash of {file}: torch is installed by its version", flush=True)
    from_index = [] if index is None else ["--index-url", index, torchvision]
    return [pip("install", "--quiet", "--no-deps", torch, *from_index), locked("common.txt"), own]


def main() -> int:
    for command in commands(has_gpu()):
        print("+", *command[1:], flush=True)
        status = subprocess.run(command, check=False).returncode
        if status != 0:
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main())
