"""Exported C on microcontrollers' cores: cross-compiled, and run on a board that QEMU emulates.

QEMU shows that the bits are the same, and counts instructions; it knows nothing of cycles or time.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lowbit.errors import LowbitError
from lowbit.formats.c.interface import inputs_of, outputs_of
from lowbit.formats.c.runner import FLAGS, CRunner, checked_name, compile_files, filled
from lowbit.integer.graph import Graph

_LOOPS = 1_000_000  # of two instructions, in counter.c
_MEGA = 1 << 20


@dataclass(frozen=True)
class Board:
    """A core, and the machine that QEMU puts it on.

    Attributes:
        compiler, emulator: the programs.
        options: of the compiler, for the core.
        machine: of the emulator, with its options.
        flash, ram: (address, bytes).
        packages: Debian's names of what is needed.
    """

    compiler: str
    options: tuple[str, ...]
    emulator: str
    machine: tuple[str, ...]
    flash: tuple[int, int]
    ram: tuple[int, int]
    packages: str

    def compile_command(self) -> list[str]:
        """The compiler for a program that runs on the bare board, with the emulated machine's files and text."""
        (flash, flash_size), (ram, ram_size) = self.flash, self.ram
        sizes = {"flash": flash, "flash_size": flash_size, "ram": ram, "ram_size": ram_size, "stack_size": 8192}
        symbols = [f"-Wl,--defsym=__{name}={value:#x}" for name, value in sizes.items()]
        specs = ["--specs=picolibc.specs", "--oslib=semihost", "--crt0=hosted", "-T", "picolibc.ld"]
        return [self.compiler, *specs, *self.options, *symbols]

    def run_command(self, program: Path) -> list[str]:
        """The emulator with a program."""
        semihosting = ["-semihosting-config", "enable=on,target=native"]
        return [self.emulator, *self.machine, "-nographic", "-monitor", "none", *semihosting, "-kernel", str(program)]


def _arm(cpu: str, machine: str, flash: tuple[int, int], ram: tuple[int, int], *options: str) -> Board:
    packages = "qemu-system-arm gcc-arm-none-eabi libnewlib-arm-none-eabi picolibc-arm-none-eabi"
    return Board(
        "arm-none-eabi-gcc", (f"-mcpu={cpu}", "-mthumb"), "qemu-system-arm", ("-M", machine, *options), flash, ram,
        packages
    )  # fmt: skip


