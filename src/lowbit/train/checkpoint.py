"""Checkpoints without pickle, replaced so that a killed process leaves the old pair of `last` and `best` or the new one.

    checkpoints/
      checkpoints.json        {"last": "epoch-0003", "best": "epoch-0002", "files": …, "sha256": …}: the one file that decides
      epoch-0003/             model.safetensors, training.safetensors, training.json
      epoch-0002/

A new folder is complete before `checkpoints.json` names it, and an old one is removed only after nothing names it.
"files" has the SHA-256 of every file of the checkpoints, and "sha256" is that of the rest of `checkpoints.json`, so that
no damaged file is trained on or evaluated. `model.safetensors`, which may be taken out and used elsewhere, has one of its
tensors in its own header as well (`lowbit.models.save_weights`).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from lowbit.errors import LowbitError
from lowbit.files import atomic_write, check_readable, read_json, remove_leftovers, sha256
from lowbit.models import save_weights

_NAME = re.compile(r"epoch-\d+(-batch-\d+)?|final")
_OURS = re.compile(rf"({_NAME.pattern})(\.tmp)?")
"""Folders that `Checkpoints.save` may remove; others, such as a copy that someone keeps, stay."""
_FILES = ("model.safetensors", "training.json", "training.safetensors")

Which = Literal["last", "best"]


def pack(state: Any, tensors: dict[str, Tensor], name: str = "state") -> Any:
    """Split nested state into JSON data, which is returned, and tensors, which are put in `tensors` by name.

    Handles what optimizers keep: dicts with any plain keys, lists, tuples, tensors, numbers, strings, booleans, None.
    """
    if isinstance(state, Tensor):
        # A clone, because safetensors refuses tensors that share storage.
        tensors[name] = state.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"tensor": name}
    if isinstance(state, dict):
        return {"dict": [[key, pack(value, tensors, f"{name}.{key}")] for key, value in state.items()]}
    if isinstance(state, list | tuple):
        kind = "list" if isinstance(state, list) else "tuple"
        return {kind: [pack(value, tensors, f"{name}.{i}") for i, value in enumerate(state)]}
    if state is None or isinstance(state, bool | int | float | str):
        return state
    raise TypeError(f"{name}: a checkpoint holds tensors and plain values, not {type(state).__name__}")


def unpack(packed: Any, tensors: dict[str, Tensor]) -> Any:
    """The inverse of `pack`."""
    if not isinstance(packed, dict):
        return packed
    ((kind, value),) = packed.items()
    if kind == "tensor":
        return tensors[value]
    if kind == "dict":
        return {key: unpack(item, tensors) for key, item in value}
    items = [unpack(item, tensors) for item in value]
    return items if kind == "list" else tuple(items)


class Checkpoints:
    """The `checkpoints` folder of one run."""

    def __init__(self, run: Path) -> None:
        self.folder = run / "checkpoints"
        self.pointer = self.folder / "checkpoints.json"
        self.blocks = self.folder / "blocks.pt"
        """What a reconstruction has done, until there is a checkpoint of the whole (`lowbit.reconstruct`)."""

    @property
    def exists(self) -> bool:
        return self.pointer.exists()

    def save(
        self,
        name: str,
        model_state: dict[str, Tensor],
        training: dict[str, Any],
        about: dict[str, str] | None = None,
        *,
        best: bool,
    ) -> None:
        """Write a checkpoint, make it the last (and, if `best`, the best), and remove what neither name needs.

        `name` is epoch-NUMBER, epoch-NUMBER-batch-NUMBER in the middle of one, or final.

        `about` says which network it belongs to.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        pointer = self._pointer() if self.exists else _Pointer()
        temporary, final = self.folder / f"{name}.tmp", self.folder / name
        # Folders of these names, which nothing points to, are left from a killed process.
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            temporary.mkdir()
            _write(temporary, model_state, training, about)
            files = self._checksums(pointer) | {name: _checksums(temporary)}
            shutil.rmtree(final, ignore_errors=True)
            os.replace(temporary, final)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)  # half of it on a full disk would take the room of a whole one
        with atomic_write(self.pointer) as file:
            file.write_text(pointer.moved(name, files, best=best).text())
        self.tidy()

    def _checksums(self, pointer: _Pointer) -> dict[str, dict[str, str]]:
        """The checksums of every file that a pointer names."""
        if pointer.files is not None:
            return pointer.files
        return {name: _checksums(self.folder / name) for name in pointer.names.values()}

    def tidy(self) -> None:
        """Remove what neither name needs and what a killed process has left behind."""
        if not self.folder.is_dir():
            return
        names = self._pointer().names.values() if self.exists else ()
        remove_leftovers(self.folder)
        if self.exists:
            self.blocks.unlink(missing_ok=True)
        for path in self.folder.iterdir():
            if _OURS.fullmatch(path.name) and path.name not in names:
                shutil.rmtree(path)

    def weights(self, which: Which) -> Path:
        """The file with the network's tensors, its checksum looked at; `saved_about` tells what `save` got as `about`.

        Raises:
            LowbitError: the run has no checkpoint yet, or it is broken.
        """
        return self._file(which, "model.safetensors")

    def training_state(self) -> dict[str, Any]:
        """What `save` got as `training`, of the last checkpoint.

        Raises:
            LowbitError: there is no checkpoint, or it is broken.
        """
        plain = read_json(self._file("last", "training.json"))
        stored = self._file("last", "training.safetensors")
        try:
            return unpack(plain, safetensors.torch.load_file(stored))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError) as error:
            raise LowbitError(
                f"{stored.parent}: a broken checkpoint ({error!r}); start a new run in another folder"
            ) from error

    def _file(self, which: Which, name: str) -> Path:
        """A file of a checkpoint, after its checksum has been looked at."""
        if not self.exists:
            raise LowbitError(f"{self.folder.parent}: no checkpoint yet; train it, or give the folder of another run")
        pointer = self._pointer()
        folder = pointer.names[which]
        path = self.folder / folder / name
        check_readable(path)
        if pointer.files is not None and pointer.files[folder][name] != sha256(path):
            raise LowbitError(
                f"{path}: a broken checkpoint (its checksum does not fit): the file was damaged or changed; take a copy "
                "of the run's folder, or start a new run in another folder"
            )
        return path

    def _pointer(self) -> _Pointer:
        try:
            return _Pointer.read(read_json(self.pointer))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise LowbitError(
                f"{self.pointer}: not what training wrote ({error}): the file was damaged or changed; the run can be "
                "neither continued nor evaluated"
            ) from error


