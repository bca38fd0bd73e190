"""`python -m campaigns.networks`: every network with a short name, in one table.

Parameters beside the published number; how many layers `prepare` quantizes; whether the network has an integer form (made,
exported and compared with its file code by code, at W4A4 with random weights) or what stands against it; and the training
step at W4A4 by LSQ against full precision, both in turn in one process on random data.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lowbit
from benchmarks import harness
from campaigns.exactness import calibrated
from lowbit import models
from lowbit.files import atomic_write
from lowbit.layers.attention import quantized_attentions
from lowbit.layers.sites import quantized_layers
from lowbit.models import Network

QUICK_SIDE = 64


def input_shape(network: Network, quick: bool) -> tuple[int, ...]:
    """The published input, or with `quick` a smaller one where the network was made for ImageNet.

    DeiT takes no other size.
    """
    if quick and network.num_classes == 1000 and network.name != "deit-tiny":
        return (3, QUICK_SIDE, QUICK_SIDE)
    return network.input_shape


def sizes(network: Network) -> dict[str, object]:
    """Parameters, counted as the published number is, and the layers that `prepare` quantizes."""
    with torch.device("meta"):
        model = models.create(network.name)
    count = sum(parameter.numel() for parameter in model.parameters())
    if network.with_statistics:
        count += sum(buffer.numel() for name, buffer in model.named_buffers() if "running_" in name)
    prepared = lowbit.prepare(models.create(network.name))
    layers = str(sum(1 for _ in quantized_layers(prepared)))
    attentions = sum(1 for _ in quantized_attentions(prepared))
    return {
        "parameters": f"{count:,}",
        "published": network.published,
        "prepared layers": f"{layers} and {2 * attentions} products" if attentions else layers,
    }


def integer_form(network: Network, shape: tuple[int, ...], samples: int) -> dict[str, object]:
    """Whether the network has an integer form whose file computes the same, or why not."""
    torch.manual_seed(0)
    model, x = models.create(network.name), torch.randn(samples, *shape)
    with tempfile.TemporaryDirectory() as folder:
        try:
            found = calibrated(network.name, model, x, Path(folder))
        except lowbit.LowbitError as error:
            reasons = [line.strip() for line in str(error).splitlines() if line.startswith("  ")]
            return {"integer-only": f"no: {'; '.join(reasons) or error}", "codes": "-", "file differs": "-"}
    return {"integer-only": "yes", "codes": found["codes"], "file differs": found["file differs"]}


def training_step(model: nn.Module, x: Tensor, *, compiled: bool) -> Callable[[], object]:
    """Forward, loss, backward and optimizer step on one batch."""
    optimizer = torch.optim.SGD(lowbit.parameter_groups(model, weight_decay=1e-4), lr=1e-5, momentum=0.9)
    labels = torch.zeros(len(x), dtype=torch.long)
    model.train()

    def loss() -> Tensor:
        output = model(x)
        return F.mse_loss(output, x) if output.shape == x.shape else F.cross_entropy(output, labels)

    forward = torch.compile(loss) if compiled else loss

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        forward().backward()
        optimizer.step()

    return step


def step_times(network: Network, shape: tuple[int, ...], options: argparse.Namespace) -> dict[str, object]:
    """Medians of the training step in full precision and at W4A4, and their ratio."""
    torch.manual_seed(0)
    x, model = torch.randn(options.batch, *shape), models.create(network.name)
    prepared = lowbit.calibrate(lowbit.prepare(model), [x])
    contestants = {
        "float": training_step(model, x, compiled=options.compiled),
        "w4a4": training_step(prepared, x, compiled=options.compiled),
    }
    times = harness.interleave(contestants, repetitions=options.repetitions)
    low, middle, high = times["w4a4"].ratio_to(times["float"])
    return {
        "full precision ms": f"{times['float'].median * 1e3:.0f}",
        "W4A4 ms": f"{times['w4a4'].median * 1e3:.0f}",
        "ratio": f"{middle:.2f}",
        "quartiles": f"{low:.2f}-{high:.2f}",
    }


def page(rows: Sequence[dict[str, object]], how: str) -> str:
    """The table as a page of the documentation."""
    head = list(rows[0])
    lines = [[*head], ["---"] * len(head), *[[str(row[key]) for key in head] for row in rows]]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return f"""# Networks by name

    python -m campaigns.networks --output docs/results

{how}

{table}

Parameters are counted as the published number is; sources are in [networks.md](../networks.md). "Codes" are those of all
integer tensors that were compared between the exported ONNX file and the integer reference, "file differs" how many of them
are not the same. The ratio is the median over repetitions of W4A4's training step to that of full precision.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m campaigns.networks", description=__doc__)
    parser.add_argument("--networks", nargs="+", default=list(models.NETWORKS), choices=list(models.NETWORKS), metavar="NAME")  # fmt: skip
    parser.add_argument("--quick", action="store_true", help=f"ImageNet's networks at {QUICK_SIDE}x{QUICK_SIDE}, 3 repetitions")  # fmt: skip
    parser.add_argument("--batch", type=int, default=8, help="of the training step")
    parser.add_argument("--samples", type=int, default=4, help="to compare the exported file on")
    parser.add_argument("--repetitions", type=int, default=None, help="default: 5, with --quick 3")
    parser.add_argument("--compiled", action="store_true", help="the training step through torch.compile")
    parser.add_argument("--output", type=Path, default=None, metavar="FOLDER", help="for networks.csv and networks.md")
    options = parser.parse_args(arguments)
    options.repetitions = options.repetitions or (3 if options.quick else 5)

    how = (
        f"{harness.machine()}. Training step on {options.batch} samples of noise, {'compiled' if options.compiled else 'eager'}, "
        f"{options.repetitions} repetitions in turn; files compared on {options.samples} samples"
        f"{f'; ImageNet networks at {QUICK_SIDE}x{QUICK_SIDE}' if options.quick else ''}."
    )
    print(how)
    rows = []
    for name in options.networks:
        network = models.NETWORKS[name]
        rows.append(
            {"network": name, "input": "x".join(map(str, input_shape(network, options.quick)))}
            | sizes(network)
            | integer_form(network, input_shape(network, options.quick), options.samples)
            | step_times(network, input_shape(network, options.quick), options)
        )
        print(" ".join(str(value) for value in rows[-1].values()), flush=True)
    harness.print_table(rows)
    if options.output is not None:
        harness.write_csv(rows, options.output / "networks.csv")
        with atomic_write(options.output / "networks.md") as temporary:
            temporary.write_text(page(rows, how))


if __name__ == "__main__":
    main()
