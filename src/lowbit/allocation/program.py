"""The choice of least expected loss within a budget, as an integer program that is solved exactly."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from lowbit.errors import LowbitError

Side = str
"""The name of a tensor whose bits are chosen: a layer's weight or the input of one layer or several."""
Bits = dict[Side, int]


@dataclass(frozen=True)
class Cost:
    """Something that a budget limits: the largest of several sums.

    Attributes:
        name: of the limit.
        sums: of each, (constant, its amount for each choice of a side, its amount for each choice of two sides
            together).
    """

    name: str
    sums: tuple[Sum, ...]

    def of(self, bits: Bits) -> float:
        """What it is for a choice."""
        return max(each.of(bits) for each in self.sums)


@dataclass(frozen=True)
class Sum:
    """constant + Σ single[side][bits of side] + Σ factor · bits of the one · bits of the other."""

    constant: float
    single: Mapping[Side, Mapping[int, float]]
    products: Mapping[tuple[Side, Side], float]

    def of(self, bits: Bits) -> float:
        """What it is for a choice."""
        singles = sum(amounts[bits[side]] for side, amounts in self.single.items())
        return self.constant + singles + sum(f * bits[a] * bits[b] for (a, b), f in self.products.items())


@dataclass(frozen=True)
class Program:
    """Sides, what each choice for them loses, and costs.

    Attributes:
        losses: of each side, by bits.
        costs: those that are limited or reported.
    """

    losses: Mapping[Side, Mapping[int, float]]
    costs: Mapping[str, Cost]

    def loss(self, bits: Bits) -> float:
        """What is expected to be lost."""
        return sum(self.losses[side][bits[side]] for side in self.losses)

    @property
    def widths(self) -> list[int]:
        """The numbers of bits that sides may have, the fewest first."""
        return sorted({bits for by_bits in self.losses.values() for bits in by_bits})

    def nearest(self, width: float) -> Bits:
        """The choice of each side that is nearest to a width: of two the fewer bits."""
        return {side: min(by, key=lambda bits: (abs(bits - width), bits)) for side, by in self.losses.items()}

    def solve(self, limits: Mapping[str, float]) -> Bits:
        """The choice that loses least within the limits.

        Raises:
            LowbitError: no choice is within them; the message has the least that each of those missed can be.
        """
        fewest = self.nearest(0)
        least = {name: self.costs[name].of(fewest) for name in limits}  # every cost grows with bits
        missed = [f"{name} is at least {least[name]:,.6g}" for name, limit in limits.items() if least[name] > limit]
        if missed:
            raise LowbitError(f"no choice of bits is within the budget: {'; '.join(missed)}. Allow more, or fewer bits")
        for margin in (0.0, 1e-7, 1e-5, 1e-3):
            # The solver's rows hold to a tolerance, a budget to the byte.
            found = self._solved({name: limit - margin * (limit - least[name]) for name, limit in limits.items()})
            if all(self.costs[name].of(found) <= limit * (1 + 1e-12) for name, limit in limits.items()):
                return found
        return fewest

    def _solved(self, limits: Mapping[str, float]) -> Bits:
        try:
            import numpy as np
            from scipy.optimize import Bounds, LinearConstraint, milp
            from scipy.sparse import coo_array
        except ImportError as error:
            raise LowbitError("allocating bits needs scipy: pip install 'lowbit[allocate]'") from error

        columns: dict[tuple[Side, int], int] = {}
        for side, by_bits in self.losses.items():
            for bits in by_bits:
                columns[side, bits] = len(columns)
        pairs: dict[tuple[tuple[Side, int], tuple[Side, int]], int] = {}
        rows: list[tuple[dict[int, float], float, float]] = []
        for side, by_bits in self.losses.items():
            rows.append(({columns[side, bits]: 1.0 for bits in by_bits}, 1.0, 1.0))

        def pair(a: Side, b: Side) -> dict[tuple[int, int], int]:
            """The columns that say that a has these bits and b those."""
            known = {(x, y): ((a, x), (b, y)) for x in self.losses[a] for y in self.losses[b]}
            new = next(iter(known.values())) not in pairs
            for key in known.values():
                pairs.setdefault(key, len(columns) + len(pairs))
            found = {bits: pairs[key] for bits, key in known.items()}
            if new:
                for x in self.losses[a]:
                    rows.append(({**{found[x, y]: 1.0 for y in self.losses[b]}, columns[a, x]: -1.0}, 0.0, 0.0))
                for y in self.losses[b]:
                    rows.append(({**{found[x, y]: 1.0 for x in self.losses[a]}, columns[b, y]: -1.0}, 0.0, 0.0))
            return found

        for name, limit in limits.items():
            for each in self.costs[name].sums:
                row: dict[int, float] = {}
                for side, amounts in each.single.items():
                    for bits, amount in amounts.items():
                        row[columns[side, bits]] = row.get(columns[side, bits], 0.0) + amount
                for (a, b), factor in each.products.items():
                    for (x, y), column in pair(a, b).items():
                        row[column] = row.get(column, 0.0) + factor * x * y
                # In units of the limit, so that the solver's tolerances mean something.
                rows.append(
                    (
                        {column: amount / limit for column, amount in row.items()},
                        -np.inf,
                        (limit - each.constant) / limit,
                    )
                )
        count = len(columns) + len(pairs)
        scale = max((abs(loss) for by_bits in self.losses.values() for loss in by_bits.values()), default=1.0) or 1.0
        weights = np.zeros(count)
        for (side, bits), column in columns.items():
            weights[column] = self.losses[side][bits] / scale
        entries = [(number, column, value) for number, (row, _, _) in enumerate(rows) for column, value in row.items()]
        matrix = coo_array(
            ([v for *_, v in entries], ([r for r, *_ in entries], [c for _, c, _ in entries])), shape=(len(rows), count)
        )
        constraint = LinearConstraint(
            matrix.tocsr(), np.array([low for _, low, _ in rows]), np.array([high for *_, high in rows])
        )
        with _quiet():
            result = milp(
                weights,
                constraints=constraint,
                bounds=Bounds(0, 1),
                integrality=np.ones(count),
                options={"mip_rel_gap": 0.0},
            )
        if result.x is None:
            raise LowbitError(f"the integer program was not solved: {result.message}")
        return {
            side: max(by_bits, key=lambda bits, side=side: result.x[columns[side, bits]])
            for side, by_bits in self.losses.items()
        }


@contextmanager
def _quiet() -> Iterator[None]:
    """Within: nothing is written to standard output, not by compiled code either.

    HiGHS in scipy 1.17 says things there, asked or not.
    """
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


def uniform(program: Program, limits: Mapping[str, float]) -> Bits | None:
    """The same number of bits for all sides that can have it, the most that is within the limits.

    None if there is none.
    """
    for width in reversed(program.widths):
        bits = program.nearest(width)
        if all(program.costs[name].of(bits) <= limit for name, limit in limits.items()):
            return bits
    return None