class _Pointer:
    """What `checkpoints.json` says.

    Attributes:
        names: the folders of "last" and "best".
        files: the SHA-256 of each file of each folder; None in a run of a version that wrote no checksums.
    """

    def __init__(self, names: dict[str, str] | None = None, files: dict[str, dict[str, str]] | None = None) -> None:
        self.names, self.files = names or {}, files

    @classmethod
    def read(cls, content: Any) -> _Pointer:
        """Raises ValueError, or what Python raises for JSON of another structure, unless it is what `text` wrote."""
        names = {which: content[which] for which in ("last", "best")}
        files = content.get("files")
        pointer = cls(names, files)
        if ("files" in content or "sha256" in content) and content != json.loads(pointer.text()):
            raise ValueError("its checksum does not fit")
        if any(
            not _NAME.fullmatch(name) or (files and sorted(files[name]) != sorted(_FILES)) for name in names.values()
        ):
            raise ValueError("it does not name a checkpoint and the checksums of its files")
        return pointer

    def moved(self, name: str, files: dict[str, dict[str, str]], *, best: bool) -> _Pointer:
        """The one after another checkpoint has been written; `files` has the checksums of its files and of the others'."""
        names = {"best": name} | self.names | {"last": name} | ({"best": name} if best else {})
        return _Pointer(names, {each: files[each] for each in sorted(set(names.values()))})

    def text(self) -> str:
        """JSON with a checksum of itself."""
        content = {**self.names, "files": self.files}
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        return json.dumps({**content, "sha256": digest}, indent=1) + "\n"


def _checksums(folder: Path) -> dict[str, str]:
    return {file: sha256(folder / file) for file in _FILES}


def _write(
    folder: Path, model_state: dict[str, Tensor], training: dict[str, Any], about: dict[str, str] | None
) -> None:
    """The files of a checkpoint, on disk when this returns: what is renamed next must not be older than its new name."""
    model_tensors: dict[str, Tensor] = {}
    for key, value in model_state.items():
        pack(value, model_tensors, key)
    save_weights(model_tensors, folder / "model.safetensors", about)
    tensors: dict[str, Tensor] = {}
    plain = pack(training, tensors)
    safetensors.torch.save_file(tensors, folder / "training.safetensors")
    (folder / "training.json").write_text(json.dumps(plain))
    for name in _FILES:
        with open(folder / name, "rb") as file:
            os.fsync(file.fileno())
