"""The integer file: what is saved comes back, in as many bytes as the bits take; nothing else is accepted."""

from __future__ import annotations

import copy
import json
import random
import resource
import time

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.format_graphs import two_inputs_and_two_outputs
from tests.integer_graphs import GraphBuilder, every_operation, resnet_like

from lowbit.errors import LowbitError
from lowbit.formats import json as json_format
from lowbit.integer import file
from lowbit.integer.graph import Graph
from lowbit.integer.network import IntegerNetwork
from lowbit.integer.run import run


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(1, 8), st.lists(st.integers(0, 255), min_size=1, max_size=40))
def test_packing_is_a_little_endian_bit_stream(bits, values):
    values = [v & ((1 << bits) - 1) for v in values]
    number = sum(v << (i * bits) for i, v in enumerate(values))
    packed = file.pack(torch.tensor(values), bits)
    assert bytes(packed.tolist()) == number.to_bytes(-(-len(values) * bits // 8), "little")
    assert file.unpack(packed, bits, len(values)).tolist() == values


def saved(builder: GraphBuilder, folder) -> tuple[Graph, bytes]:
    graph = builder.graph()
    file.save(graph, folder / "network.safetensors")
    return graph, (folder / "network.safetensors").read_bytes()


def load_bytes(data: bytes, folder) -> Graph:
    (folder / "other.safetensors").write_bytes(data)
    return file.load(folder / "other.safetensors")


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("network", [resnet_like, every_operation])
def test_round_trip(network, bits, tmp_path):
    builder = every_operation(3, bits) if network is every_operation else resnet_like(3, max(bits, 2), per_channel=True)
    graph, data = saved(builder, tmp_path)
    again = load_bytes(data, tmp_path)
    assert [type(node) for node in again.nodes] == [type(node) for node in graph.nodes]
    for one, other in zip(graph.nodes, again.nodes):
        for field, value in vars(one).items():
            if field == "weight":
                assert torch.equal(value.codes, other.weight.codes)
                assert torch.equal(value.scale, other.weight.scale)
                assert value.bits == other.weight.bits
            elif isinstance(value, torch.Tensor):
                assert torch.equal(value, getattr(other, field))
            else:
                assert value == getattr(other, field)
    x = builder.input(2)
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(run(graph, x), run(again, x)))
    file.save(again, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == data


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_size_is_that_of_the_bits(bits, tmp_path):
    """The tensors take the codes at their bits, biases and scales at 4 bytes, and not a byte more."""
    graph, data = saved(resnet_like(0, bits), tmp_path)
    header = int.from_bytes(data[:8], "little")
    expected = 0
    for node in graph.nodes:
        if hasattr(node, "weight"):
            expected += -(-node.weight.codes.numel() * node.weight.bits // 8) + 4 * (1 + node.bias.numel())
    assert len(data) - 8 - header == expected
    sizes = file.sizes(tmp_path / "network.safetensors")
    assert sizes["metadata"] == header + 8
    assert sum(sizes.values()) == len(data)
    assert sizes["codes"] == sum(
        -(-n.weight.codes.numel() * n.weight.bits // 8) for n in graph.nodes if hasattr(n, "weight")
    )
    assert header < 250 * (len(graph.nodes) + 2 * 6)  # the stated metadata: readable, but not wasteful


def test_metadata_is_readable(tmp_path):
    saved(resnet_like(0), tmp_path)
    with safetensors.safe_open(tmp_path / "network.safetensors", "pt") as opened:
        header = json.loads(opened.metadata()["lowbit"])
    assert header["format_version"] == 1
    assert header["graph"]["nodes"][1]["operation"] == "Convolution"
    assert header["graph"]["nodes"][1]["weight"] == {"shape": [16, 3, 3, 3], "bits": 8, "scales": []}


def signed(tensors: dict, described: dict, **changes) -> bytes:
    """A file of anything, with a checksum that fits."""
    tensors = dict(sorted(tensors.items()))
    text = file._canonical(described)
    header = {"format_version": 1, "sha256": file.checksum(text, tensors), "graph": described} | changes
    return safetensors.torch.save(tensors, metadata={"lowbit": json.dumps(header)})


def parts(data: bytes) -> tuple[dict, dict]:
    tensors = safetensors.torch.load(data)
    header = json.loads(json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]["lowbit"])
    return tensors, header["graph"]


ABOUT = {"images": {"mean": [0.5], "augment": "cifar"}, "trained": {"epochs": 3, "test": 81.25, "of": None}}


@pytest.mark.parametrize(("write", "load"), [(file.save, file.load), (json_format.write, json_format.load)])
@pytest.mark.parametrize("inputs", [1, 2])
def test_what_a_network_says_of_itself_is_kept(tmp_path, write, load, inputs):
    network = IntegerNetwork(resnet_like(0).graph() if inputs == 1 else two_inputs_and_two_outputs().graph())
    assert network.metadata == {}
    path = tmp_path / "network"
    write(network.with_metadata(ABOUT).graph, path)
    again = load(path)
    assert IntegerNetwork(again).metadata == ABOUT and [n.name for n in again.nodes] == [
        n.name for n in network.graph.nodes
    ]
    altered = path.read_bytes().replace(b"81.25", b"91.25")
    path.write_bytes(altered)
    with pytest.raises(LowbitError, match="the checksum does not fit"):
        load(path)


@pytest.mark.parametrize("about", [{"x": float("nan")}, {1: 2}, {"x": {1, 2}}, {"x": (1, 2)}])
def test_what_is_no_json_is_not_said(tmp_path, about):
    network = IntegerNetwork(resnet_like(0).graph()).with_metadata(about)
    with pytest.raises(LowbitError, match=r"\(about\) is not an object of plain JSON"):
        network.save(tmp_path / "network")
    assert not (tmp_path / "network").exists()


def test_missing_file(tmp_path):
    with pytest.raises(LowbitError, match=r"nowhere.*cannot be read"):
        file.load(tmp_path / "nowhere")


def test_newer_version(tmp_path):
    tensors, described = parts(saved(resnet_like(0), tmp_path)[1])
    with pytest.raises(LowbitError, match="version 5, this lowbit reads up to 4: install a newer"):
        load_bytes(signed(tensors, described, format_version=5), tmp_path)


def test_other_safetensors_file(tmp_path):
    with pytest.raises(LowbitError, match="not an integer network"):
        load_bytes(safetensors.torch.save({"weight": torch.zeros(3)}), tmp_path)


def test_changes_that_no_checksum_guards(tmp_path):
    """Files written by someone else, correctly signed, and wrong: each is refused for what is wrong with it."""
    tensors, described = parts(saved(resnet_like(0, 3), tmp_path)[1])

    def broken(message, change):
        one, other = dict(tensors), copy.deepcopy(described)
        change(one, other["nodes"], other)
        with pytest.raises(LowbitError, match=message):
            load_bytes(signed(one, other), tmp_path)

    def set_field(index, **fields):
        return lambda _, nodes, __: nodes[index].update(fields)

    broken("'n1.Convolution': operation .Tangent. is not known", set_field(1, operation="Tangent"))
    broken("must have the fields", set_field(1, extra=1))
    broken("must be a whole number, not True", set_field(1, groups=True))
    broken("must be a whole number", set_field(1, groups=1 << 40))
    broken("must be a list", set_field(1, stride=1))
    broken("where at most 8", set_field(1, stride=[1] * 9))
    broken("is empty", set_field(1, weight={"shape": [0, 3, 3, 3], "bits": 8, "scales": []}))
    huge = {"shape": [1 << 30, 1 << 30, 1 << 30, 3], "bits": 8, "scales": []}
    broken("'n1.Convolution:weight' must be", set_field(1, weight=huge))
    broken("there are 1 to 8", set_field(1, weight={"shape": [16, 3, 3, 3], "bits": 9, "scales": []}))
    broken("belong to no node: .stray.", lambda one, *_: one.update(stray=torch.zeros(2)))
    broken("is missing", lambda one, *_: one.pop("n1.Convolution:bias"))
    broken("must be torch.int32", lambda one, *_: one.update({"n1.Convolution:bias": torch.zeros(16)}))
    broken("no earlier node", lambda _, nodes, __: nodes.reverse())
    broken("may have a float output", lambda *all_: all_[2].update(output="none"))
    broken("too large", lambda *all_: all_[2].update(input_shape=[3, 1 << 20, 1 << 20]))
    broken("a number with a decimal point", lambda _, nodes, __: nodes[1]["type"].update(scale=3))
    broken("must be true or false", lambda _, nodes, __: nodes[1]["type"].update(signed=1))
    broken("the name of a node", lambda _, nodes, __: nodes.append(3))
    broken("are not a list", lambda *all_: all_[2].update(nodes={}))

    def spill(one, nodes, _):
        nodes[3]["weight"]["shape"] = [1, 1, 1, 1]
        one["n3.Convolution:weight"] = torch.tensor([255], dtype=torch.uint8)

    broken("unused bits", spill)


def test_altered_and_truncated(tmp_path):
    """Any changed byte and any cut is noticed, save in what safetensors itself pads with."""
    _, data = saved(GraphBuilderSmall(), tmp_path)
    chooser = random.Random(0)
    for place in [0, 7, 8, len(data) - 1] + [chooser.randrange(len(data)) for _ in range(150)]:
        changed = bytearray(data)
        changed[place] ^= 1 << chooser.randrange(8)
        with pytest.raises(LowbitError):
            load_bytes(bytes(changed), tmp_path)
        with pytest.raises(LowbitError):
            load_bytes(data[:place], tmp_path)
    with pytest.raises(LowbitError):
        load_bytes(data + b"\0", tmp_path)


def GraphBuilderSmall() -> GraphBuilder:
    b = GraphBuilder((2, 5, 5), 1)
    x = b.conv(b.quantize(8), 3, bits=3, weight_bits=3, per_channel=True)
    b.lookup(x, torch.nn.functional.silu, bits=5)
    return b


def test_fuzz_signed_graphs(tmp_path):
    """Random values put at random places of a correctly signed graph: an integer network or LowbitError, soon, in little memory."""
    tensors, described = parts(saved(GraphBuilderSmall(), tmp_path)[1])
    chooser = random.Random(1)
    values = [
        None,
        True,
        -1,
        0,
        1,
        3,
        2**31 - 1,
        2**63,
        1e308,
        -0.5,
        "",
        "image",
        "n1",
        [],
        {},
        [1],
        [[1, 1]] * 9,
        [2**31 - 1] * 8,
    ]
    start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    accepted = 0
    for _ in range(400):
        changed = copy.deepcopy(described)
        for _ in range(chooser.randint(1, 2)):
            place = changed
            while True:
                key = chooser.choice(list(place) if isinstance(place, dict) else range(len(place)))
                if isinstance(place[key], dict | list) and place[key] and chooser.random() < 0.8:
                    place = place[key]
                    continue
                place[key] = copy.deepcopy(chooser.choice(values))
                break
        try:
            load_bytes(signed(tensors, changed), tmp_path)
            accepted += 1
        except LowbitError:
            pass
    assert accepted < 200
    assert time.monotonic() - start < 30
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


def test_hostile_headers(tmp_path):
    """Deep nesting, long numbers and a header longer than the file."""
    for text in ("[" * 100_000, '{"format_version":' + "9" * 10_000 + "}", "3", "null", '{"format_version":NaN}'):
        data = safetensors.torch.save({"a": torch.zeros(1)}, metadata={"lowbit": text})
        with pytest.raises(LowbitError):
            load_bytes(data, tmp_path)
    for data in (
        b"",
        b"\0" * 8,
        b"\xff" * 8 + b"{}",
        (2**40).to_bytes(8, "little") + b"{}",
        random.Random(2).randbytes(500),
    ):
        with pytest.raises(LowbitError):
            load_bytes(data, tmp_path)


def test_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    graph, data = saved(GraphBuilderSmall(), tmp_path)
    monkeypatch.setattr(file, "checksum", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        file.save(graph, tmp_path / "network.safetensors")
    assert (tmp_path / "network.safetensors").read_bytes() == data
    assert [path.name for path in tmp_path.iterdir()] == ["network.safetensors"]
