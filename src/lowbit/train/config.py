"""What a run is made of: frozen, typed dataclasses, and their way to JSON and back."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from lowbit._torchvision import import_torchvision
from lowbit.data.config import DataConfig
from lowbit.errors import LowbitError, did_you_mean
from lowbit.files import atomic_write, read_json
from lowbit.quantizer.initialization import INITS
from lowbit.quantizer.methods import SCALES
from lowbit.train.distillation import DistillationConfig
from lowbit.train.reconstruction import ReconstructionConfig


def _check(ok: bool, what: str) -> None:
    if not ok:
        raise LowbitError(what)


@dataclass(frozen=True)
class ModelConfig:
    """The network, by name, and the weights it starts from."""

    name: str = "cifar-resnet20"
    """A short name of `lowbit.models.names()`, any name timm or torchvision knows, or your own class or function that gives a
    network, `package.module:name`."""
    init: str | None = None
    """A safetensors file, or the folder of an earlier run (its best checkpoint)."""
    pretrained: bool = False
    """Start from the weights timm or torchvision publishes under this name."""
    from_scratch: bool = False
    """Quantize random weights; else a network at low bits must be given weights to start from."""
    num_classes: int | None = None
    """Taken from the data set when not given."""

    def __post_init__(self) -> None:
        _check(
            not (self.init and self.pretrained), "model.init and model.pretrained are both given: keep one of the two"
        )
        _check(
            self.num_classes is None or self.num_classes >= 1,
            f"model.num_classes must be at least 1, got {self.num_classes}",
        )

    def without_weights(self) -> ModelConfig:
        """The same network, from random weights."""
        return dataclasses.replace(self, init=None, pretrained=False)

    @property
    def trained(self) -> bool:
        """Whether it starts from trained weights."""
        return self.init is not None or self.pretrained


@dataclass(frozen=True)
class QuantizationConfig:
    """The arguments of `lowbit.prepare`, how quantizers start, and what is added to the loss for them."""

    weights: int | None = 4
    """Bits of the weights; none leaves them in full precision."""
    activations: int | None = 4
    """Bits of every layer's input; none leaves it in full precision."""
    method: str = "lsq"
    """A row of `lowbit.METHODS`."""
    init_weights: str | None = None
    """Where steps of weights start: lsq, least-squares, three-sigma or max; none leaves it to the method."""
    init_activations: str | None = None
    """The same for activations."""
    balance: float | None = None
    """Relative gradient of a step over that of its weight at which it is held (SSG's magnitude); none leaves LSQ's g."""
    scales: str | None = None
    """Which steps are powers of two: power-of-two, power-of-two-weights, power-of-two-activations or free; none leaves it to the method."""
    accumulator_bits: int | None = None
    """The width, 2 to 32, that every sum of a layer's products must fit; none leaves 32 bits as the bound."""
    first_last: int | None = 8
    """Bits of the first and the last layer."""
    granularity: str = "tensor"
    """Elements of a weight that share a step: tensor, channel, group:N or channels:N."""
    narrow: bool = False
    """Symmetric signed grids, as many integer processors want."""
    integer_only: bool = False
    """Quantize every tensor an integer processor needs on a grid, with integer zero points: for `lowbit export`."""
    rules: tuple[dict[str, Any], ...] = ()
    """Exceptions by layer name: the keyword arguments of `lowbit.Rule`."""
    calibration_batches: int = 8
    """Training batches from which the quantizers are initialized."""
    start: str | None = None
    """The folder of a run at low bits to go on from: its weights; its quantizers too, where it was prepared alike."""
    dampening: float = 0.0
    """Factor of the oscillation dampening loss; it rises from 0 along a half cosine."""
    freezing: float | None = None
    """Oscillations per step above which a weight is frozen; none freezes nothing."""
    transition_rate: float | None = None
    """Share of weights, over √bits, whose code may change a step at first (TRS); none leaves the learning rate as it is."""

    def __post_init__(self) -> None:
        _check(
            self.calibration_batches >= 1,
            f"quantization.calibration_batches must be at least 1, got {self.calibration_batches}",
        )
        for name in ("init_weights", "init_activations"):
            rule = getattr(self, name)
            _check(
                rule is None or rule in INITS,
                f"quantization.{name}: no rule {rule!r}.{did_you_mean(str(rule), INITS)} Known are {', '.join(INITS)}",
            )
        _check(
            self.scales is None or self.scales in SCALES,
            f"quantization.scales: no {self.scales!r}.{did_you_mean(str(self.scales), SCALES)} Known are {', '.join(SCALES)}",
        )
        _check(
            self.balance is None or (math.isfinite(self.balance) and self.balance > 0),
            f"quantization.balance must be positive, got {self.balance}",
        )
        _check(self.dampening >= 0, f"quantization.dampening must not be negative, got {self.dampening}")
        _check(
            self.freezing is None or self.freezing > 0,
            f"quantization.freezing must be positive, got {self.freezing}",
        )
        _check(
            self.transition_rate is None or 0 < self.transition_rate < 1,
            f"quantization.transition_rate must be between 0 and 1, got {self.transition_rate}",
        )


