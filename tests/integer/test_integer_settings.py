"""The integer reference computes the same whatever the process has set for its floats."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from tests.format_graphs import two_inputs_and_two_outputs, upsampling
from tests.integer_graphs import every_operation, resnet_like

import lowbit
from lowbit.integer.graph import FloatType, Graph, TensorType, Weight
from lowbit.integer.network import IntegerNetwork
from lowbit.integer.ops import Linear, Quantize
from lowbit.integer.ops.lookup import lookup_table
from lowbit.integer.settings import float32_products_are_exact, reference_arithmetic

PRECISIONS = {
    "cuda matmul tf32": (torch.backends.cuda.matmul, "tf32"),
    "any backend tf32": (torch.backends, "tf32"),
    "any backend bf16": (torch.backends, "bf16"),
    "mkldnn bf16": (torch.backends.mkldnn, "bf16"),
    "mkldnn matmul tf32": (torch.backends.mkldnn.matmul, "tf32"),
    "mkldnn matmul bf16": (torch.backends.mkldnn.matmul, "bf16"),
    "cudnn conv tf32": (torch.backends.cudnn.conv, "tf32"),
}
SETTINGS = (
    "autocast bfloat16", "autocast float16", "autocast nested", "inference mode", "no grad",
    "grad within inference", "default dtype float64", "default dtype bfloat16", "deterministic", "matmul precision high",
    "matmul precision medium", "flush denormal", "two threads", "default device meta", "device meta", *PRECISIONS,
)  # fmt: skip


@contextmanager
def setting(name: str) -> Iterator[None]:
    """Within: the process's setting of that name; afterwards what was before."""
    if name == "autocast nested":
        with torch.autocast("cpu", torch.float16), torch.autocast("cpu", torch.bfloat16):
            yield
    elif name.startswith("autocast"):
        with torch.autocast("cpu", getattr(torch, name.split()[1])):
            yield
    elif name == "inference mode":
        with torch.inference_mode():
            yield
    elif name == "no grad":
        with torch.no_grad():
            yield
    elif name == "grad within inference":
        with torch.inference_mode(), torch.enable_grad():
            yield
    elif name == "device meta":
        with torch.device("meta"):
            yield
    else:
        enter, leave = _switches(name)
        enter()
        try:
            yield
        finally:
            leave()


def _switches(name: str):
    if name in PRECISIONS:
        owner, value = PRECISIONS[name]
        # The matmul's own setting hides its backend's, and "none" lets it through again.
        parts = (torch.backends.mkldnn.matmul, torch.backends.mkldnn, torch.backends)
        before = [(part, part.fp32_precision) for part in {id(part): part for part in (owner, *parts)}.values()]

        def enter():
            for part, _ in before:
                part.fp32_precision = "none"
            owner.fp32_precision = value

        def leave():
            for part, old in reversed(before):
                part.fp32_precision = old

        return enter, leave
    if name.startswith("matmul precision"):
        return lambda: torch.set_float32_matmul_precision(name.split()[-1]), lambda: torch.set_float32_matmul_precision(
            "highest"
        )
    if name.startswith("default dtype"):
        dtype = getattr(torch, name.split()[-1])
        return lambda: torch.set_default_dtype(dtype), lambda: torch.set_default_dtype(torch.float32)
    threads = torch.get_num_threads()
    return {
        "deterministic": (
            lambda: torch.use_deterministic_algorithms(True),
            lambda: torch.use_deterministic_algorithms(False),
        ),
        "flush denormal": (lambda: torch.set_flush_denormal(True), lambda: torch.set_flush_denormal(False)),
        "two threads": (lambda: torch.set_num_threads(2), lambda: torch.set_num_threads(threads)),
        "default device meta": (lambda: torch.set_default_device("meta"), lambda: torch.set_default_device(None)),
    }[name]


def wide() -> Graph:
    """Two layers whose products need more digits than bfloat16 and TF32 have, large enough for the fast kernels."""
    random = torch.Generator().manual_seed(5)
    codes = [torch.randint(-128, 128, shape, generator=random).to(torch.int8) for shape in ((256, 300), (40, 256))]
    byte = TensorType(2.0**-5, 0, 8, True)
    first, second = (Weight(each, torch.tensor(2.0**-9), 8) for each in codes)
    return Graph(
        inputs={"x": (300,)},
        nodes=(
            Quantize(name="q", inputs=("x",), type=byte),
            Linear(name="a", inputs=("q",), type=byte, weight=first),
            Linear(name="b", inputs=("a",), type=FloatType(), weight=second),
        ),
        outputs=("b",),
    )


@pytest.fixture(scope="module")
def networks():
    """(network, inputs, codes in both roundings) without any setting."""
    found = []
    for b in (resnet_like(0), every_operation(1, 4), two_inputs_and_two_outputs(), upsampling((2, 3))):
        network, x = IntegerNetwork(b.graph()), b.input(3)
        found.append((network, x, {r: network.codes(x, r) for r in ("float", "fixed")}))
    network = IntegerNetwork(wide())
    x = 2 * torch.randn(300, 300, generator=torch.Generator().manual_seed(6))
    found.append((network, x, {r: network.codes(x, r) for r in ("float", "fixed")}))
    return found


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return list(found) == list(expected) and all(
        found[name].dtype == value.dtype and found[name].device == value.device and torch.equal(found[name], value)
        for name, value in expected.items()
    )


