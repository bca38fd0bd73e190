"""Networks by name: the CIFAR ResNets, a small one for digits, and everything timm knows."""

from __future__ import annotations

from lowbit.models.cifar_resnet import CifarResNet
from lowbit.models.create import create, load_weights, names
from lowbit.models.digits import DigitsCnn

__all__ = ["CifarResNet", "DigitsCnn", "create", "load_weights", "names"]
