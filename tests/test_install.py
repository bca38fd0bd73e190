"""The lock of the environment: whole, and installed by hashes where they are known."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HASH = "sha256:" + "0" * 64


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    return runpy.run_path(str(ROOT / "tools" / "install.py"), run_name="tool")


def entries(file: str) -> dict[str, list[str]]:
    """The lines of a file of the lock, by package."""
    found: dict[str, list[str]] = {}
    for entry in re.split(r"(?m)^(?=[a-z])", (ROOT / "requirements" / file).read_text()):
        if re.match("[a-z]", entry):
            found.setdefault(entry.split("==")[0], []).append(entry)
    return found


@pytest.mark.parametrize("file", ["common.txt", "torch.txt", "torch-cpu.txt", "tools.txt"])
def test_every_package_has_one_version_and_hashes(file):
    for each in entries(file).values():
        for entry in each:
            assert re.match(r"[a-z0-9.-]+==[^\s;]+( ;[^\\]+)? \\\n", entry) and "--hash=sha256:" in entry, entry


def test_the_lock_has_all_that_the_project_asks_for():
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras, build = pyproject["project"]["optional-dependencies"], pyproject["build-system"]["requires"]
    tools = build + extras.pop("docs") + extras.pop("package")
    del extras["executorch"], extras["hls4ml"]
    asked = build + pyproject["project"]["dependencies"] + [each for extra in extras.values() for each in extra]

    def names(requirements: list[str]) -> set[str]:
        return {re.split(r"[\[><=]", each)[0].lower() for each in requirements}

    common, cuda, cpu = map(entries, ("common.txt", "torch.txt", "torch-cpu.txt"))
    assert names(asked) - {"torch"} <= common.keys()
    assert names(tools) <= entries("tools.txt").keys() and "torch" not in entries("tools.txt")
    assert "torch" in cuda.keys() & cpu.keys() and "torch" not in common
    assert not [name for name in common if name.startswith(("nvidia-", "cuda-", "triton"))]


def test_the_lock_has_the_versions_of_the_constraints():
    everything = entries("common.txt") | entries("torch.txt")
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if "==" in line:
            name, version = line.split("==")
            assert all(entry.startswith(f"{name}=={version} ") for entry in everything[name]), line


def answering(tool, monkeypatch, *files: str) -> list[tuple[str, ...]]:
    """Let pip's dry runs answer with torch's file and, where that is none of the CPU's, NVIDIA's libraries."""
    asked, answers = [], list(files)

    def would_install(*arguments):
        asked.append(arguments)
        file = answers.pop(0)
        names = ["torch", *([] if "cpu" in file or "macos" in file else ["nvidia-cublas"])]
        return {
            "install": [
                {"metadata": {"name": name}, "download_info": {"url": f"https://x/{file.replace('+', '%2B')}"}}
                for name in names
            ]
        }

    monkeypatch.setitem(tool["commands"].__globals__, "would_install", would_install)
    return asked


def files_of(commands: list[list[str]]) -> list[list[str]]:
    return [[Path(a).name for a in command if a.endswith(".txt")] for command in commands]


@pytest.mark.parametrize("gpu", [True, False])
def test_all_comes_from_pypi_by_hash_with_a_gpu_or_where_pypis_is_for_the_cpu(tool, monkeypatch, gpu):
    asked = answering(tool, monkeypatch, "torch-9-cp311-none-macosx.whl")
    commands = tool["commands"](gpu)
    assert len(asked) == (not gpu)
    assert files_of(commands) == [["common.txt", "torch.txt"], []]
    assert {"--require-hashes", "--no-deps"} <= set(commands[0])


CPU = "torch-9+cpu-cp311-cp311-linux.whl"
PYPI = "torch-9-cp311-cp311-manylinux.whl"


@pytest.mark.parametrize(
    ("answers", "comments", "index", "by_hash"),
    [
        ([CPU], [CPU], False, True),
        ([CPU], [], False, False),
        ([PYPI, CPU], ["INDEX"], True, True),
        ([PYPI, CPU], [CPU], True, True),
        ([PYPI, CPU], [], True, False),
    ],
    ids=[
        "a local one",
        "another local one",
        "the index",
        "one of the index",
        "none of the index",
    ],
)
def test_without_one_torch_is_the_cpu_build(tool, tmp_path, monkeypatch, capsys, answers, comments, index, by_hash):
    comments = [tool["CPU_INDEX"] if each == "INDEX" else each for each in comments]
    (tmp_path / "torch-cpu.txt").write_text(
        "".join(f"# {each}\n" for each in comments) + f"torch==9 \\\n    --hash={HASH}\n"
    )
    monkeypatch.setitem(tool["commands"].__globals__, "LOCK", tmp_path)
    asked = answering(tool, monkeypatch, *answers)
    commands = tool["commands"](False)
    assert len(asked) == len(answers) and (tool["CPU_INDEX"] in commands[0]) == index
    assert files_of(commands) == [["torch-cpu.txt"] if by_hash else [], ["common.txt"], []]
    assert ("--require-hashes" in commands[0]) == by_hash and "--require-hashes" in commands[1]
    assert ("has no hash of" in capsys.readouterr().out) != by_hash


def test_another_file_under_a_locked_name_is_refused(tmp_path):
    """What the lock is for; with a package that is made here."""
    from zipfile import ZipFile

    wheel = tmp_path / "thing-1-py3-none-any.whl"
    with ZipFile(wheel, "w") as archive:
        for name, text in {
            "METADATA": "Metadata-Version: 2.1\nName: thing\nVersion: 1\n",
            "WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            "RECORD": "",
        }.items():
            archive.writestr(f"thing-1.dist-info/{name}", text)
    (tmp_path / "lock.txt").write_text(f"thing==1 \\\n    --hash={HASH}\n")
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--require-hashes", "--dry-run", "--no-index"]
    command += ["--find-links", str(tmp_path), "-r", str(tmp_path / "lock.txt")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode != 0 and "DO NOT MATCH THE HASHES" in done.stderr
