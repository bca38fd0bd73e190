"""The result of a comparison: a row per tensor, and what follows from the rows."""

from __future__ import annotations

from dataclasses import dataclass

from lowbit._deprecated import renamed_property
from lowbit._table import aligned


@dataclass
class Row:
    """One tensor of the network: the codes of the file and of the trained model against those of the reference.

    Attributes:
        name: the tensor's name in the integer graph.
        is_float: whether the tensor is a float output of the network, not codes.
        compared: the number of the reference's codes, over all batches.
        file_differ: how many codes of the file differ; None where the file does not show the tensor (an ExecuTorch file
            shows its output alone).
        file_largest: the largest difference, in codes (in real units for a float output); None likewise.
        trained_differ: how many codes of the trained model differ; None where there was no trained model.
        trained_largest: the largest difference; None likewise.
        conversion_differ: how many elements the trained network's own operations would not give, from the same codes
            before them; None where there are none, or no proof was asked for.
        local_differ: how many codes of the trained model are others than the reference computes from the trained
            model's codes before them: ties, which the two round apart; None likewise. The rest of `trained_differ` is
            what follows from these.
    """

    name: str
    is_float: bool = False
    compared: int = 0
    file_differ: int | None = None
    file_largest: float | None = None
    trained_differ: int | None = None
    trained_largest: float | None = None
    conversion_differ: int | None = None
    local_differ: int | None = None


@dataclass
class Report:
    """The result of a comparison; `text` prints it.

    Attributes:
        rows: one per tensor, in the network's order; the last is the output.
        samples: the number of samples that were compared.
        top1: for each column ("reference", "file", "trained", "fixed") the number of samples that are classified
            correctly; None without labels.
        agree: for each column but the reference, the number of samples with the same top-1 as the reference.
        reference: what the others are compared with, in words.
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
        """Whether the file computes exactly what the reference does.

        If proved, also whether the reference computes what the trained network does.
        """
        return self.compared > 0 and self.differ == 0 and self.conversion_differ == 0

    @property
    def conversion_differ(self) -> int:
        """How many elements the trained network's own operations would not give, from the same codes before them."""
        return sum(row.conversion_differ or 0 for row in self.rows)

    @property
    def local_differ(self) -> int:
        """How many codes of the trained model the reference does not compute from the same codes before them."""
        return sum(row.local_differ or 0 for row in self.rows)

    @property
    def compared(self) -> int:
        """How many codes of the file were compared."""
        return sum(row.compared for row in self.rows if row.file_differ is not None)

    @property
    def differ(self) -> int:
        """How many of them differ from the reference's."""
        return sum(row.file_differ or 0 for row in self.rows)

    @property
    def first_difference(self) -> str | None:
        """The first tensor at which the file differs from the reference."""
        return next((row.name for row in self.rows if row.file_differ), None)

    @property
    def first_conversion_difference(self) -> str | None:
        """The first tensor that the trained network's own operations would not give."""
        return next((row.name for row in self.rows if row.conversion_differ), None)

    @property
    def first_trained_difference(self) -> str | None:
        """The first tensor of codes at which the trained model differs from the reference."""
        return next((row.name for row in self.rows if row.trained_differ and not row.is_float), None)

    parts_at = renamed_property("Report", "parts_at", "first_difference")
    conversion_parts_at = renamed_property("Report", "conversion_parts_at", "first_conversion_difference")
    trained_parts_at = renamed_property("Report", "trained_parts_at", "first_trained_difference")

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
        out = [aligned(lines)]
        out.append(f"file: {self.differ:,} of {self.compared:,} codes differ from {self.reference}")
        hidden = sum(row.file_differ is None for row in self.rows)
        if hidden:
            out.append(f"file: does not show {hidden} of {len(self.rows)} tensors; they were not compared")
        if self.first_difference is not None:
            out.append(f"file: first differs at {self.first_difference}")
        if trained:
            # A float output differs in its last digits wherever summation order does: not a matter of codes.
            rows = [row for row in self.rows if row.trained_differ is not None and not row.is_float]
            compared, differ = sum(row.compared for row in rows), sum(row.trained_differ or 0 for row in rows)
            out.append(f"trained: {differ:,} of {compared:,} codes differ from the integer reference")
            if differ and self.proved:
                out.append(f"trained: {self.local_differ:,} differ from the same codes before them, the others behind")
            if self.first_trained_difference is not None:
                out.append(f"trained: first differs at {self.first_trained_difference}")
        if self.proved:
            where = "" if self.first_conversion_difference is None else f", first at {self.first_conversion_difference}"
            out.append(
                f"conversion: {self.conversion_differ:,} values differ from the trained network's own operations{where}"
            )
        for column, count in self.agree.items():
            out.append(f"{column}: same top-1 as the reference on {count:,} of {self.samples:,}")
        for column, count in (self.top1 or {}).items():
            out.append(f"{column}: top-1 {100 * count / max(self.samples, 1):.2f} %")
        return "\n".join(out)
