"""Low bits without labels: block by block, so that each gives what it gives in full precision."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lowbit.batches import parts_of, required_inputs
from lowbit.errors import LowbitError
from lowbit.files import atomic_write, check_writable
from lowbit.layers.modes import evaluation
from lowbit.layers.quantized import QuantizedLayer
from lowbit.layers.sites import Site, input_sites, quantizers
from lowbit.qat.batchnorm import averaging, by_batches, kept, put_back, running, tracking
from lowbit.qat.blocks import Block, Blocks, Values, chosen, gathered, stacked
from lowbit.qat.calibrate import observed
from lowbit.qat.soft_rounding import SoftRounding
from lowbit.quantizer.module import Quantizer, as_quantizer

# How far v, and a step relative to itself, can go: with Adam a parameter moves by its learning rate at each step of
# learning, so that fewer of these take larger ones.
_ROUNDING, _STEPS = 20.0, 2.0

_CHUNK = 64
"""Samples that are run at once where nothing is learned."""


@dataclass(frozen=True)
class Reconstructed:
    """What reconstruction made of a block.

    Attributes:
        layers: names of its quantized layers.
        before: mean squared difference of its outputs from those in full precision, relative to their mean square,
            each block on what its predecessors in full precision give, with weights rounded to nearest.
        after: the same behind it.
    """

    layers: tuple[str, ...]
    before: float
    after: float


def reconstruct(
    model: nn.Module,
    batches: Iterable[Any],
    steps: int = 1000,
    *,
    batch_size: int = 32,
    drop: float = 0.5,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    on_block: Callable[[int, int, Reconstructed], None] | None = None,
) -> list[Reconstructed]:
    """Learn the rounding of weights and the steps of activations, block by block, in place. Takes no labels.

    A block is what lies between two places where one tensor alone goes on, such as a residual block (BRECQ: Li et al.,
    ICLR 2021, arXiv 2102.05426). Its weights are rounded up or down as is learned by AdaRound (`SoftRounding`), while
    each activation stays in full precision with probability `drop` (QDrop: Wei et al., ICLR 2022, arXiv 2203.05740), so
    that the block gives what it gives in full precision. Batch-norms normalize by the statistics of each batch
    meanwhile, so that nothing is learned for what they take out. Afterwards each weight is moved just as far as its
    quantizer needs to round it to that level, and the running statistics are taken again, from all samples, before the
    next block learns. The network stays what `lowbit.prepare` made: training, integers and export go on from it.

    Args:
        model: a network from `lowbit.prepare`, calibrated, with the weights of the trained network in full precision.
        batches: inputs, (input, label) pairs or dictionaries, as for `lowbit.calibrate`; a few hundred samples
            together, all of which are held in memory, and what goes on between two blocks with them.
        steps: of learning, for each block.
        batch_size: samples in each of these.
        drop: the share of activations that are not quantized while a block learns; 0 quantizes all.
        seed: of the choice of samples and of what is dropped.
        checkpoint: a file that keeps what is done after each block. If it is there, reconstruction goes on from it, to
            the same bits.
        on_block: is called with (blocks done, blocks, what the last one became).

    Returns:
        What became of each block, in order; those of a resumed reconstruction too.

    Raises:
        LowbitError: no batches, quantizers without steps, a forward that cannot be recorded, or a checkpoint of another
            reconstruction. Then, and when it is interrupted, the model is as it was.
    """
    if isinstance(batches, Tensor):
        raise LowbitError("batches must be an iterable of batches, got one tensor: pass [tensor]")
    batches = list(batches)
    if not batches:
        raise LowbitError("no batches to reconstruct with: pass at least one batch of the network's inputs")
    _check_initialized(model)
    first, _ = parts_of(batches[0], required_inputs(model))
    blocks = Blocks(model, first)
    learning = _Learning(blocks, gathered(blocks, batches), _Settings(steps, batch_size, drop, seed))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    try:
        with evaluation(blocks.model):
            done = _resumed(checkpoint, model, learning)
            for block in blocks.blocks[: len(done)]:
                learning.pass_on(block)
            for number, block in enumerate(blocks.blocks[len(done) :], len(done)):
                done.append(learning.learn(block, number))
                learning.pass_on(block)
                _keep(checkpoint, model, learning, done)
                if on_block is not None:
                    on_block(len(done), len(blocks.blocks), done[-1])
    except BaseException:
        model.load_state_dict(before)
        raise
    return done


@dataclass(frozen=True)
class _Settings:
    """How `reconstruct` was called."""

    steps: int
    batch_size: int
    drop: float
    seed: int

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size"):
            if getattr(self, name) < 1:
                raise LowbitError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.drop < 1:
            raise LowbitError(f"drop is a share of activations, at least 0 and below 1, got {self.drop}")


class _Learning:
    """The values between blocks, and how a block learns.

    Attributes:
        exact: what the network in full precision gives there, as it was before anything was learned.
        quantized: what the quantized network gives, of which the blocks so far have learned.
        samples: the network's inputs.
        before: of each block, what learning changes.
        settings: those of `reconstruct`.
    """

    def __init__(self, blocks: Blocks, samples: Values, settings: _Settings) -> None:
        self.blocks, self.samples, self.settings = blocks, samples, settings
        self.exact, self.quantized = dict(samples), dict(samples)
        self.learned: set[nn.Module] = set()
        self.before = {block: kept(self._changed(block)) for block in blocks.blocks}
        self.sites = [site for site in input_sites(blocks.model) if site.attribute != "parameter_quantizer"]

    def pass_on(self, block: Block) -> None:
        """Go on behind the block."""
        with torch.no_grad():
            self.quantized |= self._chunks(block, self.quantized)
        self.exact |= self._full_precision(block)
        self.learned |= {self.blocks.model.get_submodule(name) for name in block.layers}
        blocks = self.blocks.blocks
        needed = {node for later in blocks[blocks.index(block) + 1 :] for node in later.inputs}
        for values in (self.exact, self.quantized):
            for node in [node for node in values if node not in needed]:
                del values[node]

    def learn(self, block: Block, number: int) -> Reconstructed:
        """Let the block learn its rounding and its steps."""
        target = {node: value for node, value in self._full_precision(block).items() if value.is_floating_point()}
        size = {node: float(value.square().mean().clamp_min(1e-20)) for node, value in target.items()}
        before = self._difference(block, target, size)
        generator = torch.Generator().manual_seed(self.settings.seed * 100003 + number)
        norms, samples = self._norms(block), len(next(iter(self.samples.values())))
        learning = by_batches(norms if min(samples, self.settings.batch_size) > 1 else ())
        with self._soft(block, generator) as (soft, quantizers), learning:
            groups: list[dict[str, Any]] = [
                {"params": [each.v for each in soft.values()], "lr": _ROUNDING / self.settings.steps}
            ]
            groups += [
                {"params": [p], "lr": _STEPS / self.settings.steps * float(q.step.mean())}
                for q in quantizers
                for p in _learned(q)
            ]
            groups = [group for group in groups if group["params"]]
            if groups and target:
                optimizer = torch.optim.Adam(groups)
                schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.settings.steps)
                for step in range(self.settings.steps):
                    loss = self._loss(block, target, size, generator)
                    progress = (step / self.settings.steps - 0.2) / 0.8
                    if progress > 0:
                        sharpness = 2 + 9 * (1 + math.cos(math.pi * progress))
                        loss = loss + 0.01 * sum(each.undecided(sharpness) for each in soft.values())
                    optimizer.zero_grad(set_to_none=True)
                    loss.backward()
                    optimizer.step()
                    schedule.step()
            with torch.no_grad():
                for layer, each in soft.items():
                    layer.weight.copy_(each.decided(layer.weight))
        if samples > 1:
            with torch.no_grad(), averaging(norms):
                self._chunks(block, self.quantized)
        return Reconstructed(block.layers, before, self._difference(block, target, size))

    def _loss(self, block: Block, target: Values, size: dict[Any, float], generator: torch.Generator) -> Tensor:
        count = len(next(iter(target.values())))
        samples = torch.randperm(count, generator=generator)[: self.settings.batch_size]
        inputs: Values = {}
        for node in block.inputs:
            exact, quantized = self.exact[node][samples], self.quantized[node][samples]
            dropped = exact.is_floating_point() and self.settings.drop > 0
            inputs[node] = (
                torch.where(_drawn(exact, self.settings.drop, generator), exact, quantized) if dropped else quantized
            )
        outputs = self.blocks.through(block, inputs)
        # A sum over channels, a mean over the rest, as in BRECQ, of differences relative to the size of the target.
        return torch.stack(
            [
                (outputs[node] - value[samples]).square().mean() * value[0].shape[0] / size[node]
                for node, value in target.items()
            ]
        ).sum()

    @torch.no_grad()
    def _difference(self, block: Block, target: Values, size: dict[Any, float]) -> float:
        outputs = self._chunks(block, self.quantized)
        each = [float((outputs[node] - value).square().mean()) / size[node] for node, value in target.items()]
        return sum(each) / max(len(each), 1)

    def _full_precision(self, block: Block) -> Values:
        with observed(self.blocks.model), self._as_before(block):
            return self._chunks(block, self.exact)

    @contextmanager
    def _as_before(self, block: Block) -> Iterator[None]:
        """Within: the block as it was before it learned."""
        now = kept(self.before[block])
        try:
            put_back(self.before[block])
            yield
        finally:
            put_back(now)

    def _modules(self, block: Block) -> set[nn.Module]:
        called = [self.blocks.model.get_submodule(str(n.target)) for n in block.nodes if n.op == "call_module"]
        return {each for module in called for each in module.modules()}

    def _norms(self, block: Block) -> list[_BatchNorm]:
        return tracking(self._modules(block))

    def _changed(self, block: Block) -> list[Tensor]:
        """Weights of its layers, and running statistics."""
        layers = map(self.blocks.model.get_submodule, block.layers)
        weights = [layer.weight for layer in layers if isinstance(layer, QuantizedLayer)]
        return [*weights, *running(self._norms(block))]

    def _chunks(self, block: Block, values: Values) -> Values:
        count = len(next(iter(values.values())))
        # Of one size, since batch-norm's average counts each alike.
        size = -(-count // -(-count // _CHUNK))
        inputs = {node: values[node] for node in block.inputs}
        return stacked(
            [self.blocks.through(block, chosen(inputs, slice(at, at + size))) for at in range(0, count, size)]
        )

    @contextmanager
    def _soft(
        self, block: Block, generator: torch.Generator
    ) -> Iterator[tuple[dict[Any, SoftRounding], list[Quantizer]]]:
        """Within: soft rounding replaces the block's weight quantizers, and activations are dropped at random."""
        inside = self._modules(block)
        layers = [each for each in inside if isinstance(each, QuantizedLayer) and each not in self.learned]
        soft = {
            layer: SoftRounding(as_quantizer(layer.weight_quantizer), layer.weight)
            for layer in layers
            if _is_rounded(layer)
        }
        sites: list[tuple[Site, Quantizer]] = [
            (site, site.quantizer) for site in self.sites if site.quantizer in inside
        ]
        weights = {layer: layer.weight_quantizer for layer in soft}
        try:
            for layer, each in soft.items():
                layer.weight_quantizer = each
            for site, quantizer in sites:
                site.quantizer = _Dropped(quantizer, self.settings.drop, generator)
            yield soft, list(dict.fromkeys(quantizer for _, quantizer in sites))
        finally:
            for layer, quantizer in weights.items():
                layer.weight_quantizer = quantizer
            for site, quantizer in sites:
                site.quantizer = quantizer


