"""Which format has a form of which operation, as the table that docs/integer.md shows.

python -m lowbit.formats.coverage prints it.
"""

from __future__ import annotations

from lowbit.formats import FORMATS
from lowbit.integer.ops import OPERATIONS


def table() -> str:
    """A Markdown table: a row per operation, a column per format."""
    head = f"| operation | {' | '.join(FORMATS)} |"
    rows = [
        f"| {name} | {' | '.join('yes' if format.covers(kind) else 'no' for format in FORMATS.values())} |"
        for name, kind in OPERATIONS.items()
    ]
    return "\n".join([head, f"|---|{'---|' * len(FORMATS)}", *rows])


if __name__ == "__main__":
    print(table())
