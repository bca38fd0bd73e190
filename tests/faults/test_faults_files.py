"""Kills, full disks and paths that are no files: LowbitError and exit status 2, and nothing left behind."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import lowbit
from lowbit import formats, train
from lowbit.cli.main import main
from lowbit.errors import LowbitError
from lowbit.files import atomic_write
from lowbit.formats import json as json_format
from lowbit.integer import file
from lowbit.integer.network import IntegerNetwork
from lowbit.recipes import get_recipe
from tests.integer_graphs import resnet_like


@pytest.fixture(scope="module")
def network():
    return IntegerNetwork(resnet_like(0).graph())


@pytest.fixture(scope="module")
def trained_run(tmp_path_factory):
    pytest.importorskip("sklearn")
    config = get_recipe("digits-cnn")(weights=4, activations=4)
    folder = tmp_path_factory.mktemp("runs") / "run"
    train.run(
        replace(
            config,
            model=replace(config.model, from_scratch=True),
            quantization=replace(config.quantization, integer_only=True),
            epochs=1, compile=False, output=str(folder),
        )
    )  # fmt: skip
    return folder


def no_file(kind: str, folder: Path) -> Path:
    """Something at a path that is not a file."""
    path = folder / "m.onnx"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(str(path))
    elif kind == "link":
        (folder / "elsewhere").write_text("mine")
        path.symlink_to(folder / "elsewhere")
    elif kind == "link to nothing":
        path.symlink_to(folder / "nothing")
    else:
        return Path("/dev/null" if kind == "device" else "/dev/zero")
    return path


KINDS = ("folder", "pipe", "socket", "link", "link to nothing", "device")


@pytest.mark.parametrize("kind", KINDS)
def test_only_files_are_replaced(kind, network, tmp_path):
    path = no_file(kind, tmp_path)
    before = sorted(tmp_path.iterdir()), os.lstat(path)
    for write in (lambda: lowbit.export(network, path), lambda: network.save(path)):
        with pytest.raises(LowbitError, match=f"is a {kind.split()[0]}; give the name of a file"):
            write()
    assert sorted(tmp_path.iterdir()) == before[0]
    after = os.lstat(path)
    assert (after.st_mode, after.st_ino) == (before[1].st_mode, before[1].st_ino)


@pytest.mark.parametrize("kind", ["folder", "pipe", "socket", "link to nothing", "device", "zeros"])
def test_only_files_are_read_and_nothing_is_waited_for(kind, network, tmp_path, capsys):
    path, began = no_file(kind, tmp_path), time.monotonic()
    for read in (
        lambda: formats.open_file(path, network.graph),
        lambda: IntegerNetwork.load(path),
        lambda: file.sizes(path),
        lambda: json_format.load(path),
        lambda: lowbit.verify(network, path, [torch.zeros(1, 3, 12, 12)]),
    ):
        with pytest.raises(LowbitError, match="cannot be read"):
            read()
    assert main(["verify", str(tmp_path), str(path)]) == 2
    assert "cannot be read" in capsys.readouterr().err  # before the run is looked for
    assert time.monotonic() - began < 5


def test_a_link_to_a_file_is_read(network, tmp_path):
    network.save(tmp_path / "m")
    (tmp_path / "link").symlink_to(tmp_path / "m")
    IntegerNetwork.load(tmp_path / "link")


@pytest.mark.parametrize("name", ["x" * 300, "x" * 5000, "x/" * 3000 + "x", "a\0b", "é" * 200])
def test_names_that_no_system_takes(name, network, tmp_path):
    path = os.path.join(tmp_path, name)
    for act in (lambda: lowbit.export(network, path), lambda: network.save(path), lambda: IntegerNetwork.load(path)):
        with pytest.raises(LowbitError, match=r"cannot be (written|read)") as error:
            act()
        assert len(str(error.value)) < 300 and str(error.value).isprintable()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name", ["x" * 250 + ".onnx", "é" * 125, "." + "y" * 254, "x." + "y" * 253, ".lowbit-abcdefgh"]
)
def test_the_longest_names_that_the_system_takes(name, network, tmp_path):
    network.save(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    IntegerNetwork.load(tmp_path / name)


LIMITED = """
import resource, sys
from tests.integer_graphs import resnet_like
import lowbit
from lowbit.errors import LowbitError
from lowbit.integer.network import IntegerNetwork
network = IntegerNetwork(resnet_like(0).graph())
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
for format in ("onnx", "onnx-packed", "qonnx", "lowbit", "json"):
    try:
        lowbit.export(network, sys.argv[1], format)
    except LowbitError as error:
        assert "cannot be written" in str(error), error
    else:
        raise AssertionError(format)
