"""Tiny data sets for the tests of this folder."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq


def encoded(value: int, *, size: tuple[int, int] = (8, 8)) -> bytes:
    """A PNG of one grey, 20·value; `size` is (height, width)."""
    buffer = io.BytesIO()
    PIL.Image.fromarray(np.full((*size, 3), 20 * value, dtype=np.uint8)).save(buffer, "png")
    return buffer.getvalue()


def write_folder(root: Path, splits: dict[str, dict[str, int]], *, size: tuple[int, int] = (8, 8)) -> None:
    """`root/<split>/<class>/<i>.png` with so many images of each class; image i is of grey 20·i."""
    for split, classes in splits.items():
        for name, count in classes.items():
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                (folder / f"{i}.png").write_bytes(encoded(i, size=size))


def write_parquet(
    path: Path,
    images: Sequence[bytes],
    labels: Sequence[int],
    *,
    column: str = "img",
    row_group_size: int = 4,
    class_names: list[str] | None = None,
) -> None:
    """A parquet file in the hub's layout."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = pa.array(
        [{"bytes": image, "path": f"{i}.png"} for i, image in enumerate(images)],
        type=pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    )
    labels = pa.array(list(labels), **({} if len(labels) else {"type": pa.int64()}))
    table = pa.table({column: rows, "label": labels})
    if class_names:
        features = {column: {"_type": "Image"}, "label": {"names": class_names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, row_group_size=row_group_size)
