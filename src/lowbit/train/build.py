"""From a config to a network: built, loaded, prepared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor, nn

import lowbit
from lowbit import models
from lowbit.errors import LowbitError
from lowbit.files import check_place
from lowbit.inputs import Inputs
from lowbit.models import saved_about
from lowbit.qat.integers import needs_example, with_first_batch
from lowbit.train.checkpoint import Checkpoints, Which
from lowbit.train.config import MAY_CHANGE, ModelConfig, QuantizationConfig, TrainConfig
from lowbit.train.shapes import example_inputs


def build_float(config: ModelConfig, *, option: str = "model.init (--init)") -> nn.Module:
    """The full-precision network with the weights it starts from: those of `init`, timm's, or random ones.

    Args:
        option: what messages call `init`.

    Raises:
        LowbitError: an unknown name, or weights that are not there or are another network's.
    """
    weights = None if config.init is None else _weights_file(Path(config.init), option)
    return models.create(config.name, num_classes=config.num_classes, weights=weights, pretrained=config.pretrained)


def build_teacher(config: TrainConfig, *, published: bool = True) -> nn.Module | None:
    """The teacher of a distillation with its weights, or None where the network itself is the teacher.

    Args:
        published: fetch weights that timm or torchvision publishes; else they are random.

    Raises:
        LowbitError: see `build_float`.
    """
    of = config.distillation
    if of.teacher is None:
        return None
    teacher = ModelConfig(of.teacher, of.init, of.pretrained and published, num_classes=config.model.num_classes)
    return build_float(teacher, option="distillation.init")


def start_of(config: TrainConfig) -> nn.Module | None:
    """The full-precision network that a run started from, in evaluation mode.

    None where it started from random or published weights, which are not fetched for this.

    Raises:
        LowbitError: the weights are not where they were.
    """
    return None if config.model.init is None else build_float(config.model).eval()


def _weights_file(init: Path, option: str) -> Path:
    """`init`, or the best checkpoint where it is a run folder."""
    check_place(init)
    if not init.is_dir():
        return init
    if read_config(init).quantization is not None:
        raise LowbitError(
            f"{init}: a run at low bits, but {option} is for weights in full precision; to go on from this "
            "run give it as quantization.start (--start)"
        )
    return Checkpoints(init).weights("best")


def read_config(folder: Path) -> TrainConfig:
    """The config of a run.

    Raises:
        LowbitError: there is no run in the folder, or its config.json is broken.
    """
    check_place(folder / "config.json")
    if not (folder / "config.json").is_file():
        raise LowbitError(f"{folder}: no run is there (it has no config.json); give a folder that training wrote")
    return TrainConfig.load(folder / "config.json")


def rules_of(config: QuantizationConfig) -> list[lowbit.Rule]:
    """The config's rules.

    Raises:
        LowbitError: one with an argument that `lowbit.Rule` does not have.
    """
    try:
        return [lowbit.Rule(**rule) for rule in config.rules]
    except TypeError as error:
        raise LowbitError(f"quantization.rules: {error}; a rule has the arguments of lowbit.Rule") from error


def prepare(model: nn.Module, config: QuantizationConfig | None) -> nn.Module:
    """`lowbit.prepare` with the config's arguments; the model itself where nothing is to be quantized."""
    if config is None:
        return model
    return lowbit.prepare(
        model,
        weights=config.weights,
        activations=config.activations,
        method=config.method,
        init_weights=config.init_weights,
        init_activations=config.init_activations,
        balance=None if config.balance is None else lowbit.Balance(config.balance),
        scales=config.scales,
        accumulator_bits=config.accumulator_bits,
        first_last=config.first_last,
        rules=rules_of(config),
        granularity=config.granularity,
        narrow=config.narrow,
        integer_only=config.integer_only,
    )


_PREPARED_BY = (
    "weights", "activations", "method", "balance", "scales", "accumulator_bits", "first_last", "rules", "granularity", "narrow",
    "integer_only",
)  # fmt: skip
"""Fields that have to be equal for the quantizers of two networks to be alike."""


