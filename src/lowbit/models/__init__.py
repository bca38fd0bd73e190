"""Networks by name: the papers' and MLPerf Tiny's, and everything timm and torchvision know.

`NETWORKS` holds those with a short name, with their input and their published number of parameters. `SHIPPED` are
trained integer networks that come with lowbit; `load` gives them.
"""

from __future__ import annotations

from lowbit.models.cifar_resnet import CifarResNet
from lowbit.models.create import create, names
from lowbit.models.digits import DigitsCnn
from lowbit.models.networks import NETWORKS, Network
from lowbit.models.trained import SHIPPED, Shipped, load
from lowbit.models.weights import load_weights, save_weights, saved_about

__all__ = [
    "NETWORKS",
    "SHIPPED",
    "CifarResNet",
    "DigitsCnn",
    "Network",
    "Shipped",
    "create",
    "load",
    "load_weights",
    "names",
    "save_weights",
    "saved_about",
]
