"""Trained integer networks: those that come with lowbit, by name, and those in a file.

Each is a file of the format "lowbit" in this package, with its hash here. How it was trained is in the file
(`IntegerNetwork.metadata`) and in docs/results/accuracy.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lowbit.errors import LowbitError, did_you_mean
from lowbit.files import check_readable, sha256
from lowbit.formats import json as json_format
from lowbit.integer import file
from lowbit.integer.network import IntegerNetwork

_FOLDER = Path(__file__).parent / "shipped"


@dataclass(frozen=True)
class Shipped:
    """A network that comes with lowbit.

    Attributes:
        sha256: of its file.
        test: accuracy in percent on the 10,000 test images, of the integer network.
        cell: the run it is from, in docs/results/accuracy.
        origin: SHA-256 of the weights in full precision that training started from, in docs/results/accuracy/weights.
    """

    sha256: str
    test: float
    cell: str
    origin: str


_RESNET8 = "24bdaa08ba23e264fa0afdf58f5710ee47ba82a0094e13edf2f011f189350237"
_RESNET20 = "513972532a4f55ac91f4c7a38ef4d028f5488e7d8e50bb960e9c61f6a218bbcf"

SHIPPED: dict[str, Shipped] = {
    "resnet8-cifar10jpeg-w2a2": Shipped(
        "d049a6fbe8694edc218ae97f93f86380b7409ffd490f996bebe6917817303a71",
        78.43,
        "ship/resnet8-w2a2-integer-only@0.05-18ep-s0",
        _RESNET8,
    ),
    "resnet8-cifar10jpeg-w3a3": Shipped(
        "dce1cfbda1b03c27726f451bfff746127952606fbe72306493b0bd8917a82626",
        80.83,
        "ship/resnet8-w3a3-integer-only@0.05-18ep-s0",
        _RESNET8,
    ),
    "resnet8-cifar10jpeg-w4a4": Shipped(
        "5ee775f4081fa7e7cdac21a4dd39e4852fe145cda847b06bfb82b53f0fb63bee",
        81.67,
        "ship/resnet8-w4a4-integer-only@0.05-18ep-s0",
        _RESNET8,
    ),
    "resnet20-cifar10jpeg-w2a2": Shipped(
        "5aefb6f7915abfd0e37dd5d04c491de6b880cc09fcd57be5a587c1913674d7e4",
        85.26,
        "ship/cifar-resnet20-w2a2-integer-only, distilled-40ep-s0",
        _RESNET20,
    ),
    "resnet20-cifar10jpeg-w3a3": Shipped(
        "e4528af76e2ae98b8393b8d3eefe5585e24bf0bcc20213d6a0845e11359020c0",
        85.94,
        "ship/cifar-resnet20-w3a3-integer-only-3ep-s0",
        _RESNET20,
    ),
    "resnet20-cifar10jpeg-w4a4": Shipped(
        "6bf7b2505bc271a5438d657524137c50971c7a0110ad39b565f5bebaa00d1cf4",
        87.27,
        "ship/cifar-resnet20-w4a4-integer-only-3ep-s0",
        _RESNET20,
    ),
}
"""The networks that come with lowbit. Their images are those of CIFAR-10 stored as JPEG."""


def path_of(name: str) -> Path:
    """The file of a network that comes with lowbit.

    Raises:
        LowbitError: there is none of that name; the message names the close ones.
    """
    if name not in SHIPPED:
        raise LowbitError(
            f"no file and no network that comes with lowbit: {name!r}.{did_you_mean(name, SHIPPED)} "
            f"Known are {', '.join(SHIPPED) or 'none'}"
        )
    return _FOLDER / f"{name}.safetensors"


def load(what: str | Path) -> IntegerNetwork:
    """An integer network, by the name of one that comes with lowbit or by the path of a file ("lowbit" or "json").

    Raises:
        LowbitError: no such file or name, a file that holds no integer network, or one of lowbit's own that was
            altered.
    """
    if Path(what).is_file():
        path = Path(what)
        check_readable(path)
        with open(path, "rb") as opened:
            is_json = json_format.FORMAT.recognizes(opened.read(9))
        return IntegerNetwork((json_format.load if is_json else file.load)(path))
    path = path_of(str(what))
    check_readable(path)
    if sha256(path) != SHIPPED[str(what)].sha256:
        raise LowbitError(f"{path}: not the file that came with lowbit; install lowbit again")
    return IntegerNetwork.load(path)
