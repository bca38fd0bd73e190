"""Checkpoints: nested state without pickle, and a pair that is whole at every moment."""

from __future__ import annotations

import json
import math
import os
import shutil

import pytest
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import nn

from lowbit.errors import LowbitError
from lowbit.train.checkpoint import Checkpoints, pack, unpack


def equal(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return type(b) is dict and list(a) == list(b) and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    return type(a) is type(b) and a == b


def round_trip(state):
    tensors: dict[str, torch.Tensor] = {}
    return unpack(json.loads(json.dumps(pack(state, tensors))), tensors)


def test_pack_keeps_types_keys_and_every_bit() -> None:
    state = {
        0: {"momentum": torch.randn(3, 4), "step": torch.tensor(7.0)},
        "betas": (0.9, 0.999),
        "list": [1, None, True, "x", {"tensor": "no tensor", "dict": []}],
        "big": 2**60 + 1,
        "small": math.nextafter(0.1, 1),
        "infinite": -math.inf,
        "empty": {},
    }
    assert equal(round_trip(state), state)


@pytest.mark.parametrize("make", [lambda p: torch.optim.Adam(p), lambda p: torch.optim.SGD(p, 0.1, momentum=0.9)])
def test_an_optimizer_continues_from_packed_state(make) -> None:
    def train(model, optimizer):
        optimizer.zero_grad()
        model(torch.ones(2, 3)).square().sum().backward()
        optimizer.step()

    torch.manual_seed(0)
    model, other = nn.Linear(3, 2), nn.Linear(3, 2)
    optimizer, continued = make(model.parameters()), make(other.parameters())
    train(model, optimizer)
    other.load_state_dict(model.state_dict())
    continued.load_state_dict(round_trip(optimizer.state_dict()))
    train(model, optimizer)
    train(other, continued)
    assert torch.equal(model.weight, other.weight)


def test_what_is_neither_tensor_nor_plain_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match=r"state\.a\[?\.?0"):
        pack({"a": [object()]}, {})


@pytest.fixture
def checkpoints(tmp_path) -> Checkpoints:
    return Checkpoints(tmp_path)


def save(checkpoints: Checkpoints, epoch: int, *, best: bool) -> None:
    shared = torch.full((2, 2), float(epoch))
    checkpoints.save(f"epoch-{epoch}", {"a": shared, "b": shared.T}, {"epoch": epoch, "x": shared}, best=best)


def weight(checkpoints: Checkpoints, which: str) -> float:
    from safetensors.torch import load_file

    return load_file(checkpoints.weights(which))["b"][0, 0].item()


def test_last_and_best_and_nothing_else_is_kept(checkpoints: Checkpoints) -> None:
    for epoch, best in ((1, True), (2, True), (3, False), (4, False)):
        save(checkpoints, epoch, best=best)
    assert weight(checkpoints, "last") == 4 and weight(checkpoints, "best") == 2
    state = checkpoints.training_state()
    assert state["epoch"] == 4 and torch.equal(state["x"], torch.full((2, 2), 4.0))
    assert sorted(p.name for p in checkpoints.folder.iterdir()) == ["checkpoints.json", "epoch-2", "epoch-4"]


@pytest.mark.parametrize("failing_replace", [1, 2], ids=["folder", "pointer"])
def test_a_save_that_fails_leaves_the_old_pair(checkpoints: Checkpoints, monkeypatch, failing_replace: int) -> None:
    save(checkpoints, 1, best=True)
    calls = 0

    def replace(source, target, real=os.replace):
        nonlocal calls
        calls += 1
        if calls == failing_replace:
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        save(checkpoints, 2, best=True)
    assert weight(checkpoints, "last") == weight(checkpoints, "best") == 1
    assert checkpoints.training_state()["epoch"] == 1
    monkeypatch.undo()
    save(checkpoints, 2, best=True)
    assert weight(checkpoints, "last") == 2
    assert sorted(p.name for p in checkpoints.folder.iterdir()) == ["checkpoints.json", "epoch-2"]


def test_a_copy_that_someone_keeps_stays(checkpoints: Checkpoints) -> None:
    save(checkpoints, 1, best=True)
    shutil.copytree(checkpoints.folder / "epoch-1", checkpoints.folder / "epoch-1-kept")
    save(checkpoints, 2, best=True)
    assert sorted(p.name for p in checkpoints.folder.iterdir()) == ["checkpoints.json", "epoch-1-kept", "epoch-2"]


def test_a_full_disk_keeps_no_half_checkpoint(checkpoints: Checkpoints, monkeypatch) -> None:
    save(checkpoints, 1, best=True)

    def half(tensors, path, **_):
        path.write_bytes(b"half")
        raise SafetensorError("No space left on device")

    with monkeypatch.context() as patch, pytest.raises(SafetensorError):
        patch.setattr(safetensors.torch, "save_file", half)
        save(checkpoints, 2, best=True)
    assert sorted(p.name for p in checkpoints.folder.iterdir()) == ["checkpoints.json", "epoch-1"]


def test_what_a_killed_process_left_is_removed(checkpoints: Checkpoints) -> None:
    save(checkpoints, 1, best=True)
    (checkpoints.folder / ".checkpoints.lowbit-a1b2c3d4.json").touch()
    for name in ("epoch-2.tmp", "epoch-2", "epoch-3.tmp"):
        (checkpoints.folder / name).mkdir()
        (checkpoints.folder / name / "model.safetensors").write_bytes(b"half")
    save(checkpoints, 2, best=True)
    assert weight(checkpoints, "last") == 2
    assert sorted(p.name for p in checkpoints.folder.iterdir()) == ["checkpoints.json", "epoch-2"]


def test_no_checkpoint_is_a_clear_error(checkpoints: Checkpoints) -> None:
    assert not checkpoints.exists
    with pytest.raises(LowbitError, match="no checkpoint yet"):
        checkpoints.weights("best")


def test_a_broken_checkpoint_is_a_clear_error(checkpoints: Checkpoints) -> None:
    save(checkpoints, 1, best=True)
    (checkpoints.folder / "epoch-1" / "training.safetensors").write_bytes(b"broken")
    with pytest.raises(LowbitError, match="broken checkpoint"):
        checkpoints.training_state()
