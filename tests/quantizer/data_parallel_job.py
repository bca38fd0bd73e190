"""Two processes whose quantizers differ before they train together; each writes what it computes."""

from __future__ import annotations

import os
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

import lowbit

METHODS = ("lsq", "lsq+4", "lg-lsq")


def network(method: str) -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(6, 8), nn.SiLU(), nn.Linear(8, 4))
    return lowbit.prepare(layers, weights=3, activations=3, first_last=3, method=method)


def inputs() -> Tensor:
    return torch.randn(16, 6, generator=torch.Generator().manual_seed(1))


def data(rank: int) -> Tensor:
    """Never negative on rank 0, so that the first grid is unsigned there and signed on rank 1."""
    x = 3 * inputs()
    return x if rank else x.abs()


def wrapped(model: nn.Module) -> nn.Module:
    return nn.parallel.DistributedDataParallel(model)


def run(rank: int, folder: str) -> None:
    x = inputs()
    calibrated = {method: lowbit.calibrate(network(method), [data(rank)]) for method in METHODS}
    checkpoint = lowbit.round_zero_points(lowbit.calibrate(network("lsq+4"), [data(0)])).state_dict()
    os.environ.update(GLOO_SOCKET_IFNAME="lo")
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    found = {}
    for method, model in calibrated.items():
        before = model(x).detach()
        parallel = wrapped(model)
        after = parallel(x)
        after.square().mean().backward()
        found[method] = {"before": before, "after": after.detach(), "grid": str(model[0].input_quantizer.grid)}
        lowbit.round_zero_points(model)
        found[method]["rounded"] = parallel(x).detach()

    model = network("lsq+4")
    if rank == 0:
        model.load_state_dict(checkpoint)
    found["loaded"] = {"after": wrapped(model)(x).detach()}
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
