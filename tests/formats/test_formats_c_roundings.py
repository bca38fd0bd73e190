"""C99 in the roundings of microcontrollers: every operation at every width, with sanitizers, against the integer reference."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace

import pytest
import torch
from hypothesis import find
from tests.format_graphs import normalizations, resampling, softmaxes
from tests.formats import test_formats_c as shared
from tests.formats.test_formats_c import DSP, check, many_layers, many_sums
from tests.integer_graphs import GraphBuilder, every_operation, f32, resnet_like

import lowbit
from lowbit.errors import LowbitError
from lowbit.formats.c import roundings, runner, writer
from lowbit.integer.graph import TensorType
from lowbit.integer.network import IntegerNetwork
from lowbit.integer.ops import GlobalAveragePool, Requantize

pytestmark = shared.pytestmark
NAMES = [name for name in roundings.ROUNDINGS if name != "shift"]
EVERY = pytest.mark.parametrize("rounding", NAMES)


@EVERY
@pytest.mark.parametrize("bits", range(1, 9))
def test_every_operation_at_every_width(bits, rounding, tmp_path) -> None:
    check(every_operation(bits, bits), tmp_path, *(DSP if bits % 2 else ()), rounding=rounding)


@EVERY
def test_convolutions_of_every_kind(rounding, tmp_path) -> None:
    check(many_layers(2), tmp_path, rounding=rounding)


@EVERY
@pytest.mark.parametrize("seed", [0, 1])
def test_sums_products_and_changes_of_grid(seed, rounding, tmp_path) -> None:
    check(many_sums(seed), tmp_path, rounding=rounding)


@EVERY
def test_means_and_resampling(rounding, tmp_path) -> None:
    check(resampling(2), tmp_path, rounding=rounding)
    b = GraphBuilder((3, 25, 5), seed=1)
    x = b.quantize(8, signed=False, zero=100)
    b.outputs = tuple(b.same_range(GlobalAveragePool, x, bits=8, shrink=shrink) for shrink in (0.01, 1, 3, 1000))
    check(b, tmp_path, inputs=b.input(40), rounding=rounding)


@EVERY
def test_multipliers_of_every_size(rounding, tmp_path) -> None:
    """From where all is 0 to where all but 0 is beyond every code, in layers and between grids."""
    b = GraphBuilder((6, 3, 3), seed=50)
    x = b.quantize(8, signed=False, zero=90)
    scale, names = b.type_of(x).scale, []
    for power in (-40, -33, -31, -20, -3, -1, 0, 1, 6, 14, 15, 16, 20, 28):
        names.append(b.conv(x, 4, 3, bits=8, weight_bits=8, per_channel=True, negative=True, signed=True))
        layer = b.nodes[-1]
        unit = scale * float(layer.weight.scale.abs().mean())
        b.nodes[-1] = replace(layer, type=TensorType(f32(unit * 2.0**-power * 1.37), 5, 8, True))
        names.append(b.append(Requantize, x, type=TensorType(f32(scale * 2.0**-power * 1.37), -3, 8, True)))
    b.outputs = tuple(names)
    check(b, tmp_path, inputs=b.input(20), rounding=rounding)


@pytest.mark.parametrize("example", [softmaxes, normalizations])
def test_what_computes_in_64_bits_is_refused_in_16(example, tmp_path) -> None:
    b = find(example(), lambda _: True)
    with pytest.raises(LowbitError, match=r"node '.*': (Softmax|Normalize) computes in 64 bits"):
        writer.write(b.graph(), tmp_path / "net.c", "fixed16")
    writer.write(b.graph(), tmp_path / "net.c", "double-rounding")


def test_16_bits_know_no_64(tmp_path) -> None:
    """Neither the text nor what compilers for a core without such a product make of it."""
    b = resnet_like(3, 4)
    for rounding, wide in (("fixed16", False), ("fixed", True), ("double-rounding", True)):
        path = tmp_path / "net.c"
        writer.write(b.graph(), path, rounding)
        assert ("int64_t" in path.read_text()) == wide
        if shutil.which("arm-none-eabi-gcc"):
            flags = ["-mcpu=cortex-m0", "-mthumb", "-O2", "-std=c99", "--specs=picolibc.specs"]
            subprocess.run(
                ["arm-none-eabi-gcc", *flags, "-DNET_NO_FLOAT", "-c", str(path), "-o", str(tmp_path / "net.o")],
                check=True,
            )
            found = subprocess.run(
                ["arm-none-eabi-nm", str(tmp_path / "net.o")], capture_output=True, text=True, check=True
            )
            assert ("__aeabi_lmul" in found.stdout) == wide


@EVERY
def test_export_proves_it_in_its_rounding(rounding, tmp_path) -> None:
    b = resnet_like(1, 4, size=8)
    network, path = IntegerNetwork(b.graph()), tmp_path / "net.c"
    report = lowbit.export(network, path, "c", rounding=rounding)
    assert report.ok
    assert runner.CRunner(path, network.graph).rounding == rounding
    assert lowbit.verify(network, path, [b.input(4)]).ok
    text = path.read_text()
    assert f" {rounding}:" in text.splitlines()[0] and rounding in path.with_suffix(".h").read_text()


def test_a_file_that_says_one_thing_and_does_another(tmp_path) -> None:
    b = resnet_like(1, 8, size=8)
    network, path = IntegerNetwork(b.graph()), tmp_path / "net.c"
    writer.write(network.graph, path, "double-rounding")
    path.write_text(path.read_text().replace(" double-rounding:", " fixed:", 1))
    assert not lowbit.verify(network, path, [b.input(32)]).ok


def test_a_rounding_that_there_is_not(tmp_path) -> None:
    network = IntegerNetwork(resnet_like(1, 4, size=8).graph())
    with pytest.raises(LowbitError, match="rounding='nearest': the format c has shift, fixed, fixed16"):
        lowbit.export(network, tmp_path / "net.c", "c", rounding="nearest")
    lowbit.export(network, tmp_path / "net.c", "c")
    path = tmp_path / "net.c"
    path.write_text(path.read_text().replace(" shift:", " nearest:", 1))
    with pytest.raises(LowbitError, match="it says that it rounds as 'nearest'"):
        lowbit.verify(network, path, [torch.randn(1, 3, 8, 8)])
