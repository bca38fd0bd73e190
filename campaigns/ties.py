"""`python -m campaigns.ties NETWORK ... --csv FILE`: what ties of float32 become in a network with random weights.

Each network, by the name that `lowbit.models.create` takes, is prepared for integers alone at W4A4 with random weights
and calibrated on noise. Two samples then say how many codes of the trained form differ from the integers' ("trained
differs"), how many from the same codes before them ("at ties"), how many codes of the trained form are not what its own
operations give in float64 ("float32 off"), and how many codes of the integer network itself change in one of the samples
where ten codes behind its first layer are moved by one ("ten moved").
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

import lowbit
from benchmarks import harness
from lowbit import models
from lowbit.integer.graph import Graph, TensorType
from lowbit.integer.roundings import get_rounding
from lowbit.integer.run import executed
from lowbit.integer.settings import reference_arithmetic
from lowbit.lowering.convert import convert
from lowbit.lowering.exact import ExactNetwork
from lowbit.lowering.proof import Proof
from lowbit.models.create import published_settings


def build(name: str) -> tuple[nn.Module, int]:
    """The network, and the size of its images: 64, or what it is made for where it takes no other.

    Layers that begin as zero, as the last batch-norm of a residual branch, have ones.
    """
    torch.manual_seed(0)
    network = models.create(name)
    for module in network.modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor) and not bool(weight.any()):
            nn.init.ones_(weight)
    settings = published_settings(name)
    return network, settings["input_size"][-1] if settings.get("fixed_input_size") else 64


def with_moved(graph: Graph, inputs: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Every tensor of the integer network, where ten codes of the tensor of that name, equally apart, move by one."""
    values: dict[str, Tensor] = dict(inputs)
    samples = len(next(iter(inputs.values())))
    with reference_arithmetic():
        for node in graph.nodes:
            given = [values[each] for each in node.inputs]
            values[node.name] = executed(node, given, graph.input_types(node), get_rounding("float"), samples)
            if node.name == name:
                codes = values[name] = values[name].clone()
                ten = codes.view(-1)[:: codes.numel() // 10][:10]
                ten += torch.where(ten < node.codes_of().qp, 1, -1).to(ten.dtype)
    return values


def exact_codes(values: Tensor, y: TensorType) -> Tensor:
    """clip(rint(x / s) + z) in float64."""
    return (values / y.scale).round_().add_(y.zero_point).clamp_(y.qn, y.qp)


def row(name: str, model: nn.Module, x: Tensor) -> dict[str, object]:
    """What ties become in one network."""
    lowbit.reestimate_batchnorm(model, [x])
    prepared = lowbit.prepare(model.eval(), weights=4, activations=4, integer_only=True)
    lowbit.calibrate(prepared, [x]).eval()
    graph, places = convert(prepared, x)
    proof, inputs = Proof(prepared, graph, places), {next(iter(graph.inputs)): x}
    trained, integers = proof.trained(inputs).codes, lowbit.IntegerNetwork(graph).codes(inputs)
    local: Counter[str] = Counter()
    assert proof(inputs, trained, local_differ=local) == {}
    with reference_arithmetic():
        off = sum(
            int((exact_codes(exact, proof.graph.by_name[each].codes_of()) != trained[each]).sum())
            for each, exact in ExactNetwork(prepared, graph, places)(inputs, trained)
            if each in trained
        )
    differ = {each: trained[each] != integers[each] for each in graph.by_name if each in trained}
    codes = sum(each.numel() for each in differ.values())
    names = list(differ)
    moved = with_moved(graph, {each: value[:1] for each, value in inputs.items()}, names[1])  # behind the input

    def share(count: int, of: int) -> str:
        return f"{100 * count / of:.4g} %"

    after = {each: int((moved[each] != integers[each][:1]).sum()) for each in names}
    return {
        "network": name,
        "codes": codes,
        "at ties": local.total(),
        "float32 off": off,
        "trained differs": share(sum(int(each.sum()) for each in differ.values()), codes),
        "ten moved": share(sum(after.values()), codes // len(x)),
        "of the last tensor": share(after[names[-1]], integers[names[-1]][:1].numel()),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m campaigns.ties", description=__doc__)
    parser.add_argument("networks", nargs="+", metavar="NETWORK")
    parser.add_argument("--csv", type=Path, default=None, metavar="FILE")
    options = parser.parse_args(arguments)
    rows = []
    for name in options.networks:
        model, size = build(name)
        rows.append(row(name, model, torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))))
        harness.print_table(rows[-1:])
    if options.csv is not None:
        harness.write_csv(rows, options.csv)


if __name__ == "__main__":
    main()
