"""Networks for integers alone: recorded as a graph with all its quantizers, at once or when the first batch is there.

Most networks of convolutions can be recorded without their inputs' shapes. Where forward decides by sizes, or computes
with functions that are several operations, an example is needed: `lowbit.prepare` takes one, else the first batch of
`lowbit.calibrate` serves.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from lowbit.batches import parts_of, required_inputs
from lowbit.errors import LowbitError
from lowbit.layers.rules import INSERTED, Rules, Setting
from lowbit.lowering.foresee import check_convertible
from lowbit.lowering.placement import NeedsExample, integer_form


@dataclass(frozen=True)
class Recording:
    """How a prepared network becomes a graph.

    Attributes:
        rules: which settings the quantizers between layers have.
        between: their setting where no rule says otherwise.
        functions: the setting of convolutions and linear layers that forward calls as functions.
    """

    rules: Rules
    between: Setting
    functions: Setting

    def of(self, prepared: nn.Module, example_input: Any) -> fx.GraphModule:
        """The graph; raises NeedsExample where one is needed, and LowbitError where there can be none."""
        model = integer_form(
            prepared,
            lambda names: [
                (each := self.rules.setting(name, self.between), each is not self.between) for name in names
            ],
            lambda name: self.rules.setting(name, self.functions),
            example_input,
        )
        if example_input is not None:
            check_convertible(model, example_input)
        self.rules.check_used()
        return model


def recorded(prepared: nn.Module, recording: Recording, example_input: Any) -> nn.Module:
    """The network as a graph.

    Where it takes an example that is not given, the network itself, for `with_first_batch`.
    """
    try:
        return recording.of(prepared, example_input)
    except NeedsExample:
        vars(prepared)["recording"] = recording
        return prepared


def needs_example(model: nn.Module) -> bool:
    """Whether it is a network that waits for its inputs' shapes."""
    return hasattr(model, "recording")


def with_first_batch(model: nn.Module, batches: Iterable[Any]) -> Iterable[Any]:
    """Record a network that waits for its inputs' shapes, in place.

    A network that has no integer form is refused before it is trained.

    Args:
        model: from `lowbit.prepare`.
        batches: for calibration.

    Returns:
        The same batches.

    Raises:
        LowbitError: no batch, or what `Recording.of` raises; a model that waited must be prepared again.
    """
    waiting = getattr(model, "recording", None)
    if waiting is None and not (isinstance(model, fx.GraphModule) and hasattr(model, INSERTED)):
        return batches
    rest = iter(batches)
    first = next(rest, None)
    if first is None:
        if waiting is None:
            return ()
        raise LowbitError(
            "the network is recorded with the first batch of calibration, and there is none: pass one, or give "
            "prepare an example_input"
        )
    example, _ = parts_of(first, required_inputs(model))
    if waiting is None:
        assert isinstance(model, fx.GraphModule)
        check_convertible(model, example)
    else:
        become(model, waiting.of(_unmarked(model), example))
    return itertools.chain([first], rest)


def _unmarked(model: nn.Module) -> nn.Module:
    """A network of the same modules, which recording may change."""
    again = type(model).__new__(type(model))
    again.__dict__ = {
        name: value.copy() if isinstance(value, dict) else value
        for name, value in vars(model).items()
        if name != "recording"
    }
    return again


def become(model: nn.Module, other: nn.Module) -> None:
    """Make an object the other one, its hooks included: whoever holds it has the other then."""
    hooks = {name: vars(model)[name] for name in ("_load_state_dict_pre_hooks", "_load_state_dict_post_hooks")}
    model.__class__, model.__dict__ = type(other), {**vars(other), **hooks}


def refuse_state(model: nn.Module, *_: object) -> None:
    """Before loading: a network that is not recorded has no place for the state of quantizers between layers."""
    if needs_example(model):
        raise LowbitError(
            "the network takes an example to be recorded: give it to lowbit.prepare (example_input=…) before loading "
            "a checkpoint"
        )