def go_on_from(model: nn.Module, quantization: QuantizationConfig, folder: str | Path) -> bool:
    """Give a prepared network the weights of a run at low bits; its quantizers as well, if both were prepared alike.

    Returns:
        Whether the quantizers are the run's: else they are as they were, and wait to be initialized.

    Raises:
        LowbitError: see `load`; a run in full precision, or one of another network.
    """
    source, config = load(folder)
    if config.quantization is None:
        raise LowbitError(
            f"{folder}: a run in full precision, but quantization.start (--start) is for one at low bits; give it as "
            "model.init (--init)"
        )
    there, here = (_without_quantizers(each) for each in (source, model))
    if {name: each.shape for name, each in there.items()} != {name: each.shape for name, each in here.items()}:
        raise LowbitError(
            f"{folder}: a run of another network ({config.model.name}): names or shapes of weights differ"
        )
    alike = all(getattr(config.quantization, name) == getattr(quantization, name) for name in _PREPARED_BY)
    model.load_state_dict(source.state_dict() if alike else there, strict=alike)
    return alike


def _without_quantizers(model: nn.Module) -> dict[str, Tensor]:
    """The state of what is no quantizer."""
    inside = tuple(
        f"{name}."
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, lowbit.Quantizer)
    )
    return {name: value for name, value in model.state_dict().items() if not name.startswith(inside)}


def recorded(model: nn.Module, example: Inputs) -> nn.Module:
    """The network, recorded in place for inputs of these shapes where it waits for that: before weights are loaded into it."""
    if needs_example(model):
        with_first_batch(model, [example])
    return model


def record(config: TrainConfig, *, may_change: bool = False) -> dict[str, str]:
    """What a checkpoint keeps of its run's config: every field but those of `MAY_CHANGE`, or these, as JSON by name."""
    as_read = TrainConfig.from_dict(config.as_dict())  # 1 is 1.0 where a float is meant
    return {name: json.dumps(value) for name, value in as_read.flat().items() if (name in MAY_CHANGE) == may_change}


def check_record(weights: Path, config: TrainConfig) -> None:
    """Refuse a config other than that of the run that wrote a checkpoint.

    Raises:
        LowbitError: a field differs; the message names it and both values. Fields that a checkpoint of an earlier
            version doesn't have are not looked at.
    """
    found, wanted = saved_about(weights), record(config)
    changed = [
        f"{name} {value}, but the run's config has {wanted.get(name, 'no such field')}"
        for name, value in found.items()
        if wanted.get(name) != value
    ]
    if changed:
        more = f"; and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise LowbitError(
            f"{weights}: a checkpoint of {'; of '.join(changed[:3])}{more}. Put the run's config.json back as training wrote it"
        )


def about(config: TrainConfig) -> dict[str, Any]:
    """What the file of an integer network says of the run it is from: what its images are read as, and how it was trained."""
    images = ("augment", "image_size", "channels", "mean", "std")
    trained = {"recipe": config.recipe, "network": config.model.name, "epochs": config.epochs, "seed": config.seed}
    if config.quantization is not None:
        trained |= {name: getattr(config.quantization, name) for name in ("weights", "activations", "method")}
    # By way of JSON, in which tuples are lists.
    return json.loads(json.dumps({"images": {name: getattr(config.data, name) for name in images}, "trained": trained}))


def load(folder: str | Path, checkpoint: Which = "best") -> tuple[nn.Module, TrainConfig]:
    """The trained network of a run, on the CPU and in evaluation mode, and the config of the run.

    Raises:
        LowbitError: the folder holds no run, no checkpoint yet, or a broken one, one with weights that are not finite,
            or one of another config than the folder's.
    """
    folder = Path(folder)
    config = read_config(folder)
    # The checkpoint has all weights: those that training started from need not be there any more.
    original = build_float(config.model.without_weights())
    model = prepare(original, config.quantization)
    if needs_example(model):
        recorded(model, example_inputs(config, original))
    weights = Checkpoints(folder).weights(checkpoint)
    check_record(weights, config)
    models.load_weights(model, weights)
    return model.eval(), config
