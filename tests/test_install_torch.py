"""Which build of torch the set-up installs."""

from __future__ import annotations

import json
import runpy
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def tool():
    return runpy.run_path(str(ROOT / "tools" / "install_torch.py"), run_name="tool")


def answering(tool, monkeypatch, *names: str, returncode: int = 0) -> list[list[str]]:
    """Let pip's dry run answer that it would install `names`; returns the commands that are run."""
    asked: list[list[str]] = []
    report = {"install": [{"metadata": {"name": name, "version": "1"}} for name in names]}

    def run(command, **_):
        asked.append(list(command))
        return subprocess.CompletedProcess(command, returncode, stdout=json.dumps(report))

    monkeypatch.setattr(tool["subprocess"], "run", run)
    return asked


def test_the_cpu_index_is_used_where_a_plain_install_brings_cuda(tool, monkeypatch):
    asked = answering(tool, monkeypatch, "torch", "nvidia-cublas-cu12", "sympy")
    command = tool["install_command"](False, "torch==2.13.0", "torchvision==0.28.0")
    assert tool["CPU_INDEX"] in command and command[-2:] == ["torch==2.13.0", "torchvision==0.28.0"]
    assert "--dry-run" in asked[0]


def test_a_plain_install_where_it_brings_the_cpu_build(tool, monkeypatch):
    answering(tool, monkeypatch, "torch", "sympy")
    command = tool["install_command"](False, "torch==2.13.0", "torchvision==0.28.0")
    assert command[-2:] == ["install", "torch==2.13.0"]


def test_with_a_gpu_nothing_is_asked(tool, monkeypatch):
    asked = answering(tool, monkeypatch, "torch", "nvidia-cublas-cu12")
    command = tool["install_command"](True, "torch==2.13.0", "torchvision==0.28.0")
    assert command[-2:] == ["install", "torch==2.13.0"] and asked == []


def test_a_version_that_pip_cannot_find_ends_the_set_up(tool, monkeypatch):
    answering(tool, monkeypatch, returncode=1)
    with pytest.raises(SystemExit, match=r"torch==9"):
        tool["install_command"](False, "torch==9", "torchvision==0.28.0")


def test_the_versions_come_from_the_constraints(tool):
    text = (ROOT / "constraints.txt").read_text()
    assert tool["pinned"]("torch", text).startswith("torch==")
    assert tool["pinned"]("torchvision", text).startswith("torchvision==")
    with pytest.raises(SystemExit, match="has no line torch==VERSION"):
        tool["pinned"]("torch", "torchvision==1\n")