@dataclass(frozen=True)
class OptimizerConfig:
    """An optimizer of torch's or timm's; learned steps and offsets are never decayed."""

    name: str = "sgd"
    """sgd or adam, torch's own, or any other of `timm.optim.list_optimizers()`, such as adamw, lamb or lion."""
    lr: float = 0.02
    """Where the schedule starts, after any warm-up."""
    momentum: float = 0.9
    """SGD's, and that of timm's optimizers that have one."""
    nesterov: bool = False
    """sgd's."""
    weight_decay: float = 1e-4
    step_lr: float | None = None
    """Another learning rate for steps and offsets."""

    def __post_init__(self) -> None:
        _check(math.isfinite(self.lr) and self.lr > 0, f"optimizer.lr must be positive, got {self.lr}")
        _check(
            self.step_lr is None or (math.isfinite(self.step_lr) and self.step_lr >= 0),
            f"optimizer.step_lr must not be negative, got {self.step_lr}",
        )
        _check(0 <= self.momentum < 1, f"optimizer.momentum must be in [0, 1), got {self.momentum}")
        _check(self.weight_decay >= 0, f"optimizer.weight_decay must not be negative, got {self.weight_decay}")
        _check(not self.nesterov or self.momentum > 0, "optimizer.nesterov needs optimizer.momentum above 0")


_UPDATES = 1000
"""Steps of a schedule of timm's within an epoch."""


def _timm_factor(kind: str, span: int, done: int) -> float:
    """The learning rate after `done` of `span` steps of timm's scheduler of this name, over that at the beginning."""
    optimizer, scheduler = _timm_scheduler(kind, span)
    scheduler.step_update(min(done, span - 1))
    return optimizer.param_groups[0]["lr"]


@functools.lru_cache(maxsize=4)
def _timm_scheduler(kind: str, span: int) -> tuple[torch.optim.Optimizer, Any]:
    import_torchvision()
    from timm.scheduler import create_scheduler_v2

    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    scheduler, _ = create_scheduler_v2(
        optimizer, sched=kind, num_epochs=span, step_on_epochs=False, updates_per_epoch=1, decay_rate=1.0
    )
    return optimizer, scheduler


