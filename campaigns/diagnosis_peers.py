"""`python -m campaigns.diagnosis_peers`: faults of float networks, and what AIMET's QuantAnalyzer points at.

AIMET quantizes float networks itself, so that it can be shown those faults of `campaigns.diagnosis` alone that a float network, or its
calibration, can have. What it points at is the layer with the lowest score where each layer is quantized alone
(`perform_per_layer_analysis_by_enabling_quant_wrappers`); it names no kind. Beside it the first finding of `lowbit.diagnose`. The digits
network. Run it in an environment that has aimet-torch beside lowbit's own needs.
"""

from __future__ import annotations

import copy
import random
import tempfile
from collections.abc import Callable, Sequence
from importlib.metadata import version

import torch
from torch import Tensor, nn

import lowbit
from benchmarks import harness
from campaigns.diagnosis import RESULTS, Subject, subject
from lowbit._torchvision import import_torchvision
from lowbit.diagnosis.passes import NormStatistics, hooked

SEEDS, BITS = (1, 2, 3), (8, 4)


def _layer(network: nn.Module, chance: random.Random) -> tuple[str, nn.Module]:
    layers = [(name, each) for name, each in network.named_modules() if isinstance(each, nn.Conv2d | nn.Linear)]
    return layers[chance.randrange(len(layers))]


@torch.no_grad()
def outlier(of: Subject, network: nn.Module, chance: random.Random) -> str:
    name, layer = _layer(network, chance)
    layer.weight.view(-1)[chance.randrange(layer.weight.numel())] = chance.uniform(8, 20) * layer.weight.abs().max()
    return name


@torch.no_grad()
def dead_channel(of: Subject, network: nn.Module, chance: random.Random) -> str:
    name, layer = _layer(network, chance)
    layer.weight[chance.randrange(len(layer.weight))] = 0
    return name


@torch.no_grad()
def batchnorm_statistics(of: Subject, network: nn.Module, chance: random.Random) -> str:
    statistics = NormStatistics(network)
    with hooked(statistics.norms, statistics.see):
        network(of.other)
    name = list(statistics.norms)[chance.randrange(len(statistics.norms))]
    mean, variance, count = statistics.sums[name]
    statistics.norms[name].running_mean.copy_(mean / count)
    statistics.norms[name].running_var.copy_(variance / count)
    return name


def unnormalized_calibration(of: Subject, network: nn.Module, chance: random.Random) -> str:
    return "conv1"


def pointed_at(network: nn.Module, seen: Sequence[Tensor], test: Sequence[tuple[Tensor, Tensor]], bits: int) -> str:
    """The layer with the lowest accuracy when it alone is quantized, and both that and the best one's."""
    from aimet_torch.common.defs import CallbackFunc, QuantScheme
    from aimet_torch.model_preparer import prepare_model
    from aimet_torch.quant_analyzer import QuantAnalyzer

    @torch.no_grad()
    def see(model: nn.Module, _: object = None) -> None:
        for x in seen:
            model(x)

    @torch.no_grad()
    def score(model: nn.Module, _: object = None) -> float:
        right = sum(int((model(x).argmax(1) == y).sum()) for x, y in test)
        return 100 * right / sum(len(y) for _, y in test)

    example = test[0][0][:1]
    analyzer = QuantAnalyzer(prepare_model(network), example, CallbackFunc(see, None), CallbackFunc(score, None))
    sim = analyzer._create_quantsim_and_encodings(QuantScheme.post_training_tf_enhanced, bits, bits, None)
    with tempfile.TemporaryDirectory() as folder:
        scores = analyzer.perform_per_layer_analysis_by_enabling_quant_wrappers(sim, folder)
    worst = min(scores, key=scores.get)
    return f"{worst} ({scores[worst]:.1f} % to {max(scores.values()):.1f} %)"


FAULTS: tuple[Callable[[Subject, nn.Module, random.Random], str], ...] = (
    outlier, dead_channel, batchnorm_statistics, unnormalized_calibration,
)  # fmt: skip


def main() -> None:
    import_torchvision()
    rows = []
    for seed in SEEDS:
        of = subject("digits-cnn", seed, None)
        for fault in FAULTS:
            chance = random.Random(f"{seed} {fault.__name__}")
            faulty = copy.deepcopy(of.network)
            planted = fault(of, faulty, chance)
            seen = [of.raw(x) if fault is unnormalized_calibration else x for x, _ in of.train[:4]]
            for bits in BITS:
                model = lowbit.calibrate(lowbit.prepare(faulty, weights=bits, activations=bits), seen)
                findings = lowbit.diagnose(model, of.test, of.network).findings
                first = f"{findings[0].kind} at {findings[0].layer}" if findings else "nothing found"
                rows.append(
                    {
                        "seed": seed,
                        "fault": fault.__name__,
                        "planted at": planted,
                        "bits": bits,
                        "lowbit": first,
                        "QuantAnalyzer": pointed_at(copy.deepcopy(faulty).eval(), seen, of.test, bits),
                        "aimet-torch": version("aimet-torch"),
                    }
                )
                print(*rows[-1].values(), sep="  ", flush=True)
    harness.write_csv(rows, RESULTS / "diagnosis-peers.csv")
    print(harness.machine())


if __name__ == "__main__":
    main()
