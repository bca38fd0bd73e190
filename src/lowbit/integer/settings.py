"""Independence of what the process has set for its own floats: an integer network computes the same under any setting.

What could change a result, and what is done about it:

    autocast, inference mode, grad mode      off within `reference_arithmetic`
    default device                           the CPU for a function that is not ours; our own tensors name theirs
    default dtype                            every tensor made from Python numbers names its dtype
    reduced precision of float32 products    `float32_products_are_exact` is asked; if not, products run in float64
    flush-to-zero                            no subnormal float32 ever decides a code: scales, products of scales and
                                             multipliers are normal numbers (`integer.validate`), and an input below
                                             2^-126 lies less than half a step from 0 on every grid
    threads, deterministic algorithms        sums are of integers, each partial sum exact in any order

Flush-to-zero is met by a bound and not by switching it off, because each thread of the pool has a setting of its own,
which this one can neither read nor change.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def reference_arithmetic() -> Iterator[None]:
    """Within: no autocast, no inference mode and no gradients, whatever the caller has on."""
    changes_arithmetic = torch.is_autocast_enabled("cpu") or torch.is_inference_mode_enabled()
    if not changes_arithmetic:  # the rule, and ten times cheaper
        with torch.no_grad():
            yield
        return
    with torch.autocast("cpu", enabled=False), torch.inference_mode(False), torch.no_grad():
        yield


def exact_dtype(bound: int) -> torch.dtype:
    """The type of floats in which a matrix product of integers is exact.

    No partial sum may be greater than `bound`, below 2^31.

    float32 holds each one when the bound is below 2^24, and products do not run at reduced precision on request;
    float64 always does.
    """
    return torch.float32 if bound < 1 << 24 and float32_products_are_exact() else torch.float64


def float32_products_are_exact() -> bool:
    """Whether a float32 matrix product on the CPU computes in float32, not with operands cut to bfloat16 or TF32."""
    # "none" is the default, which leaves the choice to oneDNN: its environment then decides.
    chosen = torch.backends.mkldnn.matmul.fp32_precision  # pyrefly: ignore[missing-attribute]  # torch makes it when asked
    modes = (os.environ.get(f"{prefix}_DEFAULT_FPMATH_MODE", "") for prefix in ("DNNL", "ONEDNN"))
    return chosen in ("none", "ieee") and all(mode.upper() in ("", "STRICT") for mode in modes)
