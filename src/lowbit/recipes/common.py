"""What the recipes of several papers share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from lowbit.quantizer.initialization import lsq_init
from lowbit.quantizer.methods import METHODS
from lowbit.train.config import DataConfig, ModelConfig, OptimizerConfig, QuantizationConfig, TrainConfig

IMAGENET_IMAGES = 1_281_167
"""Training images of ImageNet's 1000 classes (ILSVRC 2012)."""

MACS = {
    "resnet18": 1_814_073_344,
    "resnet34": 3_663_761_408,
    "resnet50": 4_089_184_256,
    "resnet101": 7_801_405_440,
    "resnet152": 11_513_626_624,
    "preact-resnet18": 1_814_073_344,
    "preact-resnet34": 3_663_761_408,
    "preact-resnet50": 4_089_184_256,
    "preact-resnet101": 7_801_405_440,
    "preact-resnet152": 11_513_626_624,
    "vgg16-bn": 15_470_264_320,
    "squeezenext-23-2x": 742_070_464,
    "mobilenetv2": 300_774_272,
    "shufflenetv2-x1.0": 144_907_992,
    "shufflenetv2-x0.5": 40_476_448,
    "efficientnet-b0": 385_814_752,
    "mixnet-s": 239_173_360,
    "deit-tiny": 1_074_851_328,
    "cifar-resnet20": 40_551_040,
    "cifar-resnet32": 68_862_592,
    "cifar-resnet44": 97_174_144,
    "cifar-resnet56": 125_485_696,
    "cifar-resnet110": 252_887_680,
    "vgg-small": 607_600_640,
    "digits-cnn": 452_064,
}
"""Multiply-accumulates of convolutions and linear layers for one image of the network's own input size."""

# What training starts from, by network; of those without a row here we know no published weights.
_PUBLISHED_WEIGHTS = {
    **{f"resnet{depth}": f"resnet{depth}.tv_in1k" for depth in (18, 34, 50, 101, 152)},
    **{f"preact-resnet{depth}": f"resnetv2_{depth}.ra4_e3600_r224_in1k" for depth in (18, 34)},
    **{f"preact-resnet{depth}": f"resnetv2_{depth}.a1h_in1k" for depth in (50, 101)},
    "vgg16-bn": "vgg16-bn",
    "mobilenetv2": "mobilenetv2.ra_in1k",
    "shufflenetv2-x1.0": "shufflenetv2-x1.0",
    "shufflenetv2-x0.5": "shufflenetv2-x0.5",
    "efficientnet-b0": "efficientnet-b0.ra_in1k",
    "mixnet-s": "mixnet-s.ft_in1k",
    "deit-tiny": "deit_tiny_patch16_224.fb_in1k",
}

NAMES = {
    **{f"resnet{depth}": f"ResNet-{depth}" for depth in (18, 34, 50, 101, 152)},
    **{f"preact-resnet{depth}": f"pre-activation ResNet-{depth}" for depth in (18, 34, 50, 101, 152)},
    "vgg16-bn": "VGG-16bn",
    "squeezenext-23-2x": "SqueezeNext-23-2x",
    "mobilenetv2": "MobileNetV2",
    "shufflenetv2-x1.0": "ShuffleNetV2 x1.0",
    "shufflenetv2-x0.5": "ShuffleNetV2 x0.5",
    "efficientnet-b0": "EfficientNet-B0",
    "mixnet-s": "MixNet-S",
    "deit-tiny": "DeiT-tiny",
}
"""Networks as papers spell them."""


def weight_decay(weights: int | None) -> float:
    """The LSQ paper's weight decay at a width: 1e-4, halved at 3 bits and quartered at 2 (and below)."""
    if weights is None or weights > 3:
        return 1e-4
    return 0.5e-4 if weights == 3 else 0.25e-4


def quantization(
    weights: int | None, activations: int | None, method: str, *, least_squares: bool = False
) -> QuantizationConfig | None:
    """The settings at these widths; None where both sides stay in full precision.

    Args:
        least_squares: steps of activations start where the squared error is least instead of by LSQ's rule, which on
            sparse inputs starts too small for a short training to mend: ResNet-20 at W2A2 after three epochs 83.06 %
            instead of 79.00 % (docs/results/accuracy.md, table "init20"). Methods with another rule keep theirs.
    """
    if weights is None and activations is None:
        return None
    known = METHODS.get(method)
    init = "least-squares" if least_squares and known is not None and known.for_activations.init is lsq_init else None
    return QuantizationConfig(weights=weights, activations=activations, method=method, init_activations=init)


def published_weights(network: str) -> str | None:
    """The name of the weights that training of a network starts from, in timm or torchvision.

    None where there are none.
    """
    return _PUBLISHED_WEIGHTS.get(network)


def imagenet_model(network: str) -> ModelConfig:
    """The network with ImageNet's 1000 classes, from published weights where there are any."""
    published = published_weights(network)
    return ModelConfig(name=published or network, pretrained=published is not None, num_classes=1000)


def imagenet_data(network: str) -> DataConfig:
    """Images resized to 256 and cropped to 224 at random, and flipped, 256 in a batch; SqueezeNext's own size is 227.

    Pre-activation ResNets get pixels from -1 to 1, with which their published weights were trained.
    """
    size = 227 if network.startswith("squeezenext") else None
    data = DataConfig(path="", batch_size=256, augment="imagenet-crop", image_size=size)
    return replace(data, mean=(0.5,) * 3, std=(0.5,) * 3) if network.startswith("preact") else data


def imagenet_low_bit(name: str, network: str, bits: int, method: str, *, distill: bool = False) -> TrainConfig:
    """The LSQ paper's training on ImageNet: weights and activations at `bits`, first and last layer at 8.

    SGD with momentum 0.9, cosine decay without restart, 90 epochs from a learning rate of 0.01 (at 8 bits 1 epoch from
    0.001), batch 256, weight decay by width. With `distill` half of the loss is cross-entropy with the full-precision
    network's probabilities.
    """
    return TrainConfig(
        recipe=name,
        model=imagenet_model(network),
        data=imagenet_data(network),
        quantization=quantization(bits, bits, method),
        optimizer=OptimizerConfig(lr=0.001 if bits == 8 else 0.01, weight_decay=weight_decay(bits)),
        task="distill" if distill else "classify",
        epochs=1 if bits == 8 else 90,
    )


def documented(text: str, function: Callable[..., TrainConfig], *arguments: Any) -> partial[TrainConfig]:
    """The function with its first arguments fixed, and `text` as docstring: one setting of a paper."""
    setting = partial(function, *arguments)
    setting.__doc__ = text
    return setting
