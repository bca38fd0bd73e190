"""The quantizer alone, forward and backward, against the time of moving the bytes that it cannot avoid moving.

Forward reads x and writes x̂; backward reads x and G = ∂L/∂x̂ and writes ∂L/∂x: five passes over memory of x's size. The floor does
exactly these with PyTorch's own kernels: `x̂ = neg(x)` (one read, one write) and `d = add(x, G)` (two reads, one write). Its results are
new tensors, as those of an operator have to be: on a processor the system hands out their pages anew, which takes about
as long again as filling them. The same into tensors that are there already is the row "floor, in place".

"tensor" is an activation's quantizer (one step), "channel" a weight's (a step for each index of the first dimension). A method
that sets its step from the tensor at every call (PACT's, DoReFa's and min-max's weights) has to read x once more to do so.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

import lowbit
from benchmarks import harness
from benchmarks.result import Bars, Table
from benchmarks.workload import compiled_alone

FLOOR = "floor"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--shape", nargs=4, type=int, help="default: 64 64 56 56; --quick 32 64 56 56; --gpu 256 64 56 56"
    )
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"], help="of x; steps are float32")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--methods", nargs="+", default=list(lowbit.METHODS))
    parser.add_argument("--modes", nargs="+", default=["compiled", "eager"], choices=["compiled", "eager"])
    parser.add_argument("--repetitions", type=int, help="default: 30, with --quick 8")


def quantizer_for(method: str, granularity: str, bits: int, x: Tensor) -> lowbit.Quantizer:
    """A started quantizer as `lowbit.prepare` would make it for this tensor."""
    row = lowbit.METHODS[method]
    if granularity == "tensor":
        made = lowbit.Quantizer(bits, method=row.for_activations, batch_dim=0)
    else:
        made = lowbit.Quantizer(bits, method=row, signed=True, step_shape=(len(x), *[1] * (x.dim() - 1)))
    made = made.to(x.device)
    made.initialize(x.detach())
    return made


def forward_backward(
    quantizer: Callable[[Tensor], Tensor], x: Tensor, G: Tensor, wanted: list[Tensor], *, compiled: bool
) -> Callable[[], object]:
    """A run of the quantizer that gives the gradients of all that is wanted."""

    def quantize(x: Tensor) -> Tensor:
        return quantizer(x)

    forward = compiled_alone(quantize) if compiled else quantize
    return lambda: torch.autograd.grad(forward(x), wanted, G)


def floors(x: Tensor, G: Tensor) -> dict[str, Callable[[], object]]:
    """The five passes, into new tensors and into tensors that are there."""
    x = x.detach()
    x_hat, grad_x = torch.empty_like(x), torch.empty_like(x)

    def fresh() -> object:
        return torch.neg(x), torch.add(x, G)

    def in_place() -> None:
        torch.neg(x, out=x_hat)
        torch.add(x, G, out=grad_x)

    return {FLOOR: fresh, f"{FLOOR}, in place": in_place}


def contestants(
    methods: list[str], modes: list[str], bits: int, x: Tensor, G: Tensor
) -> dict[str, Callable[[], object]]:
    """The floors and every method's quantizers, by the name of their row."""
    found: dict[str, Callable[[], object]] = floors(x, G)
    for mode in modes:
        for granularity in ("tensor", "channel"):
            for method in methods:
                module = quantizer_for(method, granularity, bits, x)
                wanted = [x, *(p for p in module.parameters() if p.requires_grad)]

                found[f"{mode} {method}, {granularity}"] = forward_backward(
                    module, x, G, wanted, compiled=mode == "compiled"
                )
    return found


def run(options: argparse.Namespace) -> Iterator[Table]:
    device = "cuda" if options.gpu else "cpu"
    # Well beyond the caches; and on a GPU long enough that launching a kernel does not show.
    shape = options.shape or [256 if options.gpu else 32 if options.quick else 64, 64, 56, 56]
    dtype = getattr(torch, options.dtype)
    torch.manual_seed(0)
    # Of both signs, so that LSQ+ has its offset.
    x = torch.randn(shape, device=device).to(dtype).requires_grad_()
    G = torch.randn(shape, device=device).to(dtype)
    runs = contestants(options.methods, options.modes, options.bits, x, G)
    times = harness.interleave(
        runs, repetitions=options.repetitions or (8 if options.quick else 30), device=device, shortest=0.005
    )
    rows = [
        {"quantizer": name, **timing.columns(times[FLOOR]), "passes": f"{5 * timing.ratio_to(times[FLOOR])[1]:.1f}"}
        for name, timing in times.items()
    ]
    size = "x".join(map(str, shape))
    subject = f"Quantizer alone, forward and backward, against its unavoidable bytes: {size} {options.dtype}, {options.bits} bits"
    chart = Bars("ratio", "lower quartile", "upper quartile")
    name = f"quantizer-{device}" if dtype == torch.float32 else f"quantizer-{device}-{options.dtype}"
    yield Table(name, subject, harness.machine(device), rows, chart)
