"""Files of weights: what is damaged in them is found before it is trained on."""

from __future__ import annotations

import os
import random
import zipfile
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

import lowbit
from lowbit.errors import LowbitError
from lowbit.models import load_weights, save_weights, saved_about


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 10))


def saved(path: Path) -> dict[str, torch.Tensor]:
    """A trained network's tensors, written by torch or as foreign safetensors."""
    state = {name: value + 1 for name, value in network().state_dict().items()}
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save(state, path)
    return state


@pytest.mark.parametrize("kind", ["bit", "bytes", "truncated", "zeros"])
def test_a_damaged_file_of_torch_never_loads_with_other_weights(tmp_path: Path, kind: str) -> None:
    path, chooser, refused = tmp_path / "w.pt", random.Random(kind), 0
    expected = saved(path)
    data = path.read_bytes()
    for _ in range(60):
        damaged = bytearray(data)
        place = chooser.randrange(len(data))
        if kind == "bit":
            damaged[place] ^= 1 << chooser.randrange(8)
        elif kind == "bytes":
            for _ in range(chooser.randint(2, 64)):
                damaged[chooser.randrange(len(data))] = chooser.randrange(256)
        elif kind == "truncated":
            del damaged[place:]
        else:
            damaged[place : place + 512] = bytes(len(damaged[place : place + 512]))
        path.write_bytes(damaged)
        model = network()
        try:
            load_weights(model, path)
        except LowbitError as error:
            assert str(path) in str(error)
            refused += 1
        else:  # padding between the tensors, or dates
            assert all(value.equal(expected[name]) for name, value in model.state_dict().items())
    assert refused > 20


def test_the_damaged_part_is_named(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    expected = saved(path)
    with zipfile.ZipFile(path) as archive:
        name = max(archive.infolist(), key=lambda info: info.file_size).filename
    data = bytearray(path.read_bytes())
    place = data.index(expected["0.weight"].numpy().tobytes())
    data[place + 1] ^= 1  # of a mantissa: nothing else would tell
    path.write_bytes(data)
    with pytest.raises(LowbitError, match=f"the checksum of {name} does not fit"):
        load_weights(network(), path)


def test_the_format_of_old_versions_of_torch_still_loads(tmp_path: Path) -> None:
    state = network().state_dict()
    torch.save(state, tmp_path / "w.pt", _use_new_zipfile_serialization=False)
    load_weights(network(), tmp_path / "w.pt")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        (torch.float32, float("nan")),
        (torch.float32, -float("inf")),
        (torch.float64, 1e300),
        (torch.float16, float("inf")),
    ],
)
def test_values_that_are_not_finite_are_refused(tmp_path: Path, suffix: str, dtype: torch.dtype, value: float) -> None:
    """Also those that are not once they are float32."""
    path = tmp_path / f"w{suffix}"
    state = {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in network().state_dict().items()
    }
    state["1.running_var"][3] = value
    torch.save(state, path) if suffix == ".pt" else safetensors.torch.save_file(state, path)
    model = network()
    with pytest.raises(LowbitError, match=r"1\.running_var holds NaN or infinity"):
        load_weights(model, path)
    assert model[1].running_var.eq(1).all()


def test_infinity_where_the_network_itself_has_it(tmp_path: Path) -> None:
    """A mask of attention, say."""
    model = network()
    model.register_buffer("mask", torch.tensor([0.0, -float("inf")]))
    safetensors.torch.save_file(model.state_dict(), tmp_path / "w.safetensors")
    load_weights(model, tmp_path / "w.safetensors")


def test_what_lowbit_writes_has_a_checksum_and_says_what_it_is_of(tmp_path: Path) -> None:
    path, state = tmp_path / "w.safetensors", network().state_dict()
    save_weights(state, path, {"model": "a network"})
    assert saved_about(path) == {"model": "a network"}
    load_weights(network(), path)
    data = bytearray(path.read_bytes())
    place = data.index(state["0.weight"].numpy().tobytes())
    data[place] ^= 1
    path.write_bytes(data)
    with pytest.raises(LowbitError, match="the checksum does not fit"):
        load_weights(network(), path)
    data[place] ^= 1
    data[data.index(b"a network")] = ord("A")
    path.write_bytes(data)
    with pytest.raises(LowbitError, match="the checksum does not fit"):
        load_weights(network(), path)


@pytest.mark.parametrize(
    ("name", "message"),
    [("pipe.pt", "it is a pipe"), ("folder.pt", "it is a folder"), ("x" * 300 + ".pt", "File name too long"), ("no.pt", "does not exist")],
)  # fmt: skip
def test_what_is_no_file_is_not_opened(tmp_path: Path, name: str, message: str) -> None:
    os.mkfifo(tmp_path / "pipe.pt")
    (tmp_path / "folder.pt").mkdir()
    with pytest.raises(LowbitError, match=message):
        load_weights(network(), tmp_path / name)


@pytest.mark.parametrize("scales", ["free", "power-of-two"])
def test_a_network_with_units_of_steps_is_loaded_into_one_without(scales, tmp_path):
    """A quantizer has a unit for its step only once it knows that the step is small."""
    torch.manual_seed(0)
    network, x = (
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(2, 2, 1)),
        torch.rand(8, 1, 6, 6),
    )
    trained, fresh, other = (lowbit.prepare(network, integer_only=True, scales=scales) for _ in range(3))
    lowbit.calibrate(trained, [x])
    save_weights(trained.state_dict(), tmp_path / "w.safetensors")
    assert any(name.endswith("step_unit") for name in trained.state_dict())
    lowbit.calibrate(other, [1000 * x])  # whose steps have no units, or others
    for target in (fresh, other):
        load_weights(target, tmp_path / "w.safetensors")
        assert torch.equal(target.eval()(x), trained.eval()(x))
