"""`python -m campaigns.post_training_peers LIBRARY --data PATH --init FILE`: other libraries' low bits without labels.

The network, the 1,024 images and the test of `campaigns.post_training`, with the learned rounding of Brevitas (`brevitas`, layer by
layer, AdaRound's soft rounding and regularisation) and AIMET (`aimet`, AdaRound). Run it in an environment that has the library beside
lowbit's own needs. Activations get ranges from the same images by each library's own search; the first and the last layer have 8 bits.
Rows go to docs/results/post-training-peers.csv; what is there is not run again.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks import harness
from campaigns.post_training import IMAGES, Campaign
from campaigns.zero_points import accuracy
from lowbit import models
from lowbit._torchvision import import_torchvision

RESULTS = Path("docs/results/post-training-peers.csv")
PACKAGES = {"brevitas": "brevitas", "aimet": "aimet-torch"}
CLASSES = 1000  # Brevitas gives the last layer its own bits where it has as many outputs


def brevitas(network: nn.Module, batches: Sequence[tuple[Tensor, Tensor]], bits: int, steps: int, lr: float):
    """The network with weights by learned rounding, activations by least squares, scales per tensor."""
    from brevitas.graph.quantize import preprocess_for_quantize
    from brevitas_examples.common.learned_round.learned_round_args import (
        HandlerSpec,
        LossArgs,
        OptimizerArgs,
        TrainerConfig,
        TrainingArgs,
    )
    from brevitas_examples.common.learned_round.learned_round_method import LearnedRoundArgs
    from brevitas_examples.common.learned_round.learned_round_trainer import LearnedRoundTrainer, get_blocks
    from brevitas_examples.imagenet_classification.ptq import learned_round_utils as vision
    from brevitas_examples.imagenet_classification.ptq.ptq_common import calibrate, quantize_model

    last = network.linear
    wide = nn.Linear(last.in_features, CLASSES)
    with torch.no_grad():
        wide.weight.zero_()[: last.out_features] = last.weight
        wide.bias.fill_(-1e4)[: last.out_features] = last.bias
    network.linear = wide
    network = preprocess_for_quantize(
        network, trace_model=True, equalize_iters=0, merge_bn=True, channel_splitting_ratio=0.0
    )
    model = quantize_model(
        network,
        backend="layerwise",
        weight_bit_width=bits,
        act_bit_width=bits,
        bias_bit_width=None,
        weight_quant_granularity="per_tensor",
        act_quant_percentile=99.999,
        act_quant_type="sym",
        scale_factor_type="float_scale",
        quant_format="int",
        weight_param_method="mse",
        act_param_method="mse",
    ).eval()
    with torch.no_grad():
        model(batches[0][0])
    calibrate(batches, model)
    if not steps:
        return model
    regular = LossArgs(cls="round_reg", kwargs={"max_count": steps})
    config = TrainerConfig(
        training_args=TrainingArgs(
            optimizers_args=[
                OptimizerArgs(target_params="learned_round", optimizer_cls="Adam", lr=lr, optimizer_kwargs={})
            ],
            batch_size=32,
            iters=steps,
            losses_args=[regular, LossArgs(cls="mse", kwargs={"reduction": "none", "dim": 1})],
            use_best_model=False,
            use_amp=False,
        ),
        training_handlers=[
            HandlerSpec(name="learned_round", config=LearnedRoundArgs("hard_sigmoid", learned_round_kwargs={}))
        ],
    )
    LearnedRoundTrainer(config=config).train(
        model=model,
        model_forward=vision.vision_forward,
        block_forward=vision.vision_block_forward,
        data_loader=batches,
        cache=vision.CacheVision(),
        get_blocks_fn=lambda each: get_blocks(each, vision.is_layer),
        keep_gpu=True,
    )
    return model.eval()


def aimet(network: nn.Module, batches: Sequence[tuple[Tensor, Tensor]], bits: int, steps: int, lr: float):
    """The network after AIMET's batch-norm folding and AdaRound, simulated with ranges of its "tf_enhanced" search."""
    from aimet_torch.adaround.adaround_weight import Adaround, AdaroundParameters
    from aimet_torch.batch_norm_fold import fold_all_batch_norms
    from aimet_torch.common.defs import QuantScheme
    from aimet_torch.model_preparer import prepare_model
    from aimet_torch.quantsim import QuantizationSimModel

    example = batches[0][0][:1]
    network = prepare_model(network)
    fold_all_batch_norms(network, tuple(example.shape), dummy_input=example)
    first, last = network.conv1, network.linear
    scheme = QuantScheme.post_training_tf_enhanced
    with tempfile.TemporaryDirectory() as folder:
        if steps:
            parameters = AdaroundParameters(
                data_loader=batches,
                num_batches=len(batches),
                default_num_iterations=steps,
                forward_fn=lambda model, batch: model(batch[0] if isinstance(batch, (tuple, list)) else batch),
            )
            network = Adaround.apply_adaround(
                network,
                example,
                parameters,
                folder,
                "rounded",
                default_param_bw=bits,
                param_bw_override_list=[(first, 8), (last, 8)],
                default_quant_scheme=scheme,
            )
        simulated = QuantizationSimModel(
            network, example, quant_scheme=scheme, default_output_bw=bits, default_param_bw=bits
        )
        for layer in (simulated.model.conv1, simulated.model.linear):
            for quantizer in (layer.param_quantizers["weight"], *layer.input_quantizers, *layer.output_quantizers):
                if quantizer is not None:
                    quantizer.bitwidth = 8
        if steps:
            simulated.set_and_freeze_param_encodings(str(Path(folder) / "rounded.encodings"))

    def observe(model: nn.Module, _: object = None) -> None:
        with torch.no_grad():
            for x, _y in batches:
                model(x)

    simulated.compute_encodings(observe, None)
    return simulated.model.eval()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m campaigns.post_training_peers", description=__doc__)
    parser.add_argument("library", choices=tuple(PACKAGES))
    parser.add_argument("--data", type=Path, required=True, help="the folder of CIFAR-10-JPEG")
    parser.add_argument("--init", type=Path, required=True, help="trained weights of the CIFAR ResNet-20")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--bits", type=int, nargs="+", default=(4, 3))
    parser.add_argument("--steps", type=int, nargs="+", default=(0, 400), help="of learning, for each layer; 0: none")
    parser.add_argument("--lr", type=float, default=1e-2, help="of Brevitas's rounding; AIMET has its own")
    options = parser.parse_args(arguments)
    import_torchvision()  # before the libraries do
    train, test = Campaign(options.data, options.init, options.results, Path())._loaders(0, 64)
    batches = [(x, y) for _, (x, y) in zip(range(IMAGES // 64), train)]
    rows = harness.read_csv(options.results) if options.results.is_file() else []
    for bits, steps in itertools.product(options.bits, options.steps):
        key = {"library": options.library, "bits": str(bits), "steps": str(steps), "lr": f"{options.lr:g}"}
        if any(all(row[name] == value for name, value in key.items()) for row in rows):
            continue
        torch.manual_seed(0)
        network = models.create("cifar-resnet20")
        models.load_weights(network, options.init)
        began = {now: now() for now in (time.monotonic, time.process_time)}
        model = {"brevitas": brevitas, "aimet": aimet}[options.library](
            network.eval(), batches, bits, steps, options.lr
        )
        minutes, busy = ((now() - start) / 60 for now, start in began.items())
        found = accuracy(model, test)
        rows.append(
            {
                **key,
                "test": f"{found:.2f}",
                "minutes": f"{minutes:.1f}",
                "processor minutes": f"{busy:.1f}",
                "version": version(PACKAGES[options.library]),
                "machine": harness.machine(),
            }
        )
        harness.write_csv(rows, options.results)
        print(*rows[-1].values(), sep="  ", flush=True)


if __name__ == "__main__":
    main()
