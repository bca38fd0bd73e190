"""ImageNet by LSQ (Esser et al., ICLR 2020, arXiv 1902.08153): Table 1, and Table 4 with distillation."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from lowbit.recipes.common import quantization, weight_decay
from lowbit.train.config import DataConfig, ModelConfig, OptimizerConfig, TrainConfig

# network: (timm's weights, and the paper's top-1 in full precision, by bits, by bits with distillation)
_PAPER = {
    "resnet18": ("resnet18.tv_in1k", 70.5, {2: 67.6, 3: 70.2, 4: 71.1, 8: 71.1}, {2: 67.9, 3: 70.6}),
    "resnet34": ("resnet34.tv_in1k", 74.1, {2: 71.6, 3: 73.4, 4: 74.1, 8: 74.1}, {2: 72.4, 3: 74.3}),
    "resnet50": ("resnet50.tv_in1k", 76.9, {2: 73.7, 3: 75.8, 4: 76.7, 8: 76.8}, {2: 74.6, 3: 76.9, 4: 77.6}),
    "resnet101": ("resnet101.tv_in1k", 78.2, {2: 76.1, 3: 77.5, 4: 78.3, 8: 78.1}, {}),
    "resnet152": ("resnet152.tv_in1k", 78.9, {2: 76.9, 3: 78.2, 4: 78.5, 8: 78.5}, {}),
    "vgg16bn": ("vgg16_bn.tv_in1k", 73.4, {2: 71.4, 3: 73.4, 4: 74.0, 8: 73.5}, {}),
}


def recipes() -> Iterator[tuple[str, partial[TrainConfig], str, str]]:
    """(name, function, published, cost) of every recipe here: one for each cell of the paper's tables."""
    for network, (timm_name, full_precision, plain, distilled) in _PAPER.items():
        for distill, figures in ((False, plain), (True, distilled)):
            for bits, top1 in figures.items():
                name = f"lsq-{network}-w{bits}a{bits}{'-distill' if distill else ''}"
                build = partial(lsq, name, timm_name, bits, distill)
                cost = "1 epoch" if bits == 8 else "90 epochs"
                yield name, build, f"{top1} (FP {full_precision})", f"{cost} of 1.28 M images, on GPUs"


def lsq(name: str, timm_name: str, bits: int, distill: bool, *, method: str = "lsq") -> TrainConfig:
    """The paper's training: SGD 0.9, cosine, 90 epochs at lr 0.01 (8 bits: 1 at 0.001), batch 256, weight decay by width.

    Images are resized to 256 and cropped to 224 at random, and flipped. The paper's ResNets are of the pre-activation
    kind; timm's are not, and start from torchvision's weights.
    """
    return TrainConfig(
        recipe=name,
        model=ModelConfig(name=timm_name, pretrained=True, num_classes=1000),
        data=DataConfig(path="", batch_size=256, augment="imagenet-crop"),
        quantization=quantization(bits, bits, method),
        optimizer=OptimizerConfig(lr=0.001 if bits == 8 else 0.01, weight_decay=weight_decay(bits)),
        task="distill" if distill else "classify",
        epochs=1 if bits == 8 else 90,
    )
