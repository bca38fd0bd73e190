"""Whether a quantizer's value and gradients are the papers': LSQ's (arXiv 1902.08153, Eq. 1, 3, 5) and LSQ+'s (2004.09576, Eq. 6).

Decided element by element by the test suite's oracle, which is written from the formulas in float64. Four kinds of elements
apart, since implementations part where clipping begins: inside the range, within half a step outside (the code is still the last
one), further outside, and exactly at the ends (with an unsigned grid every zero behind a ReLU is such a one).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from tests.quantizer import oracle

from benchmarks.peer_quantizers import Alone
from lowbit import Grid

ROWS, COLUMNS = 8, 24
KINDS = ("inside", "half a step outside", "further outside", "at the ends")
_CLOSE = dict(rtol=2e-5, atol=1e-5)


def positions(kind: str, grid: Grid, rng: np.random.Generator) -> NDArray:
    """[ROWS, COLUMNS] places v = (x − β)/s of one kind, on both sides, away from ties."""
    shape = (ROWS, COLUMNS)
    if kind == "inside":
        level = rng.integers(grid.qn, grid.qp, size=shape)
        return level + np.where(rng.random(shape) < 0.5, rng.uniform(0.05, 0.45, shape), rng.uniform(0.55, 0.95, shape))
    if kind == "at the ends":
        away = np.zeros(shape)
    else:
        away = rng.uniform(*((0.05, 0.45) if kind == "half a step outside" else (0.55, 3.0)), shape)
    return np.where(rng.random(shape) < 0.5, grid.qn - away, grid.qp + away)


def lsq_scale(sharing: int, qp: int) -> float:
    """LSQ's g."""
    return (sharing * qp) ** -0.5


def verdicts(
    make: Callable[[Grid, torch.Tensor, torch.Tensor | None], Alone], *, channel: bool, offset: bool
) -> dict[str, str]:
    """For the value and the gradients of x, step and offset: "equal", or where and how they differ.

    make: from (grid, step, offset) to the quantizer. A step's gradient that differs by a constant known factor (no g at all, or g
    of the whole tensor where each row has a step) counts as equal, and the factor is named.
    """
    grid = Grid(3, signed=not offset)
    rng = np.random.default_rng(0)
    shape = (ROWS, 1) if channel else ()
    step = 2.0 ** rng.integers(-3, 2, size=shape)
    beta = -2.0 * step if offset else None
    found: dict[str, dict[str, tuple[NDArray, NDArray]]] = {"value": {}, "x": {}, "step": {}, "offset": {}}
    for kind in KINDS:
        x = positions(kind, grid, rng) * step + (0.0 if beta is None else beta)
        G = rng.normal(size=x.shape)
        theirs = run(make(grid, _tensor(step), None if beta is None else _tensor(beta)), x, G)
        papers = oracle.quantize(
            x, step, beta, G, qn=grid.qn, qp=grid.qp, binary=False, form="lsq", slope=None, pull=None,
            scale=lsq_scale, batch_dim=None,
        )  # fmt: skip
        for quantity, mine, right in zip(found, theirs, papers):
            if mine is not None:
                found[quantity][kind] = (mine, right)
    sharing = COLUMNS if channel else ROWS * COLUMNS
    g, whole = lsq_scale(sharing, grid.qp), lsq_scale(ROWS * COLUMNS, grid.qp)
    factors = {"": 1.0, "without g": 1 / g, "g of the whole tensor": whole / g}
    return {
        quantity: _verdict(by_kind, factors if quantity in ("step", "offset") else {"": 1.0})
        for quantity, by_kind in found.items()
    }


def run(alone: Alone, x: NDArray, G: NDArray) -> tuple[NDArray | None, ...]:
    """(x̂, ∂L/∂x, ∂L/∂s, ∂L/∂β) of a peer, in float32; None for an offset that it has not."""
    tensor = _tensor(x).requires_grad_()
    x_hat = alone.forward(tensor)
    by_x, *by_parameters = torch.autograd.grad(x_hat, [tensor, *alone.parameters], _tensor(G))
    by_step, by_offset = alone.papers(by_parameters)
    return tuple(None if t is None else t.detach().double().numpy() for t in (x_hat, by_x, by_step, by_offset))


def _verdict(by_kind: dict[str, tuple[NDArray, NDArray]], factors: dict[str, float]) -> str:
    if not by_kind:
        return "-"
    wrong = {
        name: [kind for kind, (mine, right) in by_kind.items() if not np.allclose(mine, factor * right, **_CLOSE)]
        for name, factor in factors.items()
    }
    name = min(wrong, key=lambda name: len(wrong[name]))
    if len(wrong[name]) == len(by_kind):
        return "differs"
    kinds = f"differs {', '.join(wrong[name])}" if wrong[name] else "equal"
    return f"{kinds}, {name}" if name else kinds


def _tensor(array: NDArray) -> torch.Tensor:
    return torch.as_tensor(array, dtype=torch.float32)
