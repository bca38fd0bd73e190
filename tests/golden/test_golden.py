"""What version 0.1.0 wrote and computed: this version reads it, computes the same codes and writes the same bytes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import lowbit
from tests.golden.record import NETWORKS, codes, digest, inputs, versions, written

FOLDER = Path(__file__).parent / "0.1.0"
GOLDEN = json.loads((FOLDER / "golden.json").read_text())
# What later versions write in another way, on purpose: ONNX looks tables up by GatherElements, twenty times as fast as by Gather, and
# changes grids and cuts off without a table.
CHANGED = json.loads((FOLDER.parent / "changed.json").read_text())
# What a format's bytes depend on beside our own code.
WRITTEN_BY = {
    "onnx": ("onnx", "protobuf"), "onnx-packed": ("onnx", "protobuf"), "qonnx": ("onnx", "protobuf"),
    "litert": ("ai-edge-litert", "flatbuffers"), "lowbit": (),
}  # fmt: skip


def stored(name: str) -> lowbit.IntegerNetwork:
    return lowbit.IntegerNetwork.load(FOLDER / f"{name}.safetensors")


@pytest.mark.parametrize("name", NETWORKS)
def test_a_file_of_0_1_0_loads_and_computes_the_same_codes(name):
    network, expected = stored(name), GOLDEN["networks"][name]
    assert codes(network, inputs(NETWORKS[name][1])) == expected["codes"]
    assert digest(network.summary().encode()) == expected["summary"]


@pytest.mark.parametrize("format", WRITTEN_BY)
@pytest.mark.parametrize("name", NETWORKS)
def test_every_format_has_the_bytes_of_0_1_0(name, format, tmp_path):
    mine = versions()
    others = [
        f"{library} {mine[library]}" for library in WRITTEN_BY[format] if mine[library] != GOLDEN["versions"][library]
    ]
    if others:
        pytest.skip(f"the bytes were written with other versions than {', '.join(others)}")
    found = written(stored(name), tmp_path / "file", [format])
    changed = CHANGED.get(name, {}).get(format)
    assert found[format] == (changed or GOLDEN["networks"][name]["formats"][format])


@pytest.mark.parametrize("name", [name for name, entry in GOLDEN["networks"].items() if "output" in entry])
def test_a_checkpoint_of_0_1_0_loads_and_computes_the_same(name):
    make, shape, options = NETWORKS[name]
    model = lowbit.prepare(make(), integer_only=True, **options)
    model.load_state_dict(load_file(FOLDER / f"{name}.checkpoint.safetensors"))
    expected = torch.tensor(GOLDEN["networks"][name]["output"])
    # Another processor sums in another order, and a code at a tie may move.
    torch.testing.assert_close(
        model.eval()(inputs(shape)), expected, rtol=0.02, atol=0.02 * float(expected.abs().max())
    )