_RAM = 0x20000000
BOARDS = {
    # A micro:bit has 256 kB of flash and 16 kB of RAM; here it gets more of both, for the networks that need them.
    "cortex-m0": _arm(
        "cortex-m0", "microbit", (0, _MEGA), (_RAM, _MEGA),
        "-global", f"nrf51-soc.sram-size={_MEGA}", "-global", f"nrf51-soc.flash-size={_MEGA}",
    ),
    "cortex-m3": _arm("cortex-m3", "mps2-an385", (0, 4 * _MEGA), (_RAM, 4 * _MEGA)),
    "cortex-m4": _arm("cortex-m4", "mps2-an386", (0, 4 * _MEGA), (_RAM, 4 * _MEGA)),
    "cortex-m7": _arm("cortex-m7", "mps2-an500", (0, 4 * _MEGA), (_RAM, 4 * _MEGA)),
    "cortex-m33": _arm("cortex-m33", "mps2-an505", (0x10000000, 4 * _MEGA), (0x38000000, 2 * _MEGA)),
    "cortex-m55": _arm("cortex-m55", "mps3-an547", (0, _MEGA // 2), (_RAM, _MEGA // 2)),
    "rv32": Board(
        "riscv64-unknown-elf-gcc", ("-march=rv32imac", "-mabi=ilp32"), "qemu-system-riscv32",
        ("-M", "virt", "-bios", "none"), (0x80000000, 4 * _MEGA), (0x80400000, 4 * _MEGA),
        "qemu-system-misc gcc-riscv64-unknown-elf picolibc-riscv64-unknown-elf",
    ),
}  # fmt: skip
"""Every board by the name of its core."""


def get_board(name: str) -> Board:
    """The board of that name. Raises LowbitError for an unknown one, or where its compiler or emulator is missing."""
    if name not in BOARDS:
        raise LowbitError(f"unknown board {name!r}: known are {', '.join(BOARDS)}")
    board = BOARDS[name]
    missing = [program for program in (board.compiler, board.emulator) if shutil.which(program) is None]
    if missing:
        raise LowbitError(
            f"board {name} needs {' and '.join(missing)}, not installed here; on Debian and Ubuntu: "
            f"apt-get install --no-install-recommends {board.packages}"
        )
    return board


class BoardRunner(CRunner):
    """A C file that was compiled for a board, and runs in the emulator; arguments and errors as `CRunner`.

    Args:
        board: a name in `BOARDS`.
    """

    def __init__(self, path: Path, graph: Graph, board: str) -> None:
        self._board = get_board(board)
        super().__init__(path, graph, self._board.compile_command(), FLAGS)

    def command(self) -> list[str]:
        return self._board.run_command(self.program)


@dataclass(frozen=True)
class Measured:
    """What one inference takes on a core.

    Attributes:
        instructions: executed by net_run.
        stack: bytes that it writes below its caller's frame.
        selftest: what net_selftest returns.
        code, constants: bytes of net.c compiled without floats and self-test: instructions; weights and all other
        constants.
        ram: bytes of its static memory.
    """

    instructions: int
    stack: int
    selftest: int
    code: int
    constants: int
    ram: int


def measure(path: Path, graph: Graph, board: str, folder: Path) -> Measured:
    """Count what one inference of a C file takes on a board's core. Raises LowbitError as `BoardRunner`.

    Args:
        path: net.c; net.h lies beside it.
        graph: what it was written from.
        board: a name in `BOARDS`.
        folder: for the programs that are made.
    """
    machine, (name, _) = get_board(board), checked_name(path, graph)
    ports = (*inputs_of(graph), *outputs_of(graph))
    text = filled("counter.c", {
        "header": path.with_suffix(".h").name, "name": name, "arguments": ", ".join(port.variable for port in ports),
        "buffers": "\n".join(f"static {port.type_name(name)} {port.variable}[{port.count}];" for port in ports),
    })  # fmt: skip
    (folder / "counter.c").write_text(text)
    program, options = folder / f"{board}.elf", [*machine.compile_command(), "-std=gnu99", "-O2", f"-I{path.parent}"]
    compile_files(path, [*options, str(path), str(folder / "counter.c"), "-o", str(program)])
    command = machine.run_command(program)
    done = _run([*command, "-icount", "shift=0"], folder)
    try:
        calibration, ticks, stack, selftest = map(int, done.split())
    except ValueError as error:
        raise LowbitError(f"{path}: {machine.emulator} does not count: {done!r:.200}") from error
    return Measured(round(ticks * 2 * _LOOPS / calibration), stack, selftest, *_sizes(path, machine, name, folder))


def _run(command: Sequence[str], folder: Path) -> str:
    done = subprocess.run(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, stdin=subprocess.DEVNULL
    )
    return done.stdout


def _sizes(path: Path, board: Board, name: str, folder: Path) -> tuple[int, int, int]:
    """(code, constants, static memory) of the object file in bytes."""
    target, upper = folder / "network.o", name.upper()
    flags = ["-std=c99", "-O2", f"-D{upper}_NO_FLOAT", f"-D{upper}_NO_SELFTEST", "-c", str(path), "-o", str(target)]
    compile_files(path, [board.compiler, "--specs=picolibc.specs", *board.options, *flags])
    listed = _run([board.compiler.replace("gcc", "size"), "-A", str(target)], folder)
    sizes = [line.split() for line in listed.splitlines() if line.startswith(".")]

    def total(*sections: str) -> int:
        return sum(int(size) for section, size, *_ in sizes if section.startswith(sections))

    return total(".text"), total(".rodata", ".srodata", ".data.rel.ro"), total(".bss", ".sbss")