class _Dropped(nn.Module):
    """x̂, but x itself with a probability, element by element."""

    def __init__(self, quantizer: Quantizer, drop: float, generator: torch.Generator) -> None:
        super().__init__()
        self.quantizer, self.drop, self.generator = quantizer, drop, generator

    def forward(self, x: Tensor) -> Tensor:
        x_hat = self.quantizer(x)
        return torch.where(_drawn(x, self.drop, self.generator), x, x_hat) if self.drop > 0 else x_hat


def _drawn(x: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    return (torch.rand(x.shape, generator=generator) < probability).to(x.device)


def _learned(quantizer: Quantizer) -> list[nn.Parameter]:
    parameters = [quantizer.raw_step, *([quantizer.offset] if quantizer.offset is not None else [])]
    return [parameter for parameter in parameters if parameter.requires_grad]


def _is_rounded(layer: QuantizedLayer) -> bool:
    """Whether the layer's weight is a parameter that a step divides, and nothing else is done to it."""
    quantizer = layer.weight_quantizer
    return (
        isinstance(quantizer, Quantizer)
        and quantizer.method.range is None
        and quantizer.method.transform is None
        and not quantizer.uses_offset
        and not (quantizer.grid is not None and quantizer.grid.binary)
        and layer.used_weight() is layer.weight
    )


def _check_initialized(model: nn.Module) -> None:
    found = list(quantizers(model))
    if not found:
        raise LowbitError(
            "the model has no quantizers: lowbit.prepare and lowbit.calibrate come before lowbit.reconstruct"
        )
    for name, quantizer in found:
        if not quantizer.initialized:
            raise LowbitError(f"{name} has no step yet: lowbit.calibrate comes before lowbit.reconstruct")


def _key(learning: _Learning) -> dict[str, Any]:
    """What a checkpoint must have in common with the reconstruction that goes on from it."""
    digest = sum(float(value.double().abs().sum()) for value in learning.samples.values() if value.is_floating_point())
    return {
        **asdict(learning.settings),
        "samples": [tuple(value.shape) for value in learning.samples.values()],
        "digest": digest,
        "blocks": [list(block.layers) for block in learning.blocks.blocks],
    }


def _resumed(checkpoint: str | Path | None, model: nn.Module, learning: _Learning) -> list[Reconstructed]:
    """What a checkpoint has of this reconstruction; its state goes into the model."""
    if checkpoint is None:
        return []
    check_writable(checkpoint)
    if not Path(checkpoint).exists():
        return []
    try:
        saved = torch.load(checkpoint, weights_only=True)
        key, done, state = saved["reconstruction"], saved["done"], saved["state"]
    except Exception as error:  # torch.load raises what it likes
        raise LowbitError(f"{checkpoint}: not a checkpoint of lowbit.reconstruct ({type(error).__name__})") from error
    for name, value in _key(learning).items():
        if key.get(name) != value:
            raise LowbitError(
                f"{checkpoint} is of another reconstruction: its {name} differ from those given. Give those, or "
                "another file"
            )
    model.load_state_dict(state)
    return [Reconstructed(tuple(layers), before, after) for layers, before, after in done]


def _keep(checkpoint: str | Path | None, model: nn.Module, learning: _Learning, done: Sequence[Reconstructed]) -> None:
    if checkpoint is None:
        return
    rows = [(list(each.layers), each.before, each.after) for each in done]
    with atomic_write(checkpoint) as path:
        torch.save({"reconstruction": _key(learning), "done": rows, "state": model.state_dict()}, path)
