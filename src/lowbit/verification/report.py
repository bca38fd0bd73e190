"""What a comparison found: a row per tensor, and what follows from them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Row:
    """One tensor of the network: the file's (`file_…`) and the trained model's (`trained_…`) codes against the reference's.

    compared: codes of the reference, over all batches. differ: how many differ. largest: the largest difference, in codes (in
    real units for a float output). Both are None where there was nothing to compare with: no trained model, or a tensor that
    the file does not show (an ExecuTorch file shows its output alone).
    conversion_differ: how many elements the trained network's own operations would not give, from the same codes before them; None
    where none was found, or none was looked for.
    is_float: the tensor is the network's float output, not codes.
    """

    name: str
    is_float: bool = False
    compared: int = 0
    file_differ: int | None = None
    file_largest: float | None = None
    trained_differ: int | None = None
    trained_largest: float | None = None
    conversion_differ: int | None = None


@dataclass
class Report:
    """What a comparison found.

    rows: one per tensor, in the network's order; the last is the output. samples: images seen.
    top1: per column ("reference", "file", "trained", "fixed") the images classified right, None without labels.
    agree: per column other than the reference, on how many images the largest output is the reference's.
    reference: what the others are compared with.
    proved: whether every node of the reference was compared with the trained network's own operations.
    """

    rows: list[Row]
    samples: int
    top1: dict[str, int] | None
    agree: dict[str, int]
    reference: str = "the integer reference"
    proved: bool = False

    @property
    def ok(self) -> bool:
        """Whether the file computes exactly what the reference does, and (if proved) the reference what the trained network does."""
        return self.compared > 0 and self.differ == 0 and self.conversion_differ == 0

    @property
    def conversion_differ(self) -> int:
        """How many elements the trained network's own operations would not give, from the same codes before them."""
        return sum(row.conversion_differ or 0 for row in self.rows)

    @property
    def compared(self) -> int:
        """How many codes of the file were compared."""
        return sum(row.compared for row in self.rows if row.file_differ is not None)

    @property
    def differ(self) -> int:
        """How many of them differ from the reference's."""
        return sum(row.file_differ or 0 for row in self.rows)

    @property
    def parts_at(self) -> str | None:
        """The first layer at which the file parts from the reference."""
        return next((row.name for row in self.rows if row.file_differ), None)

    @property
    def conversion_parts_at(self) -> str | None:
        """The first tensor that the trained network's own operations would not give."""
        return next((row.name for row in self.rows if row.conversion_differ), None)

    @property
    def trained_parts_at(self) -> str | None:
        """The first layer at which the trained model parts from the reference."""
        return next((row.name for row in self.rows if row.trained_differ and not row.is_float), None)

    def text(self) -> str:
        """The table and what follows from it, for a terminal."""
        trained = any(row.trained_differ is not None for row in self.rows)
        head = ["layer", "codes", "file differs", "largest"] + (["trained differs", "largest"] if trained else [])
        lines = [head]
        for row in self.rows:
            cells = [row.name, f"{row.compared:,}"]
            cells += ["-", "-"] if row.file_differ is None else [f"{row.file_differ:,}", f"{row.file_largest:g}"]
            if trained and row.trained_differ is not None:
                cells += [f"{row.trained_differ:,}", f"{row.trained_largest:g}"]
            lines.append(cells + [""] * (len(head) - len(cells)))
        widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
        out = [
            "  ".join(c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(line, widths))).rstrip()
            for line in lines
        ]
        out.append(f"file: {self.differ:,} of {self.compared:,} codes differ from {self.reference}")
        hidden = sum(row.file_differ is None for row in self.rows)
        if hidden:
            out.append(f"file: does not show {hidden} of {len(self.rows)} tensors; they were not compared")
        if self.parts_at is not None:
            out.append(f"file: first differs at {self.parts_at}")
        if trained:
            # A float output differs in its last digits wherever summation order does: not a matter of codes.
            rows = [row for row in self.rows if row.trained_differ is not None and not row.is_float]
            compared, differ = sum(row.compared for row in rows), sum(row.trained_differ or 0 for row in rows)
            out.append(f"trained: {differ:,} of {compared:,} codes differ from the integer reference")
            if self.trained_parts_at is not None:
                out.append(f"trained: first differs at {self.trained_parts_at}")
        if self.proved:
            where = "" if self.conversion_parts_at is None else f", first at {self.conversion_parts_at}"
            out.append(
                f"conversion: {self.conversion_differ:,} values differ from the trained network's own operations{where}"
            )
        for column, count in self.agree.items():
            out.append(f"{column}: same top-1 as the reference on {count:,} of {self.samples:,}")
        for column, count in (self.top1 or {}).items():
            out.append(f"{column}: top-1 {100 * count / max(self.samples, 1):.2f} %")
        return "\n".join(out)
