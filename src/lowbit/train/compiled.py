"""A training step compiled, and what is made sure of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from lowbit.errors import LowbitError
from lowbit.layers.sites import quantized_layers


class CompiledStep:
    """A function compiled at its first call; where that fails it runs as it is, and one line says so."""

    def __init__(self, function: Callable[..., Any], say: Callable[[str], None]) -> None:
        # Every run compiles the same code; without this the compiler would count earlier runs as recompilations.
        torch.compiler.reset()
        self.plain, self.say = function, say
        # Static shapes: a kernel for any shape, made when a second one turns up, would round differently after a resume.
        self.function = torch.compile(function, dynamic=False)
        self.called = False

    def __call__(self, *arguments: Any) -> Any:
        if self.called:
            return self.function(*arguments)
        self.called = True
        began = time.monotonic()
        try:
            result = self.function(*arguments)
        except Exception as error:
            self.function = self.plain
            result = self.plain(*arguments)  # bad input raises its own error here, with nothing said about compiling
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            self.say(f"the step runs uncompiled: torch.compile does not work here ({reason})")
            return result
        self.say(f"step compiled in {time.monotonic() - began:.0f} s")
        return result


def check_gradients(model: nn.Module) -> None:
    """Refuse a first compiled step that gives no quantized weight a gradient.

    A compiler that loses the gradient of a quantizer, as torch 2.11's did, leaves a loss that falls all the same, by what
    batch-norms and biases learn.

    Raises:
        LowbitError: every weight of a quantized layer that is trained has a gradient of zero, or none.
    """
    trained = [layer.weight for _, layer in quantized_layers(model) if layer.weight.requires_grad]
    if trained and not any(weight.grad is not None and bool(weight.grad.any()) for weight in trained):
        raise LowbitError(
            f"compiled by torch {torch.__version__}, the step gives none of the {len(trained)} quantized weights a gradient: "
            "train with --no-compile (compile=False)"
        )
