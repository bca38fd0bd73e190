"""C99 files against the integer reference in "fixed", code by code: compiled with sanitizers, every operation at every width."""

from __future__ import annotations

import re
import shutil
import subprocess
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from tests.format_graphs import (
    broadcasts,
    matrix_products,
    moves,
    normalizations,
    over_the_range,
    picking,
    pixels,
    reductions,
    resampling,
    softmaxes,
    tables_per_channel,
    two_inputs_and_two_outputs,
    upsampling,
)
from tests.integer_graphs import GraphBuilder, every_operation, f32, resnet_like
from tests.lowering.test_lowering_powers import trained

import lowbit
from lowbit.errors import LowbitError
from lowbit.formats.c import memory, packing, runner, writer
from lowbit.formats.c.source import comment, identifier, kernel
from lowbit.formats.registry import Lowerings
from lowbit.integer.graph import TensorType
from lowbit.integer.network import IntegerNetwork
from lowbit.integer.ops import (
    Add,
    AveragePool,
    Concatenate,
    Linear,
    MaxPool,
    Multiply,
    Requantize,
    Reshape,
    Slice,
    Subtract,
)
from lowbit.verification.compare import compare

pytestmark = pytest.mark.skipif(
    not any(map(shutil.which, runner.COMPILERS)), reason="no C compiler: apt install gcc libc6-dev"
)
EMULATED = Path(__file__).parent / "c"
SANITIZED = (*runner.FLAGS[:-1], "-O0", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
DSP = ("-D__ARM_FEATURE_DSP=1", f"-I{EMULATED}")


def check(b: GraphBuilder, folder: Path, *flags: str, inputs=None, name: str = "net", rounding: str = "shift"):
    """Write, compile with sanitizers, run, and demand that no code differs."""
    network, path = IntegerNetwork(b.graph()), folder / f"{name}.c"
    writer.write(network.graph, path, rounding)
    report = compare(
        network,
        runner.CRunner(path, network.graph, flags=[*SANITIZED, *flags]),
        [b.input(2) if inputs is None else inputs],
    )
    assert report.ok, report.text()
    return report


@pytest.mark.parametrize("bits", range(1, 9))
def test_every_operation_at_every_width(bits, tmp_path):
    """Weights of every width; the path for DSP instructions at every other one (their intrinsics in portable C)."""
    check(every_operation(bits, bits), tmp_path, *(DSP if bits % 2 else ()))


def test_residual_network(tmp_path):
    check(resnet_like(1, 4), tmp_path, *DSP)


def test_several_inputs_and_outputs(tmp_path):
    b = two_inputs_and_two_outputs()
    check(b, tmp_path, inputs=over_the_range(b))


@pytest.mark.parametrize("factors", [(2,), (2, 3), (2, 1, 2)])
def test_one_to_three_dimensions(factors, tmp_path):
    b = upsampling(factors)
    check(b, tmp_path, inputs=over_the_range(b))


def grid(b: GraphBuilder, spread: float) -> TensorType:
    """Any grid of 2 to 8 bits with any zero point that its byte holds, in or out of the range of its codes."""
    bits, signed = int(b.codes(2, 8)), bool(b.codes(0, 1))
    zero = int(b.codes(0, 255)) - (1 << (bits - 1) if signed else 0)
    return TensorType(f32(spread / 2**bits), zero, bits, signed, signed and bool(b.codes(0, 1)))


def many_layers(seed: int, count: int = 24) -> GraphBuilder:
    """Convolutions of every kind on one input: widths, groups, strides, dilations, padding, scales of both signs, float outputs."""
    b = GraphBuilder((4, 7, 6), seed)

    def pick(*values):
        return values[int(b.codes(0, len(values) - 1))]

    sources = [b.quantize(8, False, 90), b.quantize(3, True, -1, True), b.quantize(1, False)]
    outputs = []
    for number in range(count):
        groups = pick(1, 1, 2, 4)
        b.outputs = tuple(outputs)
        outputs.append(
            b.conv(
                sources[number % 3], 4 * pick(1, 2, 3), pick(1, 2, 3), bits=pick(1, 2, 3, 4, 6, 8), weight_bits=number % 8 + 1,
                zero=pick(0, 1), per_channel=pick(True, False), negative=pick(True, False), stride=pick(1, 2),
                padding=(pick(0, 1, 2), pick(0, 1, 2)), dilation=pick(1, 2), groups=groups, bias=pick(True, False),
                float_output=number % 4 == 3,
            )
        )  # fmt: skip
    b.outputs = tuple(outputs)
    return b


@pytest.mark.parametrize(("seed", "flags"), [(0, ()), (1, DSP)])
def test_convolutions(seed, flags, tmp_path):
    check(many_layers(seed), tmp_path, *flags)


def many_sums(seed: int) -> GraphBuilder:
    """Sums, differences, products and changes of grid of all grids; of equal shape and per channel; of any order of axes."""
    b = GraphBuilder((3, 5, 4), seed)
    x = b.conv(b.quantize(8), 8, 1, bits=8, signed=True, padding=(0, 0))
    gate = b.same_range(AveragePool, x, kernel=(5, 4), stride=(1, 1), padding=((0, 0), (0, 0)), shrink=3)
    flat = b.append(Reshape, x, shape=(-1,))
    outputs = []
    for kind in (Add, Subtract, Multiply) * 3:
        other = b.append(Requantize, x, type=grid(b, 4.0))
        outputs += [b.append(kind, x, other, type=grid(b, 8.0)), b.append(kind, other, gate, type=grid(b, 8.0))]
    outputs.append(b.append(Subtract, gate, x, type=grid(b, 8.0)))
    outputs.append(b.append(Subtract, flat, b.append(Requantize, flat, type=grid(b, 4.0)), type=grid(b, 8.0)))
    outputs.append(b.append(Add, x, x, type=grid(b, 8.0)))
    outputs.append(b.append(Reshape, x, shape=(5, 2, 16)))
    b.outputs = tuple(outputs)
    return b


@pytest.mark.parametrize("seed", [0, 1])
def test_sums_and_products(seed, tmp_path):
    check(many_sums(seed), tmp_path)


def packed_chain() -> GraphBuilder:
    """Layers of few bits whose tensors fill the arena, so that they are packed and written over one another."""
    b = GraphBuilder((4, 16, 16), 7)
    x = b.conv(b.quantize(8), 8, bits=4, weight_bits=2)
    x = b.conv(x, 8, bits=2, weight_bits=2, groups=8)
    x = b.add(b.conv(x, 8, bits=4), b.conv(x, 8, 1, bits=2, padding=(0, 0)), bits=4)
    half = [b.append(Slice, x, axis=1, start=start, stop=start + 4) for start in (0, 4)]
    x = b.append(Concatenate, *reversed(half))
    x = b.append(MaxPool, x, kernel=(3, 3), stride=(1, 1), padding=((1, 1), (1, 1)), dilation=(1, 1))
    x = b.same_range(AveragePool, x, bits=2, kernel=(2, 2), stride=(2, 2), padding=((0, 0), (0, 0)))
    x = b.lookup(x, torch.tanh, bits=1)
    x = b.conv(x, 16, bits=3, weight_bits=1, signed=True)
    b.linear(b.append(Reshape, x, shape=(-1,)), 5, weight_bits=3)
    return b


def shrinking(kind: str, bits: int, out_bits: int) -> GraphBuilder:
    """A picture whose next tensor is written over it: by windows of stride 2, from few bits to more or the other way round."""
    b = GraphBuilder((8, 15, 13), out_bits)
    x = b.conv(b.quantize(8), 8, 1, bits=bits, padding=(0, 0))
    if kind == "average":
        pads = ((1, 1), (1, 1))
        x = b.same_range(AveragePool, x, bits=out_bits, kernel=(3, 3), stride=(2, 2), padding=pads, shrink=3)
    else:
        groups = {"depthwise": 8, "dense": 1}[kind]
        x = b.conv(x, 8, bits=out_bits, groups=groups, stride=2 if bits < 4 else 1)
    b.conv(x, 2, 1, bits=2, padding=(0, 0))
    return b


@pytest.mark.parametrize("kind", ["dense", "depthwise", "average"])
@pytest.mark.parametrize(("bits", "out_bits"), [(2, 8), (4, 4), (8, 2)])
def test_written_over_its_input(kind, bits, out_bits, tmp_path, monkeypatch):
    """The output lies as low below its input as it may, so that a byte less would spoil a code."""
    b = shrinking(kind, bits, out_bits)
    graph = b.graph()
    plan, names = memory.plan(graph), [node.name for node in graph.nodes]
    x, y = plan.places[names[1]], plan.places[names[2]]
    assert y.offset < x.offset + x.size and x.offset < y.offset + y.size
    check(b, tmp_path)


def test_packed_tensors(tmp_path):
    b = packed_chain()
    graph = b.graph()
    plan = memory.plan(graph)
    widths = {place.width for place in plan.places.values() if place.storage == "packed"}
    assert widths >= {2, 4} and plan.arena < sum(place.size for place in plan.places.values()) / 2
    check(b, tmp_path, *DSP)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("c")


@pytest.mark.parametrize("space", [1, 2, 3])
@pytest.mark.parametrize("build", [picking, tables_per_channel, pixels, resampling])
def test_positions(build, space, folder):
    b = build(space)
    check(b, folder, inputs=over_the_range(b))


@pytest.mark.parametrize("graphs", [moves, broadcasts, matrix_products, reductions, normalizations, softmaxes])
def test_tensors_of_any_rank(graphs, folder):
    @settings(max_examples=6, deadline=None, derandomize=True)
    @given(graphs())
    def each(b):
        check(b, folder, inputs=over_the_range(b))

    each()


def test_tokens(tmp_path):
    """Linear layers over leading dimensions: the channels lie last in the model's own order."""
    b = GraphBuilder((6, 5), 3)
    x = b.quantize(8, True, 3)
    weight = b.weight((8, 5), 4, True)
    y = b.append(Linear, x, type=TensorType(f32(0.05), 4, 8, True), weight=weight, bias=None)
    weight = b.weight((3, 8), 3, False)
    b.append(Linear, y, type=TensorType(f32(0.1), 0, 4, False), weight=weight, bias=b.codes(-50, 50, 3).int())
    check(b, tmp_path)


def test_every_code_of_the_input(tmp_path):
    """Real numbers become codes without libraries: ties to even, saturation, infinities; NaN has the lowest code."""
    b = GraphBuilder((13,), 0)
    b.append(lowbit.integer.ops.Quantize, "image", type=TensorType(0.5, -3, 4, True))
    inf = float("inf")
    values = [0.25, 0.75, -0.25, -0.75, 1.25, 2.4999998, 1e30, -1e30, inf, -inf, 0.0, -0.0, 5.25]
    check(b, tmp_path, inputs=torch.tensor([values]))
    path = tmp_path / "net.c"
    found = runner.CRunner(path, b.graph())({"image": torch.full((1, 13), float("nan"))})
    assert found.codes["n0.Quantize"].unique().tolist() == [-8]


def program(folder: Path, main: str, *flags: str) -> str:
    """What a main prints that was linked with every C file of the folder."""
    (folder / "main.c").write_text(main)
    sources = [str(path) for path in folder.glob("*.c")]
    command = [runner.compiler(), *SANITIZED, *flags, *sources, "-o", str(folder / "program")]
    subprocess.run(command, check=True, capture_output=True)
    return subprocess.run([str(folder / "program")], check=True, capture_output=True, text=True).stdout


def test_halves_go_away_from_zero_at_every_shift(tmp_path):
    """`scaled` at ties, beside them and far out, against whole numbers of any size."""
    cases = []
    for shift in range(1, 63):
        for quotient in (0, 1, 2, 127, 4095, 1 << 20):
            for beside in (-1, 0, 1):
                t = (quotient << shift) + (1 << (shift - 1)) + beside
                cases += [(sign * t, shift) for sign in (1, -1) if t < 1 << 62]
    rows = ",\n".join(f"    {{{t}, {shift}}}" for t, shift in cases)
    main = (
        "#include <stddef.h>\n#include <stdint.h>\n#include <stdio.h>\n#include <string.h>\n"
        f"{kernel('intrinsics', set())}\n{kernel('clipped', set())}\n{kernel('scaled', set())}\n"
        f"static const struct {{ int64_t t; int32_t shift; }} cases[] = {{\n{rows}\n}};\n"
        "int main(void) {\n    size_t i;\n    for (i = 0; i < sizeof cases / sizeof *cases; i++)\n"
        '        printf("%d ", (int)scaled(cases[i].t, cases[i].shift, 3, -32768, 65535));\n    return 0;\n}\n'
    )
    expected = []
    for t, shift in cases:
        magnitude = (abs(t) + (1 << (shift - 1))) >> shift
        expected.append(min(max((magnitude if t >= 0 else -magnitude) + 3, -32768), 65535))
    assert list(map(int, program(tmp_path, main).split())) == expected


def test_halves_go_to_even_where_sums_are_shifted(tmp_path):
    """`shifted` at ties, beside them and at the ends of 32 bits, against fractions; far out it is only far out."""
    cases = []
    for shift in range(-30, 66):
        for quotient in (0, 1, 2, 3, 127, 4096):
            for beside in (-1, 0, 1):
                n = (
                    (quotient << shift if shift > 0 else quotient)
                    + (1 << (shift - 1) if 0 < shift < 31 else 0)
                    + beside
                )
                cases += [(sign * n, shift) for sign in (1, -1) if abs(n) < 1 << 31]
        cases += [(2**31 - 1, shift), (-(2**31) + 1, shift)]
    rows = ",\n".join(f"    {{{n}, {shift}}}" for n, shift in cases)
    main = (
        "#include <stddef.h>\n#include <stdint.h>\n#include <stdio.h>\n#include <string.h>\n"
        f"{kernel('intrinsics', set())}\n{kernel('shifted', set())}\n"
        f"static const struct {{ int32_t n, shift; }} cases[] = {{\n{rows}\n}};\n"
        "int main(void) {\n    size_t i;\n    for (i = 0; i < sizeof cases / sizeof *cases; i++)\n"
        '        printf("%ld ", (long)shifted(cases[i].n, cases[i].shift));\n    return 0;\n}\n'
    )
    for (n, shift), found in zip(cases, map(int, program(tmp_path, main).split()), strict=True):
        exact = round(Fraction(n) / Fraction(2) ** shift)
        assert found == exact if shift > 0 or abs(exact) <= 0x3FFFF else abs(found) == 0x3FFFF, (n, shift)


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_power_of_two_steps_need_no_multiplier(granularity, tmp_path):
    """The firmware computes what the trained network does, code by code, by shifts alone."""
    prepared, x = trained(granularity)
    integer, path = lowbit.to_integer(prepared, x[:1]), tmp_path / "net.c"
    assert lowbit.export(integer, path, "c").ok
    source = path.read_text()
    assert "shifted(" in source and "shifts" in source
    assert not re.search(r"multipliers\d|rounded\(|scaled\(", source)
    report = lowbit.verify(prepared, path, [x])
    assert report.ok and report.conversion_differ == 0 and report.first_trained_difference is None, report.text()
    network = runner.CRunner(path, integer.graph, flags=SANITIZED)
    assert compare(integer, network, [x[:4]]).ok


def test_selftest_finds_the_first_layer_that_differs(tmp_path):
    """Two networks in one program, one of them with a damaged bias."""
    b = resnet_like(2, 3, size=6)
    for name in ("good", "bad"):
        writer.write(b.graph(), tmp_path / f"{name}.c")
    path, number = tmp_path / "bad.c", 1 + [node.name for node in b.nodes].index("n7.Convolution")
    text = path.read_text()
    begin = text.index(f"bias{number}[32] = {{") + len(f"bias{number}[32] = {{\n    ")
    path.write_text(f"{text[:begin]}30000 + {text[begin:]}")
    main = (
        '#include <stdio.h>\n#include "good.h"\n#include "bad.h"\n'
        'int main(void) { printf("%d %d %d", good_selftest(), bad_selftest(), GOOD_LAYERS); return 0; }\n'
    )
    assert program(tmp_path, main) == f"0 {number} {len(b.nodes)}"


def test_codes_alone(tmp_path):
    """Without floats and self-test: nothing else is in the object than memory functions and what is called."""
    b = resnet_like(2, 3, size=6)
    writer.write(b.graph(), tmp_path / "net.c")
    flags = ["-std=c99", "-O2", "-DNET_NO_FLOAT", "-DNET_NO_SELFTEST"]
    subprocess.run([runner.compiler(), *flags, "-c", tmp_path / "net.c", "-o", tmp_path / "net.o"], check=True)
    symbols = subprocess.run(["nm", tmp_path / "net.o"], check=True, capture_output=True, text=True).stdout.splitlines()
    assert {line.split()[-1] for line in symbols if line.split()[-2] in "UTDBC"} <= {"net_run", "memset", "memcpy"}
    header = (tmp_path / "net.h").read_text()
    assert "#define NET_INPUT_SIZE 108\n" in header and "#define NET_OUTPUT_SIZE 10\n" in header
    assert "typedef int8_t net_input_t;" in header and "typedef int32_t net_output_t;" in header
    assert "void net_run(const net_input_t *input, net_output_t *output);" in header


def test_weights_take_the_bits_that_they_have():
    """Every code comes back from the words, by a reading of the layout that shares no code with the writer."""
    for bits in range(1, 9):
        codes = torch.arange(-(1 << (bits - 1)), 1 << (bits - 1)) if bits > 1 else torch.tensor([-1, 1])
        rows = codes.repeat(64)[:128].reshape(2, 64)
        words, found = packing.words(rows, bits), torch.zeros(2, 64, dtype=torch.int64)
        assert 32 * len(words) == bits * rows.numel()
        for width, shift in packing.PLANES[bits]:
            for place in range(128):
                k, per_word = place % 64, 32 // width
                word = words[place // 64 * 64 // per_word + k // per_word]
                field = word >> (k % per_word // 2 * width + 16 * (k % 2)) & ((1 << width) - 1)
                found[place // 64, k] += field << shift
            words = words[128 // per_word :]
        assert torch.equal(found - packing.offset(bits), rows)


def test_export_writes_both_files_or_none(tmp_path, monkeypatch):
    b = resnet_like(0, 2, size=6)
    network = IntegerNetwork(b.graph())
    report = lowbit.export(network, tmp_path / "my net-2.c", "c", batches=[b.input(3)])
    assert report.ok and sorted(path.name for path in tmp_path.iterdir()) == ["my net-2.c", "my net-2.h"]
    assert lowbit.verify(network, tmp_path / "my net-2.c", [b.input(2)]).ok
    assert "void my_net_2_run(" in (tmp_path / "my net-2.h").read_text()
    with pytest.raises(LowbitError, match=r"ends in \.c"):
        lowbit.export(network, tmp_path / "other.h", "c")
    (tmp_path / "mine.h").write_text("int mine;")
    with pytest.raises(LowbitError, match=r"mine\.h is there and is not lowbit's"):
        lowbit.export(network, tmp_path / "mine.c", "c")
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(LowbitError, match=r"no C compiler \(no-such-compiler\).*apt install gcc"):
        lowbit.export(network, tmp_path / "third.c", "c")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.h", "my net-2.c", "my net-2.h"]


def test_changed_files_show(tmp_path):
    b = resnet_like(0, 2, size=6)
    network, path = IntegerNetwork(b.graph()), tmp_path / "net.c"
    writer.write(network.graph, path)
    text = path.read_text()
    path.write_text(text.replace(".y_zero = 0", ".y_zero = 1", 1))
    report = lowbit.verify(network, path, [b.input(1)])
    assert not report.ok and report.first_difference == "n1.Convolution"
    path.write_text(text.replace("static int run(", "static int ran("))
    with pytest.raises(LowbitError, match="does not compile it"):
        lowbit.verify(network, path, [b.input(1)])
    path.write_text(text)
    with pytest.raises(LowbitError, match="not exported from this network: its layers are others"):
        lowbit.verify(IntegerNetwork(resnet_like(0, 2, size=8).graph()), path, [torch.zeros(1, 3, 8, 8)])
    (tmp_path / "net.h").unlink()
    with pytest.raises(LowbitError, match=r"its header net\.h is not beside it"):
        lowbit.verify(network, path, [b.input(1)])


@pytest.mark.parametrize(
    ("text", "name"), [("net", "net"), ("2 nets", "n2_nets"), ("größe", "gr__e"), ("_x_", "x"), ("…", "net")]
)
def test_names_become_identifiers(text, name):
    assert identifier(text) == name


def test_names_of_layers_stay_in_their_comments():
    assert comment("a*/b??/\\c/*é") == "a_b_/_c__"


def test_sums_that_are_no_expression_are_refused_by_name(monkeypatch, tmp_path):
    """C computes what an operation states in integers as sums, products and one rounding; anything else has no form."""
    b = GraphBuilder((3, 4, 4), 0)
    x = b.quantize(8)
    b.append(Subtract, x, x, type=grid(b, 4.0))
    graph = b.graph()
    monkeypatch.setattr(Subtract, "in_integers", lambda self, steps, types, rounding: torch.maximum(*steps))
    with pytest.raises(LowbitError, match=r"'n1\.Subtract': C has no form of Subtract, whose integers are more than"):
        writer.write(graph, tmp_path / "net.c")


def test_what_has_no_form_is_refused_by_name(monkeypatch, tmp_path):
    b = GraphBuilder((3, 4, 4), 0)
    b.append(MaxPool, b.quantize(8), kernel=(2, 2), stride=(2, 2), padding=((0, 0), (0, 0)), dilation=(1, 1))
    monkeypatch.setattr(writer, "LOWERINGS", Lowerings("C"))
    with pytest.raises(LowbitError, match=r"'n0\.Quantize': C has no form of Quantize"):
        writer.write(b.graph(), tmp_path / "net.c")
    assert not list(tmp_path.iterdir())
