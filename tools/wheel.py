"""Build lowbit's wheel and source archive in dist/, check them, and try the wheel in a clean environment. Run by `make wheel`.

Run with the Python of the environment of tools (requirements/tools.txt), which has build, twine and check-wheel-contents. The wheel is
built from the source archive, as a package index's users would build it. It is then installed twice into an environment that
has nothing else: alone, where torch is all that it may need, and with its extras, where README's own code runs as it is printed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
import venv
from pathlib import Path

from install_torch import CONSTRAINTS, has_gpu, install_command, pinned

ROOT = CONSTRAINTS.parent
DIST = ROOT / "dist"
# What README's code needs, and the command line.
EXTRAS = "train,export,demo"
# Without the extras: everything of the core, on random data.
ALONE = """
import lowbit, torch
network = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
prepared = lowbit.prepare(network, weights=4, activations=4, integer_only=True)
lowbit.calibrate(prepared, [torch.randn(64, 8)])
prepared.train()(torch.randn(64, 8)).square().mean().backward()
integer = lowbit.to_integer(prepared.eval(), torch.randn(1, 8))
print("lowbit", lowbit.__version__, "with torch alone:", tuple(integer(torch.randn(2, 8)).shape))
"""
INSTALLED = """
assert "site-packages" in lowbit.__file__, lowbit.__file__
"""
README = """
import re, sys, torch
names = {}
for block in re.findall(r"^```python\\n(.*?)^```$", open(sys.argv[1]).read(), flags=re.DOTALL | re.MULTILINE):
    exec(compile(block, "README.md", "exec"), names)
assert names["report"].ok and float(names["accuracy"]) > 0.85
print("README's code:", f"{float(names['accuracy']):.3f} at 3 bits,", names["report"].compared, "codes compared, 0 differ")
"""


def run(*command: str | Path, **options: object) -> None:
    """A command that has to succeed; outside the clone it sees nothing of it."""
    print("+", *(each if len(str(each)) < 120 else "…" for each in command), flush=True)
    subprocess.run([str(each) for each in command], check=True, **options)  # type: ignore[call-overload]


def build() -> Path:
    """The wheel, made from the source archive; both checked."""
    shutil.rmtree(DIST, ignore_errors=True)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", DIST, ROOT)
    run(sys.executable, "-m", "twine", "check", "--strict", *DIST.iterdir())
    (wheel,) = DIST.glob("*.whl")
    run(Path(sys.executable).parent / "check-wheel-contents", wheel)
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"].get("version")
    assert version is None, "the version stands in src/lowbit/__init__.py alone"
    return wheel


def smoke(wheel: Path, folder: Path) -> None:
    """Install the wheel into a clean environment and use it there."""
    python = folder / "env" / "bin" / "python"
    venv.create(folder / "env", with_pip=True)
    constraints = CONSTRAINTS.read_text()
    torch = [pinned(name, constraints) for name in ("torch", "torchvision")]
    command = install_command(has_gpu(), *torch)  # which asks the pip of this environment, of the same Python
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    options = {"cwd": folder, "env": clean}
    run(python, *command[1:], "--quiet", **options)
    run(python, "-m", "pip", "install", "--quiet", wheel, "-c", CONSTRAINTS, **options)
    run(python, "-I", "-c", ALONE + INSTALLED, **options)
    run(python, "-m", "pip", "install", "--quiet", f"{wheel}[{EXTRAS}]", "-c", CONSTRAINTS, **options)
    run(python, "-m", "pip", "check", **options)
    run(python, "-I", "-c", README, ROOT / "README.md", **options)
    command_line = python.parent / "lowbit"
    run(command_line, "--version", **options)
    run(command_line, "train", "digits-cnn-fp", "--epochs", "1", "--output", folder / "run", **options)
    run(command_line, "eval", folder / "run", **options)


def main() -> int:
    wheel = build()
    with tempfile.TemporaryDirectory() as folder:
        smoke(wheel, Path(folder))
    print(f"{wheel.relative_to(ROOT)} is built, checked and tried")
    return 0


if __name__ == "__main__":
    sys.exit(main())
