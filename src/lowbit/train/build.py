"""From a config to a network: built, loaded, prepared."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

import lowbit
from lowbit import models
from lowbit.errors import LowbitError
from lowbit.train.checkpoint import Checkpoints, Which
from lowbit.train.config import ModelConfig, QuantizationConfig, TrainConfig


def build_float(config: ModelConfig) -> nn.Module:
    """The full-precision network with the weights it starts from: those of `init`, timm's, or random ones.

    Raises:
        LowbitError: an unknown name, or weights that are not there or are another network's.
    """
    weights = None if config.init is None else _weights_file(Path(config.init))
    return models.create(config.name, num_classes=config.num_classes, weights=weights, pretrained=config.pretrained)


def _weights_file(init: Path) -> Path:
    """`init`, or the best checkpoint where it is a run folder."""
    if not init.is_dir():
        return init
    if read_config(init).quantization is not None:
        raise LowbitError(f"{init}: a run at low bits; start from a run in full precision")
    return Checkpoints(init).weights("best")


def read_config(folder: Path) -> TrainConfig:
    """The config of a run.

    Raises:
        LowbitError: there is no run in the folder, or its config.json is broken.
    """
    if not (folder / "config.json").is_file():
        raise LowbitError(f"{folder}: no run is there (it has no config.json); give a folder that training wrote")
    return TrainConfig.load(folder / "config.json")


def prepare(model: nn.Module, config: QuantizationConfig | None) -> nn.Module:
    """`lowbit.prepare` with the config's arguments; the model itself where nothing is to be quantized."""
    if config is None:
        return model
    try:
        rules = [lowbit.Rule(**rule) for rule in config.rules]
    except TypeError as error:
        raise LowbitError(f"quantization.rules: {error}; a rule has the arguments of lowbit.Rule") from error
    return lowbit.prepare(
        model,
        weights=config.weights,
        activations=config.activations,
        method=config.method,
        init_weights=config.init_weights,
        init_activations=config.init_activations,
        balance=None if config.balance is None else lowbit.Balance(config.balance),
        first_last=config.first_last,
        rules=rules,
        granularity=config.granularity,
        narrow=config.narrow,
        integer_only=config.integer_only,
    )


def identity(config: TrainConfig) -> dict[str, str]:
    """What decides which network a checkpoint fits and what it computes, as text by field."""
    fields: dict[str, Any] = {"model.name": config.model.name, "model.num_classes": config.model.num_classes}
    if config.quantization is None:
        fields["quantization"] = None
    else:
        only_in_training = (
            "calibration_batches",
            "init_weights",
            "init_activations",
            "dampening",
            "freezing",
            "transition_rate",
        )
        fields |= {
            f"quantization.{name}": value
            for name, value in asdict(config.quantization).items()
            if name not in only_in_training
        }
    return {name: json.dumps(value) for name, value in fields.items()}


def load(folder: str | Path, checkpoint: Which = "best") -> tuple[nn.Module, TrainConfig]:
    """The trained network of a run, on the CPU and in evaluation mode, and the config of the run.

    Raises:
        LowbitError: the folder holds no run, no checkpoint yet, or a broken one, or one of another network, width or
            method.
    """
    folder = Path(folder)
    config = read_config(folder)
    # The checkpoint has all weights: those that training started from need not be there any more.
    model = prepare(build_float(config.model.without_weights()), config.quantization)
    models.load_weights(model, Checkpoints(folder).weights(checkpoint, identity(config)))
    return model.eval(), config
