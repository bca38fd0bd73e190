"""Tiny shards for the tests of this folder."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from lowbit.data import DataConfig


def digit_files() -> list[tuple[bytes, int]]:
    """(PNG of 8x8 grey pixels, label) of scikit-learn's digits."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    files = []
    for pixels, label in zip(np.rint(digits.images * (255 / 16)).astype(np.uint8), digits.target):
        buffer = io.BytesIO()
        PIL.Image.fromarray(pixels).save(buffer, "png")
        files.append((buffer.getvalue(), int(label)))
    return files


def write_shard(path: Path, samples: Sequence[dict[str, bytes]], *, first: int = 0) -> None:
    """A tar file; each sample is {extension: bytes}, named by its number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number, parts in enumerate(samples, first):
            for extension, content in parts.items():
                member = tarfile.TarInfo(f"images/{number:06d}.{extension}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def write_split(folder: Path, split: str, lengths: Sequence[int], files: Sequence[tuple[bytes, int]]) -> None:
    """Shards of these lengths, `folder/<split>-00000i.tar`, of the first files."""
    start = 0
    for number, length in enumerate(lengths):
        part = files[start : start + length]
        samples = [{"png": image, "cls": str(label).encode(), "json": b"{}"} for image, label in part]
        write_shard(folder / f"{split}-{number:06d}.tar", samples, first=start)
        start += length


def write_index(folder: Path, splits: dict[str, Sequence[int]], **more: object) -> None:
    """An index in the hub's form, written by hand."""
    entries = {
        split: {
            "name": split,
            "num_samples": sum(lengths),
            "filenames": [f"{split}-{i:06d}.tar" for i in range(len(lengths))],
            "shard_lengths": list(lengths),
        }
        for split, lengths in splits.items()
    }
    (folder / "_info.json").write_text(json.dumps({"name": "digits", "splits": entries, **more}))


def config_of(folder: Path, **changes: Any) -> DataConfig:
    """Shards of grey 8x8 images, read as they are."""
    plain = dict(augment="imagenet-crop", image_size=8, channels=1, mean=(0.0,), std=(1.0,), workers=0)
    return DataConfig(str(folder), **plain | {"batch_size": 16, "eval_batch_size": 10} | changes)


def broken_shard(folder: Path, files: Sequence[tuple[bytes, int]], **changes: dict[str, bytes]) -> None:
    """Ten good samples but for those given by number."""
    samples = [{"png": image, "cls": str(label).encode()} for image, label in files[:10]]
    for number, parts in changes.items():
        samples[int(number[1:])] = parts
    write_shard(folder / "test-000000.tar", samples)
    write_index(folder, {"test": (10,)}, num_classes=10)
