"""The networks that have a short name: where each comes from, its input, and its published size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import nn

from lowbit.models.cifar_resnet import CifarResNet
from lowbit.models.digits import DigitsCnn
from lowbit.models.mlperf_tiny import Autoencoder, DsCnn, MobileNetV1Tiny, ResNet8
from lowbit.models.preact_resnet import PreActResNet
from lowbit.models.squeezenext import SqueezeNext
from lowbit.models.vgg_small import VggSmall


@dataclass(frozen=True)
class Network:
    """A network by its short name.

    build: its constructor, which takes the number of classes; or "timm:NAME" or "torchvision:NAME".
    input_shape: of one sample.
    num_classes: by default; None where there are none (the auto-encoder).
    published: the number of parameters, exact ("11,689,512") or in millions as far as it is given ("2.4 M").
    source: who published it.
    with_statistics: the published number counts batch-norm's running means and variances, as Keras does.
    """

    name: str
    build: Callable[..., nn.Module] | str
    input_shape: tuple[int, ...]
    num_classes: int | None
    published: str
    source: str
    with_statistics: bool = False


_TORCHVISION = "torchvision's table of classification weights"
_TINY = "the MLPerf Tiny reference model (github.com/mlcommons/tiny)"


def _imagenet(
    name: str, build: Callable[..., nn.Module] | str, published: str, source: str, size: int = 224
) -> Network:
    return Network(name, build, (3, size, size), 1000, published, source)


def _cifar(name: str, build: Callable[..., nn.Module], published: str, source: str) -> Network:
    return Network(name, build, (3, 32, 32), 10, published, source)


def _tiny(
    name: str, build: Callable[..., nn.Module], shape: tuple[int, ...], classes: int | None, published: str
) -> Network:
    return Network(name, build, shape, classes, published, _TINY, with_statistics=True)


_ALL = (
    _imagenet("resnet18", "timm:resnet18", "11,689,512", _TORCHVISION),
    _imagenet("resnet34", "timm:resnet34", "21,797,672", _TORCHVISION),
    _imagenet("resnet50", "timm:resnet50", "25,557,032", _TORCHVISION),
    _imagenet("resnet101", "timm:resnet101", "44,549,160", _TORCHVISION),
    _imagenet("resnet152", "timm:resnet152", "60,192,808", _TORCHVISION),
    _imagenet("vgg16-bn", "torchvision:vgg16_bn", "138,365,992", _TORCHVISION),
    _imagenet("mobilenetv2", "timm:mobilenetv2_100", "3,504,872", _TORCHVISION),
    _imagenet("shufflenetv2-x1.0", "torchvision:shufflenet_v2_x1_0", "2,278,604", _TORCHVISION),
    _imagenet("shufflenetv2-x0.5", "torchvision:shufflenet_v2_x0_5", "1,366,792", _TORCHVISION),
    _imagenet("efficientnet-b0", "timm:efficientnet_b0", "5.3 M", "Tan and Le 2019, arXiv 1905.11946, table 2"),
    _imagenet("mixnet-s", "timm:mixnet_s", "4.1 M", "Tan and Le 2019, arXiv 1907.09595, table 2"),
    _imagenet("deit-tiny", "timm:deit_tiny_patch16_224", "5.7 M", "timm's model card"),
    _imagenet("preact-resnet18", partial(PreActResNet, 18), "11,687,720", "timm's resnetv2_18"),
    _imagenet("preact-resnet34", partial(PreActResNet, 34), "21,795,880", "timm's resnetv2_34"),
    _imagenet("preact-resnet50", partial(PreActResNet, 50), "25,549,352", "timm's resnetv2_50"),
    _imagenet("preact-resnet101", partial(PreActResNet, 101), "44,541,480", "timm's resnetv2_101"),
    _imagenet("preact-resnet152", partial(PreActResNet, 152), "60,185,128", "timm's resnetv2_152"),
    _imagenet("squeezenext-23-2x", SqueezeNext, "2.4 M", "Gholami et al. 2018, arXiv 1803.10615", 227),
    *(
        _cifar(f"cifar-resnet{depth}", partial(CifarResNet, depth), size, "He et al. 2015, arXiv 1512.03385, table 6")
        for depth, size in ((20, "0.27 M"), (32, "0.46 M"), (44, "0.66 M"), (56, "0.85 M"), (110, "1.7 M"))
    ),
    _cifar("vgg-small", VggSmall, "4.66 M", "Vargas et al. 2024, arXiv 2404.01278, their repository"),
    Network("digits-cnn", DigitsCnn, (1, 8, 8), 10, "28,538", "lowbit's own"),
    _tiny("resnet8", ResNet8, (3, 32, 32), 10, "78,666"),
    _tiny("mobilenetv1-0.25", MobileNetV1Tiny, (3, 96, 96), 2, "221,794"),
    _tiny("ds-cnn", DsCnn, (1, 49, 10), 12, "24,908"),
    _tiny("autoencoder", Autoencoder, (640,), None, "269,992"),
)

NETWORKS: dict[str, Network] = {network.name: network for network in _ALL}
"""Every network with a short name."""
