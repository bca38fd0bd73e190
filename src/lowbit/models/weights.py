"""A network's weights in a file: written with a checksum, and read with every check that the file's format allows."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lowbit.checksum import checksum
from lowbit.errors import LowbitError
from lowbit.files import check_place, check_readable
from lowbit.layers.sites import upgrade_names
from lowbit.quantizer.state import QuantizerState

if TYPE_CHECKING:
    from collections.abc import Iterator

_CHECKSUM = "lowbit.sha256"
_ZIP = b"PK\x03\x04"


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Copy the tensors of a file into a network, all of them and no others.

    Takes safetensors (`.safetensors`) and what `torch.save` wrote of a state dict (`.pt`, `.pth`, `.bin`; read
    without running code from it), also of version 0.1.0. Only batch-norm's counters `num_batches_tracked` may be
    absent.

    A file of `save_weights` is checked against its checksum, and one of `torch.save` against those of the zip archive
    that it is; other safetensors, and what torch before 1.6 wrote, have none.

    Raises:
        LowbitError: no such file, not of these formats, damaged, or with other names or shapes than the network's, or
            values that are not finite.
    """
    path = Path(path)
    found = _read_tensors(path)
    upgrade_names(model, found)
    units = set()  # of steps, which a quantizer has or not by its initial step, and takes from the file
    for name, module in model.named_modules():
        if isinstance(module, QuantizerState):
            module.upgrade(found, f"{name}.")
            units.add(f"{name}.step_unit")
    wanted = model.state_dict()
    missing = [
        key for key in wanted if key not in found and key not in units and not key.endswith("num_batches_tracked")
    ]
    unexpected = [key for key in found if key not in wanted and key not in units]
    shapes = [
        f"{key} {tuple(found[key].shape)} for {tuple(wanted[key].shape)}"
        for key in wanted
        if key in found and found[key].shape != wanted[key].shape
    ]
    problems = [
        f"{what} {', '.join(keys[:3])}{f' and {len(keys) - 3} more' if len(keys) > 3 else ''}"
        for what, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if keys
    ]
    if problems:
        raise LowbitError(
            f"{path}: not weights of this {type(model).__name__}: {'; '.join(problems)}; "
            "give the weights of the same network with the same number of classes"
        )
    broken = next(_not_finite(found, wanted), None)
    if broken is not None:
        raise LowbitError(
            f"{path}: {broken} holds NaN or infinity; the file is damaged, or its training has diverged: give other "
            "weights"
        )
    try:
        model.load_state_dict(found, strict=False)
    except RuntimeError as error:  # what a layer refuses by itself, such as a quantizer of other bits
        raise LowbitError(f"{path}: {error}") from error


def save_weights(tensors: dict[str, Tensor], path: str | Path, about: dict[str, str] | None = None) -> None:
    """Write tensors, no two of which may share memory, as safetensors, with a checksum that `load_weights` looks at.

    Args:
        tensors: by their names.
        path: the file to write.
        about: metadata for the header; `saved_about` reads it.

    Raises:
        OSError, safetensors.SafetensorError: the file cannot be written.
    """
    import safetensors.torch

    about = about or {}
    header = {**about, _CHECKSUM: checksum(_canonical(about), tensors)}
    safetensors.torch.save_file(tensors, path, metadata=header)


def saved_about(path: str | Path) -> dict[str, str]:
    """What the header of a safetensors file says of it, without its checksum.

    Raises:
        LowbitError: the file cannot be read.
    """
    header = _read_safetensors(Path(path), tensors=False)[1]
    return {key: value for key, value in header.items() if key != _CHECKSUM}


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its kind where it has none."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def _not_finite(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> Iterator[str]:
    """Names of tensors with NaN or infinity, in the network's type, where a new network has none (masks have)."""
    for name, value in found.items():
        there = wanted.get(name, value)  # a unit of steps that the network has none of yet
        if there.is_floating_point() and bool((~value.to(there).isfinite() & there.isfinite()).any()):
            yield name


def _read_tensors(path: Path) -> dict[str, Tensor]:
    check_place(path)
    if not path.exists():
        raise LowbitError(f"weights {path} does not exist")
    check_readable(path)
    if path.suffix == ".safetensors":
        tensors, header = _read_safetensors(path)
        about = {key: value for key, value in header.items() if key != _CHECKSUM}
        if _CHECKSUM in header and header[_CHECKSUM] != checksum(_canonical(about), tensors):
            raise LowbitError(f"{path}: the checksum does not fit: the file was damaged or changed; take another copy")
        return tensors
    if path.suffix not in (".pt", ".pth", ".bin"):
        raise LowbitError(f"{path}: weights must be a .safetensors, .pt, .pth or .bin file")
    _check_archive(path)
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises KeyError, EOFError, UnpicklingError, RuntimeError and more
        raise LowbitError(
            f"{path}: not a file of tensors ({first_line(error)}); save a state dict, not a whole module"
        ) from error
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise LowbitError(f"{path}: holds no state dict (a dict of tensors by name)")
    return tensors


def _read_safetensors(path: Path, *, tensors: bool = True) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors, or none of them, and metadata."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in (file.keys() if tensors else ())}, file.metadata() or {}
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise LowbitError(f"{path}: not a readable safetensors file ({first_line(error)})") from error


def _check_archive(path: Path) -> None:
    """Compare the checksums of a zip archive, at which torch does not look."""
    with open(path, "rb") as file:
        if file.read(len(_ZIP)) != _ZIP:  # the format of torch before 1.6
            return
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except Exception as error:  # BadZipFile, RuntimeError, NotImplementedError, zlib.error, EOFError, …
        raise LowbitError(f"{path}: not a whole file of torch.save ({first_line(error)}); take another copy") from error
    if damaged is not None:
        raise LowbitError(f"{path}: the checksum of {damaged} does not fit: the file was damaged; take another copy")


def _canonical(about: dict[str, str]) -> str:
    return json.dumps(about, sort_keys=True)
