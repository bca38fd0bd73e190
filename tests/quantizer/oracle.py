"""The quantizer by the book: numpy float64, element by element, written from the formulas and not from the code.

One element, with real position v = (x − β)/s:

    value      x̂ = s·q + β,  q the integer nearest to clip(v, Qn, Qp), half to even
    ∂x̂/∂x     slope·pull strictly inside the range, 0 outside
    ∂x̂/∂s     strictly inside: the method's form; Qn at or below; Qp at or above
    ∂x̂/∂β     0 strictly inside, 1 elsewhere
"""

from __future__ import annotations

import math

import numpy as np


def nearest_level(c: float, binary: bool) -> float:
    if binary:
        return 1.0 if c >= 0 else -1.0
    low = math.floor(c)
    if c - low == 0.5:
        return low if low % 2 == 0 else low + 1
    return low if c - low < 0.5 else low + 1


def arctan_slope(t: float, k: float) -> float:
    u = t - math.floor(t) - 0.5
    return k / (2 * math.atan(k / 2) * (1 + k * k * u * u))


def soft_round(t: float, slope) -> float:
    """The soft round with this slope: a level, and the integral of the slope from there."""
    low = math.floor(t)
    nodes, weights = np.polynomial.legendre.leggauss(40)
    points = low + (t - low) * (nodes + 1) / 2
    return low + (t - low) / 2 * sum(weight * slope(point) for point, weight in zip(points, weights))


def tanh_slope(t: float, k: float) -> float:
    u = t - math.floor(t) - 0.5
    return k / (2 * math.tanh(k / 2)) / math.cosh(k * u) ** 2


def quantize(x, step, offset, gradient, *, qn, qp, binary, form, slope, pull, scale, batch_dim):
    """(x̂, ∂L/∂x, ∂L/∂s, ∂L/∂β) as float64 arrays; step and offset arrays must have x's number of dimensions or none.

    form: "lsq" q − v, "soft" q − v·slope, "clip" 0, None not learned, or a function of v. slope: None or a function of the position in
    units of a cell, counted from Qn. pull: None or δ. scale: g as a function of (N, Qp).
    """
    s = np.broadcast_to(step, x.shape)
    beta = np.broadcast_to(0.0 if offset is None else offset, x.shape)
    unit = 2.0 if binary else 1.0
    value, grad_x = np.zeros_like(x), np.zeros_like(x)
    by_step, by_offset = np.zeros_like(x), np.zeros_like(x)
    for i in np.ndindex(*x.shape):
        v = (x[i] - beta[i]) / s[i]
        c = min(max(v, qn), qp)
        q = nearest_level(c, binary)
        value[i] = s[i] * q + beta[i]
        if v <= qn or v >= qp:
            by_step[i] = qn if v <= qn else qp
            by_offset[i] = 1.0
            continue
        d = 1.0 if slope is None else slope((c - qn) / unit)
        p = 1.0 if pull is None else 1 + pull * np.sign(gradient[i]) * (c - q) / unit
        grad_x[i] = gradient[i] * d * p
        by_step[i] = form(v) if callable(form) else {"lsq": q - v, "soft": q - v * d, "clip": 0.0, None: 0.0}[form]
    shared = [n for dim, n in enumerate(x.shape) if (np.ndim(step) == 0 or step.shape[dim] == 1) and dim != batch_dim]
    g = scale(math.prod(shared), qp)
    axes = tuple(dim for dim in range(x.ndim) if np.ndim(step) == 0 or step.shape[dim] == 1)

    def total(a):
        return g * (a.sum() if np.ndim(step) == 0 else a.sum(axis=axes, keepdims=True))

    return value, grad_x, total(gradient * by_step), total(gradient * by_offset)
