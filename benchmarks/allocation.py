"""`python -m benchmarks.allocation [NETWORK]`: how long `lowbit.allocate` looks for bits, of a network with random weights.

Prints wall-clock seconds and those of all processors' work, which say more where the machine does other work.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Sequence

import torch

import lowbit
from benchmarks import harness
from benchmarks.inference import float_network
from lowbit.allocation.allocate import SENSITIVITIES


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.allocation", description=__doc__)
    parser.add_argument("network", nargs="?", default="resnet50", help="a name as `lowbit train --model` takes it")
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--size", type=int, default=64, help="of an image, in pixels")
    parser.add_argument("--bits", type=float, default=4, help="the mean of all weights, which is the budget")
    parser.add_argument("--sensitivity", choices=SENSITIVITIES, default="gradients")
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    network = float_network(options.network)
    images = torch.randn(options.images, 3, options.size, options.size)
    batches = list(images.split(16))
    # With the statistics of random weights as they come, outputs are so large that nothing has a gradient.
    lowbit.reestimate_batchnorm(network, batches)
    began = {now: now() for now in (time.monotonic, time.process_time)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        found = lowbit.allocate(network, batches, {"average_bits": options.bits}, sensitivity=options.sensitivity)
    wall, busy = (now() - start for now, start in began.items())
    print(harness.machine())
    print(
        f"{options.network}, {options.images} images of {options.size}x{options.size}, {options.sensitivity}: bits for "
        f"{len(found.bits)} layers in {wall:.0f} s, {busy:.0f} s of processors' work; {found.costs['average_bits']:.3f} "
        f"bits on average"
    )


if __name__ == "__main__":
    main()