"""


def test_a_disk_that_takes_no_more(network, tmp_path):
    """A file-size limit stops the writing in the middle, as a full disk does."""
    (tmp_path / "m").write_text("the old one")
    subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path / "m")], check=True)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("m", "the old one")]


@pytest.mark.parametrize("step", ["mkstemp", "write", "fsync", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_full_disk_at_every_step(step, code, network, tmp_path, monkeypatch):
    def full(*arguments, **settings):
        raise OSError(code, os.strerror(code))

    target = {"mkstemp": "tempfile.mkstemp", "write": "pathlib.Path.write_bytes"}.get(step, f"os.{step}")
    monkeypatch.setattr(target, full)
    with pytest.raises(LowbitError, match=f"m cannot be written: {os.strerror(code)}"):
        network.save(tmp_path / "m")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_may_not_be_written(network):
    if not Path("/proc/self").is_dir():
        pytest.skip("there is no /proc, where not even root can write")
    with pytest.raises(LowbitError, match=r"cannot be written|there is no folder"):
        network.save("/proc/self/m.safetensors")
    assert main(["export", "/proc/self", "--file", "/proc/self/no/m.onnx"]) == 2


def test_errors_of_what_is_read_meanwhile_stay_what_they_are(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing"), atomic_write(tmp_path / "m"):
        open(tmp_path / "missing")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "versions.json",
        "metrics.jsonl",
        "checkpoints/checkpoints.json",
        "checkpoints/m.onnx",
        "tensorboard/m",
    ],
)
def test_a_runs_own_files_are_not_replaced(name, trained_run, capsys, monkeypatch):
    before = {path: path.read_bytes() for path in trained_run.rglob("*") if path.is_file()}
    monkeypatch.chdir(trained_run)
    for path in (trained_run / name, Path(name), trained_run / "x" / ".." / name):
        (trained_run / "x").mkdir(exist_ok=True)
        assert main(["export", str(trained_run), "--file", str(path)]) == 2
        assert "belongs to the run" in capsys.readouterr().err
    (trained_run / "x").rmdir()
    assert {path: path.read_bytes() for path in trained_run.rglob("*") if path.is_file()} == before


# Stands in the middle of the write, with the temporary file begun, until it is told to go on.
WAITS = """
import sys, time
from pathlib import Path
import lowbit.formats.onnx.runner as runner
call = runner.OnnxRunner.__call__
def slow(self, inputs):
    Path(sys.argv[1]).touch()
    time.sleep(60)
runner.OnnxRunner.__call__ = slow
from lowbit.cli.main import main
sys.exit(main(sys.argv[2:]))
"""


def begun(run: Path, folder: Path) -> subprocess.Popen:
    """An export from the command line that has begun to write folder/m.onnx."""
    sign = folder.parent / f"{folder.name}-begun"
    process = subprocess.Popen(
        [sys.executable, "-c", WAITS, str(sign), "export", str(run), "--file", str(folder / "m.onnx"), "--images", "4"],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background ignores it otherwise
    )
    deadline = time.monotonic() + 120
    while not sign.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert sign.exists(), process.communicate()
    sign.unlink()
    return process


def stopped(process: subprocess.Popen, by: signal.Signals) -> bool:
    """Whether a process ends as it should when it gets a signal."""
    process.send_signal(by)
    _, said = process.communicate(timeout=60)
    return (process.returncode, said.splitlines()[-1]) == (130, "lowbit: stopped")


def test_what_a_killed_export_left_is_removed_by_the_next_write(trained_run, network, tmp_path):
    """And nothing of one that lives, which is stopped afterwards and leaves nothing either."""
    folder = tmp_path / "out"
    folder.mkdir()
    living, killed = begun(trained_run, folder), begun(trained_run, folder)
    try:
        assert len(list(folder.iterdir())) == 2
        killed.kill()
        killed.communicate(timeout=60)
        (folder / ".mine.lowbit-notes.txt").write_text("a name that is none of ours")
        (folder / ".m.lowbit-abcdefgh").symlink_to(folder / ".mine.lowbit-notes.txt")
        network.save(folder / "other.safetensors")
        # The living one's file stays, and so does what was never a temporary file.
        names = {path.name for path in folder.iterdir()}
        assert {"other.safetensors", ".mine.lowbit-notes.txt", ".m.lowbit-abcdefgh"} < names and len(names) == 4
    finally:
        ended = stopped(living, signal.SIGINT)
    assert ended
    assert {path.name for path in folder.iterdir()} == {
        "other.safetensors",
        ".mine.lowbit-notes.txt",
        ".m.lowbit-abcdefgh",
    }


def test_a_second_write_in_the_same_process_leaves_the_first_alone(tmp_path):
    with atomic_write(tmp_path / "a") as first:
        first.write_text("a")
        with atomic_write(tmp_path / "b") as second:
            second.write_text("b")
        assert first.exists()
        with atomic_write(first) as again:  # a writer within `export`
            assert again == first
    assert sorted((path.name, path.read_text()) for path in tmp_path.iterdir()) == [("a", "a"), ("b", "b")]
    with pytest.raises(ZeroDivisionError), atomic_write(tmp_path / "a") as first, atomic_write(first):
        first.write_text("half")
        1 / 0  # noqa: B018
    assert sorted((path.name, path.read_text()) for path in tmp_path.iterdir()) == [("a", "a"), ("b", "b")]


def test_a_disk_without_locks(network, tmp_path, monkeypatch):
    """Files are written all the same; leftovers stay, because nothing says whose they are."""
    (tmp_path / ".m.lowbit-abcdefgh").touch()
    monkeypatch.setattr("lowbit.files.fcntl", None)
    network.save(tmp_path / "m")
    assert {path.name for path in tmp_path.iterdir()} == {"m", ".m.lowbit-abcdefgh"}
    monkeypatch.undo()
    network.save(tmp_path / "m")
    assert {path.name for path in tmp_path.iterdir()} == {"m"}
