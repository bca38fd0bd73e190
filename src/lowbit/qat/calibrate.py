"""Initialization of every quantizer from data."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, fx, nn

from lowbit.batches import parts_of, required_inputs
from lowbit.errors import LowbitError
from lowbit.layers.modes import evaluation
from lowbit.layers.quantized import QuantizedLayer
from lowbit.layers.sites import Site, input_sites, quantized_layers, replaced
from lowbit.lowering.checks import check_norms
from lowbit.lowering.ties import apart, averages
from lowbit.processes import agreed
from lowbit.qat.integers import with_first_batch
from lowbit.quantizer.initialization import Initial, Statistics, find_initial
from lowbit.quantizer.module import Quantizer


def calibrate(model: nn.Module, batches: Iterable = ()) -> nn.Module:
    """Initialize every quantizer that has no step yet, in place; returns the model.

    Weight quantizers are initialized from their weights, input quantizers from what the float network (batch-norm in
    evaluation mode) feeds its layers on the batches. Layers that take the same tensor, with the same setting, get one
    quantizer between them. With several processes each gives its own batches, and all get the same steps, from all the
    data. When an error is raised, no quantizer has been initialized. Layers that run in training alone (auxiliary
    heads) are initialized by a second pass over the batches, which a warning says.

    Args:
        model: what `lowbit.prepare` returned.
        batches: inputs, (input, label) pairs, tuples of all inputs of a network that has several, or dictionaries of
            keyword arguments, alone or before labels; the caller chooses how many. May be empty where only weights are
            quantized.

    Raises:
        LowbitError: NaN, infinity or nothing but zeros at a quantizer, a layer that no batch reaches, no batches; of a
            network prepared with `integer_only`, operations that have no integer form for inputs of the first batch's
            shape.
    """
    if isinstance(batches, Tensor):
        raise LowbitError("batches must be an iterable of batches, got one tensor: pass [tensor]")
    batches = with_first_batch(model, batches)
    layers = dict(quantized_layers(model))
    sites = list(input_sites(model))
    if not layers and not sites:
        raise LowbitError("the model has no quantizers: lowbit.prepare comes before lowbit.calibrate")
    if isinstance(model, fx.GraphModule):
        check_norms(model)
    waiting = [site for site in sites if not site.quantizer.initialized]
    found = []
    for layer in layers.values():
        if isinstance(layer.weight_quantizer, Quantizer) and not layer.weight_quantizer.initialized:
            found.append((layer.weight_quantizer, find_initial(layer.weight_quantizer, layer.used_weight().detach())))

    shared: list[list[Site]] = []
    if waiting:
        with agreed():  # what is gathered below waits for every process
            observers = _observe(model, sites, waiting, batches)
        shared = same_inputs(waiting, observers)
        for observer in observers.values():
            observer.statistics.synchronise()
        with agreed():
            found += [(quantizer, find_initial(quantizer, o.statistics)) for quantizer, o in observers.items()]

    for quantizer, initial in _without_ties(model, dict(found), shared).items():
        quantizer.set_initial(initial)
    number = max((site.quantizer.shared for site in sites), default=0)
    for group in shared:
        number += 1
        first = group[0].quantizer
        first.shared = number
        for site in group[1:]:
            site.quantizer = first
    return model


def _without_ties(
    model: nn.Module, found: dict[Quantizer, Initial], shared: Sequence[Sequence[Site]]
) -> dict[Quantizer, Initial]:
    """The same with steps behind an average apart from those before it; see `lowbit.lowering.ties`."""
    if not isinstance(model, fx.GraphModule):
        return found
    alike = {site.quantizer: [each.quantizer for each in group] for group in shared for site in group}
    for before, behind in averages(model):
        if behind in found and (before.initialized or before in found):
            initial = found[behind]
            step = apart(initial.step, found[before].step if before in found else before.step)
            found |= {each: found[each]._replace(step=step) for each in alike.get(behind, [behind])}
    return found


def _observe(
    model: nn.Module, sites: Sequence[Site], waiting: Sequence[Site], batches: Iterable
) -> dict[Quantizer, Observer]:
    """Run the float network on the batches; an observer with the statistics of each waiting quantizer."""
    device = next(model.parameters()).device
    with observed(model, waiting) as observers, _biases_alone(model) as biases:
        last = None
        for batch in batches:
            run_batch(model, batch, device)
            last = batch
        if last is None:
            raise LowbitError("no batches to calibrate with: pass at least one batch of the network's inputs")
        if _with_started_parameters(observers, biases):
            run_batch(model, last, device)
        unreached = _unreached(observers)
        if unreached and iter(batches) is not batches:  # else they are used up
            _in_training(model, sites, observers)
            for batch in batches:
                run_batch(model, batch, device)
    still = _unreached(observers)
    if still:
        raise LowbitError(
            f"no batch reaches {_some(still)}: give batches that do (in a list, if layers run in training alone), or "
            "leave the layer in full precision by a rule"
        )
    if unreached:
        warnings.warn(
            f"training alone reaches {_some(unreached)}: initialized by a second pass over the batches, in training "
            "mode but for batch-norm and dropout",
            stacklevel=3,
        )
    return observers


def _unreached(observers: Mapping[Quantizer, Observer]) -> list[str]:
    return [observer.quantizer.name for observer in observers.values() if observer.statistics.count == 0]


def _some(names: Sequence[str]) -> str:
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def _in_training(model: nn.Module, sites: Sequence[Site], observers: Mapping[Quantizer, Observer]) -> None:
    """Put the modules around layers that no batch has reached in training mode, and observe those layers alone."""
    missing = {id(each) for each in observers.values() if each.statistics.count == 0}
    names = {module: name for name, module in model.named_modules()}
    for site in sites:
        if id(site.quantizer) in missing:
            path = names[site.holder]
            while path:
                path = path.rpartition(".")[0]
                model.get_submodule(path).training = True
    for observer in observers.values():
        observer.waits = id(observer) in missing


def _with_started_parameters(observers: Mapping[Quantizer, Observer], biases: _Biases) -> bool:
    """Let parameters that are 0 have values as in training, and observe what was all 0; False where nothing was."""
    zero = [each for each in observers.values() if each.statistics.count and not bool(each.statistics.max_abs.any())]
    starting = [each for each in observers.values() if each.zero_parameter]
    if not zero or not (starting or any(biases.alone.values())):
        return False
    for observer in observers.values():
        observer.waits = observer.anew = observer in zero
    for observer in starting:
        observer.starts = True
    biases.start()
    return True


class _Biases:
    """The biases that are still 0 and all that their module gives, as that of a layer-norm over a single channel is.

    What such a module takes is not 0: where it is, its zeros are the data's and no parameter would mend them.
    """

    def __init__(self) -> None:
        self.alone: dict[nn.Module, bool] = {}
        self.zeros: list[tuple[nn.Parameter, Tensor]] = []

    def look(self, module: nn.Module, inputs: tuple, output: object) -> None:
        """A forward hook."""
        if inputs and isinstance(inputs[0], Tensor) and isinstance(output, Tensor):
            alone = not bool(output.any()) and bool(inputs[0].any())
            self.alone[module] = alone and self.alone.get(module, True)

    def start(self) -> None:
        """Give them values as in training."""
        for bias in (module.bias for module, alone in self.alone.items() if alone):
            assert isinstance(bias, nn.Parameter)
            self.zeros.append((bias, bias.data))
            bias.data = _as_parameters_start(bias.data)


@contextmanager
def _biases_alone(model: nn.Module) -> Iterator[_Biases]:
    """Within: looks for such biases; what has been started is 0 again behind it."""
    biases, hooks = _Biases(), []
    for module in model.modules():
        weight, bias = (module._parameters.get(name) for name in ("weight", "bias"))
        scaled = weight is None or bool(weight.any())  # by other numbers than 0
        if bias is not None and not isinstance(module, QuantizedLayer) and scaled and not bool(bias.any()):
            hooks.append(module.register_forward_hook(biases.look))
    try:
        yield biases
    finally:
        for hook in hooks:
            hook.remove()
        for bias, zeros in biases.zeros:
            bias.data = zeros


class Observer(nn.Module):
    """Stands where an input quantizer will, passes its input on and keeps statistics of it."""

    def __init__(self, quantizer: Quantizer, tokens: _Tokens) -> None:
        super().__init__()
        # In a tuple, so that it does not become a submodule: the network is to look as if it had no quantizers.
        self._of = (quantizer,)
        self.statistics = Statistics(quantizer.raw_step.shape)
        self.tokens = tokens
        self.seen: list[int] = []
        self.waits = True
        self.anew = False  # forgets at the next tensor those before it
        self.zero_parameter = False
        self.starts = False  # gives a parameter that is 0 other values

    @property
    def quantizer(self) -> Quantizer:
        """The quantizer this stands for."""
        return self._of[0]

    def forward(self, x: Tensor) -> Tensor:
        if self.starts:
            return _as_parameters_start(x)
        if not self.waits:
            return x
        self.seen.append(self.tokens.of(x))
        if x.numel() == 0:  # what a detector without detections gives its second stage
            return x
        if self.anew:
            self.statistics, self.anew = Statistics(self.quantizer.raw_step.shape), False
        self.zero_parameter = self.quantizer.batch_dim is None and not bool(x.any())
        self.statistics.update(_as_parameters_start(x) if self.zero_parameter else self.quantizer.transform(x))
        if not bool(torch.isfinite(self.statistics.low).all() and torch.isfinite(self.statistics.high).all()):
            raise LowbitError(
                f"{self.quantizer.name} holds NaN or infinity: look for it in the network's weights and in the "
                "calibration data"
            )
        return x


def _as_parameters_start(x: Tensor) -> Tensor:
    """Values as a position embedding or class token usually has at first, for one that is all zeros.

    What training makes of it is not known.
    """
    return 0.02 * torch.linspace(-2, 2, x.numel(), device=x.device, dtype=x.dtype).reshape(x.shape)


class _Tokens:
    """A number for each distinct tensor: equal exactly for the same tensor object in the same state, while it lives."""

    def __init__(self) -> None:
        self._live: dict[int, tuple[weakref.ref, int, int]] = {}
        self._next = 0

    def of(self, x: Tensor) -> int:
        if x.is_inference():  # has no version to tell its states apart
            self._next += 1
            return self._next
        known = self._live.get(id(x))
        if known is not None and known[0]() is x and known[1] == x._version:
            return known[2]
        self._next += 1
        self._live[id(x)] = (weakref.ref(x), x._version, self._next)
        return self._next


@contextmanager
def observed(model: nn.Module, waiting: Sequence[Site] = ()) -> Iterator[dict[Quantizer, Observer]]:
    """Within: evaluation mode, no gradients, nothing quantized, an observer in place of each waiting quantizer."""
    tokens = _Tokens()
    observers: dict[Quantizer, Observer] = {}
    for site in waiting:
        observers.setdefault(site.quantizer, Observer(site.quantizer, tokens))
    nothing = nn.Identity()
    with evaluation(model), torch.no_grad(), replaced(model, lambda quantizer: observers.get(quantizer, nothing)):
        yield observers


def run_batch(model: nn.Module, batch: object, device: torch.device) -> None:
    """Run the model on a batch as a data loader gives it: see `parts_of`; a dictionary is keyword arguments."""
    inputs, _ = parts_of(batch, required_inputs(model))
    if isinstance(inputs, Mapping):
        model(**{key: value.to(device) if isinstance(value, Tensor) else value for key, value in inputs.items()})
        return
    if not isinstance(inputs, Tensor):
        raise LowbitError(
            "a calibration batch must be a tensor, an (input, label) pair, a tuple of all inputs or a dictionary, got "
            f"{type(batch).__name__}"
        )
    if inputs.numel() == 0:
        raise LowbitError("a calibration batch is empty: pass batches with at least one sample")
    model(inputs.to(device))


def same_inputs(waiting: Sequence[Site], observers: Mapping[Quantizer, Observer]) -> list[list[Site]]:
    """Groups of two or more sites that took the same tensors at every call and quantize them alike."""
    groups: dict[tuple, list[Site]] = {}
    for site in waiting:
        quantizer = site.quantizer
        key = (tuple(observers[quantizer].seen), quantizer.bits, quantizer.narrow, quantizer.method)
        groups.setdefault(key, []).append(site)
    return [sites for sites in groups.values() if len(sites) > 1]