@dataclass(frozen=True)
class ScheduleConfig:
    """The learning rate over training, as a factor of `optimizer.lr`."""

    kind: Literal["cosine", "step", "tanh", "poly"] = "cosine"
    """Cosine without restart, the step decay of the LSQ paper's ablation, or timm's tanh or poly (of power 1, so linear)."""
    warmup_epochs: float = 0.0
    """Epochs of linear rise before it."""
    step_epochs: int = 20
    """Step decay: epochs between two drops."""
    step_factor: float = 0.1
    """Step decay: what each drop multiplies by."""

    def __post_init__(self) -> None:
        _check(self.warmup_epochs >= 0, f"schedule.warmup_epochs must not be negative, got {self.warmup_epochs}")
        _check(self.step_factor > 0, f"schedule.step_factor must be positive, got {self.step_factor}")
        _check(self.step_epochs >= 1, f"schedule.step_epochs must be at least 1, got {self.step_epochs}")

    def factor(self, epochs_done: float, epochs: int) -> float:
        """What multiplies the learning rate after `epochs_done` (a fraction counts) of `epochs`."""
        if epochs_done < self.warmup_epochs:
            return epochs_done / self.warmup_epochs
        if self.kind == "step":
            return self.step_factor ** int(epochs_done // self.step_epochs)
        span = max(epochs - self.warmup_epochs, 1e-12)
        if self.kind != "cosine":
            return _timm_factor(self.kind, round(span * _UPDATES), round((epochs_done - self.warmup_epochs) * _UPDATES))
        return 0.5 * (1 + math.cos(math.pi * min((epochs_done - self.warmup_epochs) / span, 1.0)))


@dataclass(frozen=True)
class TrainConfig:
    """One run, complete: what `config.json` in its folder holds and what `lowbit.train.run` takes."""

    recipe: str = "custom"
    """The name it came from; for the reader only."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=lambda: DataConfig(path=""))
    quantization: QuantizationConfig | None = None
    """None trains in full precision."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    task: str = "classify"
    """The loss: classify (cross-entropy), distill (from the full-precision network or a larger one: `distillation`),
    autoencode (squared error to the input), reconstruct (no training: `reconstruction`), another of `lowbit.train.tasks.TASKS`, or your own, `package.module:name`."""
    distillation: DistillationConfig = field(default_factory=DistillationConfig)
    reconstruction: ReconstructionConfig = field(default_factory=ReconstructionConfig)
    epochs: int = 3
    """0: as many as the number of training images calls for (`lowbit.train.resolve.epochs_for`)."""
    seed: int = 0
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Mixed precision of the network; steps stay in float32."""
    compile: bool = True
    """Compile forward and loss with torch.compile."""
    shard: bool = False
    """Divide weights, gradients and optimizer state among the processes (FSDP2), for what does not fit one device."""
    sync_batchnorm: bool = False
    """Batch-norm over the images of all processes; else each process normalises its own part of a batch."""
    grad_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them: less memory for more time."""
    channels_last: bool = True
    deterministic: bool = True
    """The same bits again on the same machine; false lets an accelerator choose faster kernels."""
    grad_clip: float | None = None
    """Largest norm of the gradient."""
    accumulate: int = 1
    """Batches per optimizer step."""
    ema: float | None = None
    """Decay of an exponential moving average of the parameters, which is then what is evaluated."""
    bn_batches: int = 0
    """Training batches from which batch-norm statistics are re-estimated after training; 0 leaves them."""
    bn_keep: Literal["better", "always"] = "better"
    """When the re-estimated statistics replace the trained ones: always, or if the accuracy is higher, on the
    images for validation where there are such (`data.validation`), else on the test images."""
    checkpoint_minutes: float = 10.0
    """Minutes between two checkpoints within an epoch, from which a stopped run resumes; 0 writes none."""
    track: tuple[str, ...] = ()
    """Services that are told the run's numbers beside its own log: accelerate's trackers by name (wandb, mlflow, tensorboard,
    trackio, …), or your own, `package.module:name`."""
    output: str | None = None
    """The run folder."""

    def __post_init__(self) -> None:
        _check(
            self.epochs >= 0, f"epochs must be at least 1 (or 0, for as many as the data calls for), got {self.epochs}"
        )
        warmup = self.schedule.warmup_epochs
        _check(
            not self.epochs or warmup <= self.epochs,
            f"schedule.warmup_epochs {warmup:g} are more than the {self.epochs} epochs",
        )
        _check(0 <= self.seed < 2**32, f"seed must be from 0 to 2^32 - 1, got {self.seed}")
        _check(self.accumulate >= 1, f"accumulate must be at least 1, got {self.accumulate}")
        _check(self.grad_clip is None or self.grad_clip > 0, f"grad_clip must be positive, got {self.grad_clip}")
        _check(self.ema is None or 0 < self.ema < 1, f"ema must be between 0 and 1, got {self.ema}")
        _check(
            0 <= self.checkpoint_minutes < math.inf,
            f"checkpoint_minutes must not be negative, got {self.checkpoint_minutes}",
        )
        _check(self.bn_batches >= 0, f"bn_batches must be at least 0, got {self.bn_batches}")
        q = self.quantization
        _check(
            not self.shard or q is None or (q.dampening == 0 and q.freezing is None and q.transition_rate is None),
            "shard: dampening, freezing and transition rates look at whole weights; leave one of the two out",
        )
        _check(not self.shard or self.precision != "fp16", "shard: not with precision fp16; use bf16")

    @property
    def memory_format(self) -> torch.memory_format:
        """How images and weights lie in memory."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def as_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return dataclasses.asdict(self)

    def flat(self) -> dict[str, Any]:
        """The same by dotted names: `optimizer.lr`."""
        return _flat(self.as_dict())

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainConfig:
        """The inverse of `as_dict`. Fields that are missing take their defaults.

        Raises:
            LowbitError: a key that is not a field, or a value of the wrong type; the message has its dotted name.
        """
        return from_plain(cls, values, "")

    def save(self, path: str | Path) -> None:
        """Write it as JSON."""
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(self.as_dict(), indent=2) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> TrainConfig:
        """Read what `save` wrote.

        Raises:
            LowbitError: there is no such file, it is not JSON, or a field in it is wrong.
        """
        values = read_json(path)
        try:
            return cls.from_dict(values)
        except LowbitError as error:
            raise LowbitError(f"{path}: {error}") from error


MAY_CHANGE = (
    "recipe",
    "output",
    "data.path",
    "data.workers",
    "data.eval_batch_size",
    "model.init",
    "distillation.init",
    "quantization.start",
    "shard",
    "grad_checkpointing",
    "checkpoint_minutes",
    "track",
)
"""Fields that may change when a run resumes: where things are, and how they are computed, not what. The images and, for
distillation, the teacher's weights must be the same ones in another place. A checkpoint has what came from
`quantization.start`."""


def differences(a: TrainConfig, b: TrainConfig) -> list[tuple[str, str]]:
    """(dotted name, "name: value of a, now value of b") of every field in which two configs differ."""
    before, now = a.flat(), b.flat()
    return [
        (name, f"{name}: {before.get(name)!r}, now {now.get(name)!r}")
        for name in {**before, **now}
        if before.get(name) != now.get(name)
    ]


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def from_plain(kind: Any, value: Any, where: str) -> Any:
    """Turn the plain data of JSON into the annotated type `kind`; `where` is the dotted name for messages.

    Raises:
        LowbitError: a key that is not a field, or a value of another type.
    """
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise LowbitError(f"{where or 'the config'}: expected an object with named fields, got {value!r}")
        hints = typing.get_type_hints(kind)
        for key in value:
            if key not in hints:
                raise LowbitError(f"{where}{'.' if where else ''}{key}: no such field.{did_you_mean(key, hints)}")
        for each in dataclasses.fields(kind):
            required = each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING
            if required and each.name not in value:
                raise LowbitError(f"{where or 'the config'}: has no {each.name}")
        return kind(**{k: from_plain(hints[k], v, f"{where}.{k}" if where else k) for k, v in value.items()})
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        return from_plain(next(a for a in arguments if a is not types.NoneType), value, where)
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(from_plain(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return dict(value)
    if origin is Literal and value in arguments:
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(kind, type) and isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    choices = f"one of {', '.join(map(repr, arguments))}" if origin is Literal else getattr(kind, "__name__", str(kind))
    raise LowbitError(f"{where}: expected {choices}, got {value!r}")