@pytest.mark.parametrize("name", SETTINGS)
def test_codes_are_those_of_the_plain_run(networks, name):
    for network, x, expected in networks:
        with setting(name):
            found = {rounding: network.codes(x, rounding) for rounding in expected}
            again = IntegerNetwork(network.graph).codes(x)
        for rounding, codes in expected.items():
            assert same(found[rounding], codes)
        assert same(again, expected["float"])


@pytest.mark.parametrize("name", SETTINGS)
def test_files_come_back_and_are_the_same_bytes(networks, name, tmp_path):
    network, x, expected = networks[1]
    network.save(tmp_path / "plain.safetensors")
    with setting(name):
        network.save(tmp_path / "set.safetensors")
        loaded = IntegerNetwork.load(tmp_path / "set.safetensors").codes(x)
    assert (tmp_path / "set.safetensors").read_bytes() == (tmp_path / "plain.safetensors").read_bytes()
    assert same(loaded, expected["float"])


@pytest.mark.parametrize("format", ["onnx", "onnx-packed", "qonnx", "lowbit", "json"])
@pytest.mark.parametrize("name", SETTINGS)
def test_export_accepts_and_verify_passes(networks, name, format, tmp_path):
    network, x, _ = networks[0]
    with setting(name):
        assert lowbit.export(network, tmp_path / "file", format).ok
        assert lowbit.verify(network, tmp_path / "file", [x]).ok


@pytest.mark.parametrize("name", SETTINGS)
def test_tables_are_those_of_the_plain_process(name):
    x, y = TensorType(float(torch.tensor(0.031)), 3, 8, True), TensorType(float(torch.tensor(0.0172)), 0, 8, False)
    half = torch.nn.Linear(1, 1, bias=False).requires_grad_(False)
    half.weight.fill_(1 / 3)

    def function(v):  # a matrix product, which autocast cuts to bfloat16, and a constant on the default device
        return torch.nn.functional.silu(half(v[:, None])[:, 0]) + torch.ones(len(v), dtype=v.dtype)

    expected = lookup_table(function, x, y)
    with setting(name):
        found = lookup_table(function, x, y)
    assert torch.equal(found, expected)


def test_a_setting_of_the_caller_stands_between_two_nodes(networks):
    """`run` gives one tensor at a time: what the caller has on is on again when it gets one."""
    from lowbit.integer.run import run

    network, x, _ = networks[0]
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        for _ in run(network.graph, x):
            assert torch.is_autocast_enabled("cpu") and torch.is_inference_mode_enabled()
    with reference_arithmetic():
        assert not torch.is_grad_enabled()
    assert torch.is_grad_enabled()


def test_reduced_precision_is_noticed(networks, monkeypatch):
    """Whether this processor has the fast kernels or not, products run in float64 where they might be taken."""
    seen, sums = set(), Linear.sums

    def watched(self, x, kind, dtype):
        seen.add(dtype)
        return sums(self, x, kind, dtype)

    monkeypatch.setattr(Linear, "sums", watched)
    network, x, _ = networks[-1]
    reduced = [
        name
        for name, (owner, _) in PRECISIONS.items()
        if owner not in (torch.backends.cuda.matmul, torch.backends.cudnn.conv)
    ]
    for name in (*reduced, "matmul precision high", "matmul precision medium"):
        seen.clear()
        with setting(name):
            assert not float32_products_are_exact()
            network.codes(x)
        assert seen == {torch.float64}, name
    monkeypatch.setenv("ONEDNN_DEFAULT_FPMATH_MODE", "BF16")
    assert not float32_products_are_exact()
    monkeypatch.setenv("ONEDNN_DEFAULT_FPMATH_MODE", "strict")
    seen.clear()
    network.codes(x)
    assert seen == {torch.float32}


SUBNORMAL = """
import sys, torch
from lowbit.integer.graph import Graph, TensorType, FloatType, Weight
from lowbit.integer.network import IntegerNetwork
from lowbit.integer.ops import Add, Linear, Multiply, Quantize
if sys.argv[1] == "flush":
    assert torch.set_flush_denormal(True)  # before the pool's threads start, which inherit it
torch.set_num_threads(2)
tiny = TensorType(2.0**-125, 0, 8, True)
weight = Weight(torch.arange(-4, 4, dtype=torch.int8).reshape(2, 4), torch.tensor(0.5), 4)
graph = Graph(inputs={"x": (50_000, 4)}, nodes=(
    Quantize(name="q", inputs=("x",), type=tiny),
    Add(name="s", inputs=("q", "q"), type=TensorType(2.0**-123, 0, 8, True)),
    Linear(name="w", inputs=("q",), type=TensorType(2.0**-124, 0, 8, True), weight=weight),
    Linear(name="f", inputs=("q",), type=FloatType(), weight=weight),
), outputs=("f", "s", "w"))
values = torch.arange(200_000, dtype=torch.int32)  # from 0 through the subnormal numbers and beyond
x = (values * 180).view(torch.float32).reshape(1, 50_000, 4)
network = IntegerNetwork(graph)
import hashlib
for rounding in ("float", "fixed"):
    for name, codes in network.codes(x, rounding).items():
        print(rounding, name, int((codes != 0).sum()), hashlib.sha256(codes.numpy().tobytes()).hexdigest())
"""


def test_no_subnormal_number_decides_a_code():
    """On the smallest scales, in a process whose every thread flushes to zero from the start."""
    plain, flushed = (
        subprocess.run(
            [sys.executable, "-c", SUBNORMAL, how], capture_output=True, text=True, check=True, env=dict(os.environ)
        ).stdout
        for how in ("plain", "flush")
    )
    assert plain == flushed and all(int(line.split()[2]) > 0 for line in plain.splitlines())
