"""`--task reconstruct`: a run whose one epoch is `lowbit.reconstruct`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import lowbit
from lowbit.data import Loader
from lowbit.errors import LowbitError
from lowbit.inputs import Inputs, batch_size, each
from lowbit.train.checkpoint import Checkpoints
from lowbit.train.machine import arranged
from lowbit.train.tracking import writable
from lowbit.train.trainer import Report, Trainer


class BlockwiseTrainer(Trainer):
    """A network that learns block by block what it gives in full precision, in place of epochs with a loss.

    What is done is kept after each block, in the run's `checkpoints`, until the checkpoint of the whole is there.

    Raises:
        LowbitError: there are several processes.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.say: Callable[[str], None] = arguments[4]
        if self.accelerator.num_processes > 1:
            raise LowbitError("task reconstruct works in one process; start it without a launcher")

    def train_epoch(
        self,
        epoch: int,
        loader: Loader,
        report: Report,
        *,
        first: int = 0,
        pause: Callable[[int], None] = lambda _: None,
    ) -> dict[str, float]:
        """Reconstruct; returns train_loss, the mean over blocks of what they differ by (`lowbit.Reconstructed.after`)."""
        config = self.config
        assert config.output is not None  # a run has a folder
        checkpoints = Checkpoints(Path(config.output))
        loader.set_epoch(epoch)

        def on_block(done: int, blocks: int, block: lowbit.Reconstructed) -> None:
            name = ", ".join(block.layers) or "what stands before the first layer"
            self.say(f"block {done} of {blocks}  {name}: {block.before:.4f} -> {block.after:.4f}")
            report(epoch, done, blocks, block.after, float("nan"))

        with writable(checkpoints.folder):
            checkpoints.folder.mkdir(parents=True, exist_ok=True)
            found = lowbit.reconstruct(
                self.model,
                [each(partial(arranged, layout=config.memory_format), x) for x in self._samples(loader)],
                config.reconstruction.steps,
                batch_size=config.reconstruction.batch_size,
                seed=config.seed,
                checkpoint=checkpoints.blocks,
                on_block=on_block,
            )
        return {"train_loss": sum(block.after for block in found) / len(found)}

    def _samples(self, loader: Loader) -> Iterator[Inputs]:
        """As many as the config says, or all of an epoch; targets are left where they are."""
        missing = self.config.reconstruction.images
        for inputs, _ in loader:
            yield each(lambda x, most=missing: x[:most], inputs)
            missing -= batch_size(inputs)
            if missing <= 0:
                return
