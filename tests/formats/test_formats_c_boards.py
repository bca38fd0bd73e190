"""C99 files on seven cores in QEMU: the same codes as the reference; what they take; what is missing is named."""

from __future__ import annotations

import contextlib
import shutil

import pytest
from tests.integer_graphs import every_operation, resnet_like

import lowbit
from lowbit.cli.main import main
from lowbit.errors import LowbitError
from lowbit.formats import FORMATS
from lowbit.formats.c import boards, interface, writer
from lowbit.integer.network import IntegerNetwork


def installed(name: str) -> bool:
    board = boards.BOARDS[name]
    return shutil.which(board.compiler) is not None and shutil.which(board.emulator) is not None


def needs(name: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not installed(name), reason=f"apt-get install {boards.BOARDS[name].packages}")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A network of every operation at 3 bits, and its file."""
    b = every_operation(3, 3)
    path = tmp_path_factory.mktemp("boards") / "net.c"
    network = IntegerNetwork(b.graph())
    writer.write(network.graph, path)
    return network, path, b.input(2)


@pytest.mark.parametrize("core", [pytest.param(name, marks=needs(name)) for name in boards.BOARDS])
def test_a_core_computes_the_reference(core, exported):
    network, path, x = exported
    report = lowbit.verify(network, path, [x], board=core)
    assert report.ok and report.samples == 2, report.text()


@needs("cortex-m0")
@pytest.mark.parametrize("rounding", ["fixed16", "double-rounding", "single-rounding"])
def test_a_core_without_wide_products_in_other_roundings(rounding, tmp_path):
    b = resnet_like(3, 4, size=8)
    network, path = IntegerNetwork(b.graph()), tmp_path / "net.c"
    writer.write(network.graph, path, rounding)
    assert lowbit.verify(network, path, [b.input(2)], board="cortex-m0").ok
    assert boards.measure(path, network.graph, "cortex-m0", tmp_path).selftest == 0


@needs("cortex-m4")
def test_what_it_takes_is_what_the_header_says(exported, tmp_path):
    network, path, _ = exported
    found = boards.measure(path, network.graph, "cortex-m4", tmp_path)
    says = writer.footprint(network.graph)
    assert found.selftest == 0 and found.ram == says.ram and found.stack < interface.STACK
    assert abs(found.code + found.constants - says.flash) < 0.25 * says.flash
    macs = sum(row.macs for row in network.costs())
    assert macs < found.instructions < 20 * macs


@needs("cortex-m4")
def test_a_changed_file_shows_on_a_board(exported, tmp_path):
    network, path, x = exported
    text = path.read_text()
    (tmp_path / "net.h").write_bytes(path.with_suffix(".h").read_bytes())
    (tmp_path / "net.c").write_text(text.replace(".y_zero = 30", ".y_zero = 31", 1))
    report = lowbit.verify(network, tmp_path / "net.c", [x], board="cortex-m4")
    assert not report.ok and report.first_difference == "n1.Convolution"


def test_what_is_missing_is_named(exported, monkeypatch, tmp_path):
    network, path, x = exported
    with pytest.raises(LowbitError, match=r"unknown board 'cortex-m9': known are cortex-m0, cortex-m3"):
        lowbit.verify(network, path, [x], board="cortex-m9")
    network.save(tmp_path / "net.safetensors")
    with pytest.raises(LowbitError, match="a lowbit file does not run on a board"):
        lowbit.verify(network, tmp_path / "net.safetensors", [x], board="cortex-m4")
    monkeypatch.setattr(boards.shutil, "which", lambda name: None)
    words = r"needs arm-none-eabi-gcc and qemu-system-arm.*apt-get install --no-install-recommends qemu-system-arm"
    with pytest.raises(LowbitError, match=words):
        lowbit.verify(network, path, [x], board="cortex-m4")


def test_more_than_a_microcontroller_has_is_refused(tmp_path):
    network = IntegerNetwork(resnet_like(0, 4).graph())
    says = FORMATS["c"].footprint(network.graph)
    for memory, words in (({"max_ram": says.ram - 1}, "RAM"), ({"max_flash": says.flash - 1}, "flash")):
        with pytest.raises(LowbitError, match=rf"bytes of {words}, and there are .*most of them for n\d+\.\w+ \(\d"):
            lowbit.export(network, tmp_path / "net.c", "c", **memory)
    with pytest.raises(LowbitError, match="a lowbit file is for no microcontroller"):
        lowbit.export(network, tmp_path / "net.safetensors", "lowbit", max_ram=10_000)
    assert not list(tmp_path.iterdir())
    assert lowbit.export(network, tmp_path / "net.c", "c", max_ram=says.ram, max_flash=says.flash).ok


def test_options_of_the_command_line(capsys):
    for command, options in (("export", ("--max-ram", "--max-flash")), ("verify", ("--board",))):
        with contextlib.suppress(SystemExit):
            main([command, "--help"])
        text = capsys.readouterr().out
        assert all(option in text for option in options)
