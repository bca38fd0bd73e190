"""`lowbit.diagnose`: the measurements of a prepared network on data, and what they say."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lowbit.diagnosis.findings import Accuracy, find
from lowbit.diagnosis.measure import Measured
from lowbit.diagnosis.passes import Errors, NormStatistics, Outputs, hooked, inputs_of, outputs_of
from lowbit.diagnosis.places import Place, float_network, layers, places
from lowbit.diagnosis.records import LayerRecord, NormRecord, TensorRecord
from lowbit.diagnosis.result import Diagnosis
from lowbit.errors import LowbitError
from lowbit.layers.function import QuantizedFunction
from lowbit.layers.modes import evaluation
from lowbit.layers.quantized import QuantizedLayer, float_class
from lowbit.quantizer.module import Quantizer

_OUTPUT = "(the network's output)"


@torch.no_grad()
def diagnose(
    model: nn.Module,
    batches: Iterable[Any],
    reference: nn.Module | None = None,
    *,
    history: Sequence[Mapping[str, Any]] = (),
) -> Diagnosis:
    """Measure a prepared, calibrated network on batches, beside the float network, and say what is wrong with it.

    Every quantized tensor is measured as the quantized network has it: signal-to-quantization-noise, clipped share,
    unused codes, range against step. Every layer is measured beside the float network: all quantizers on (the error
    accumulated along the network), and its own quantizers alone (on the first batch). Batch-norm's stored statistics
    are compared with those of the batches. Nothing of the model changes, and no random state is touched; it costs about
    as much as four runs over the batches, and one run of the first batch for every layer.

    Args:
        model: from `lowbit.prepare`, with `integer_only` or without, calibrated; trained or not.
        batches: a few batches of the network's inputs: tensors, (input, label) pairs or dictionaries of keyword
            arguments. Some hundred samples are enough. Where labels are class numbers, accuracies are counted too.
        reference: the float network that the model was made from; None compares with the model without its quantizers.
        history: what was logged of quantizers during training, events of a run's log (`lowbit.report.read_looks`).

    Returns:
        The measurements and `findings`, most serious first.

    Raises:
        LowbitError: the model has no quantizers, or one that has no step yet; no batches, or such as it can't take; a
            reference that is prepared itself or lacks a layer of the model; NaN or infinity in a quantized tensor.
    """
    if isinstance(batches, Tensor):
        raise LowbitError("batches must be an iterable of batches, got one tensor: pass [tensor]")
    all_places = places(model)
    if reference is not None:
        _check_reference(model, reference)
    run = _Run(model, all_places, reference)
    for batch in batches:
        run.add(batch)
    if run.samples == 0:
        raise LowbitError("no batches to diagnose with: pass at least one batch of the network's inputs")
    tensors, measured_layers, norms = run.tensors(), run.layers(), run.norm_records()
    return Diagnosis(
        samples=run.samples,
        against="the reference" if reference is not None else "the network without quantizers",
        accuracy=run.accuracy(),
        output_sqnr=run.errors.sqnr(_OUTPUT),
        tensors=tensors,
        layers=measured_layers,
        norms=norms,
        findings=find(tensors, measured_layers, norms, history),
    )


def _check_reference(model: nn.Module, reference: nn.Module) -> None:
    if any(isinstance(each, Quantizer) for each in reference.modules()):
        raise LowbitError("the reference has quantizers: give the float network that the model was made from, or None")
    known = dict(reference.named_modules())
    for name, layer in model.named_modules():
        if not isinstance(layer, QuantizedLayer):
            continue
        other = known.get(name)
        if other is None or float_class(other) is not float_class(layer):
            raise LowbitError(
                f"the reference has no layer {name!r} like the model's: give the float network that it was made from"
            )
        if tuple(getattr(other, "weight").shape) != tuple(layer.weight.shape):  # noqa: B009  # a module's attribute
            raise LowbitError(f"layer {name!r} of the reference has a weight of another shape than the model's")


class _Run:
    """Goes over the batches, one at a time in memory."""

    def __init__(self, model: nn.Module, all_places: Sequence[Place], reference: nn.Module | None) -> None:
        self.model, self.places, self.reference = model, all_places, reference
        self.device = next(model.parameters()).device
        kinds = QuantizedLayer if reference is not None else (QuantizedLayer, QuantizedFunction)
        self.modules = {name: module for name, module in model.named_modules() if isinstance(module, kinds)}
        self.measured: dict[nn.Module, Measured] = {}
        for place in all_places:  # a quantizer that several share is the first one's
            self.measured.setdefault(place.quantizer, Measured(place, _channel_dim(place)))
        self.quantizers = {f"{i}": each for i, each in enumerate(self.measured)}
        self.alive: dict[str, Tensor] = {}  # largest |input| of each channel in full precision, by layer
        self.norms, self.float_norms = NormStatistics(model), NormStatistics(model)
        self.reference_norms = None if reference is None else NormStatistics(reference)
        self.errors, self.alone = Errors(), Errors()
        self.samples = self.labelled = 0
        self.right = {"quantized": 0, "float": 0, "reference": 0}

    def add(self, batch: Any) -> None:
        arguments, keywords, labels = inputs_of(batch, self.device)
        model, first = self.model, self.samples == 0
        with float_network(model, self.places):
            seen = Outputs()
            with hooked(self.modules if self.reference is None else {}, self._see_float(seen)):
                plain = outputs_of(model(*arguments, **keywords))
            if self.float_norms.norms:
                with hooked(self.float_norms.norms, self.float_norms.see):
                    model(*arguments, **keywords)
            if first:
                for name, members in layers(self.places).items():
                    for place in members:
                        place.switch(on=True)
                    self.alone.add(name, plain, outputs_of(model(*arguments, **keywords)))
                    for place in members:
                        place.switch(on=False)
        expected = plain
        if self.reference is not None:
            with evaluation(self.reference):
                theirs = {name: self.reference.get_submodule(name) for name in self.modules}
                with hooked(theirs, self._see_float(seen)):
                    expected = outputs_of(self.reference(*arguments, **keywords))
                if self.reference_norms is not None and self.reference_norms.norms:
                    with hooked(self.reference_norms.norms, self.reference_norms.see):
                        self.reference(*arguments, **keywords)
        tensors = [each for each in (*arguments, *keywords.values()) if isinstance(each, Tensor)]
        with evaluation(model):
            given = {each.untyped_storage().data_ptr() for each in tensors}
            calls = dict.fromkeys(self.modules, 0)

            def see(name: str, module: nn.Module, arguments: tuple, output: Any) -> None:
                place, found = calls[name], outputs_of(output)
                calls[name] += len(found)
                self.errors.add(name, seen.of.get(name, [])[place:], found)

            def measure(name: str, module: nn.Module, arguments: tuple, output: Any) -> None:
                measured, x = self.measured[module], arguments[0].detach()
                if measured.count == 0:
                    measured.first = sum(each.count > 0 for each in self.measured.values())
                measured.is_input |= x.untyped_storage().data_ptr() in given
                measured.update(x, output.detach())

            with hooked(self.modules, see), hooked(self.quantizers, measure):
                found = outputs_of(model(*arguments, **keywords))
            if self.norms.norms:
                with hooked(self.norms.norms, self.norms.see):
                    model(*arguments, **keywords)
        self.errors.add(_OUTPUT, expected, found)
        self.samples += len(tensors[0])
        if labels is not None and found and found[0].dim() == 2 and len(found[0]) == len(labels):
            self.labelled += len(labels)
            self._count("quantized", found, labels)
            self._count("float", plain, labels)
            self._count("reference", expected, labels)

    def _count(self, name: str, outputs: Sequence[Tensor], labels: Tensor) -> None:
        self.right[name] += int((outputs[0].argmax(1) == labels).sum())

    def _see_float(self, seen: Outputs) -> Any:
        def see(name: str, module: nn.Module, arguments: tuple, output: Any) -> None:
            seen.see(name, module, arguments, output)
            dim = _input_dim(self.modules[name])
            x = arguments[0].detach()
            if dim is not None and x.numel() and x.dim() >= getattr(module, "weight").dim():  # noqa: B009
                peak = x.abs().amax([each for each in range(x.dim()) if each != dim % x.dim()])
                self.alive[name] = torch.maximum(self.alive[name], peak) if name in self.alive else peak

        return see

    def accuracy(self) -> Accuracy | None:
        if not self.labelled:
            return None
        percent = {name: 100 * count / self.labelled for name, count in self.right.items()}
        return Accuracy(
            self.labelled, percent["quantized"], percent["float"], percent["reference"] if self.reference else None
        )

    def tensors(self) -> tuple[TensorRecord, ...]:
        records = ((each.first, each.record(self._float_alive(each.place))) for each in self.measured.values())
        return tuple(record for _, record in sorted(records, key=lambda pair: pair[0]) if record is not None)

    def _float_alive(self, place: Place) -> Tensor | None:
        """The largest values of each channel in full precision."""
        if place.tensor == "input":
            return self.alive.get(place.layer)
        if place.tensor != "weight" or not isinstance(place.holder, QuantizedLayer):
            return None
        layer = place.holder if self.reference is None else self.reference.get_submodule(place.layer)
        assert isinstance(layer.weight, Tensor)
        peak = layer.weight.detach().abs().flatten(1).amax(1)
        # Training leaves no weights at exactly zero: with nothing to compare with, those count as lost.
        return torch.where(peak == 0, torch.inf, peak) if self.reference is None else peak

    def layers(self) -> tuple[LayerRecord, ...]:
        records = []
        # In the order of forward.
        order = {quantizer: each.first for quantizer, each in self.measured.items()}
        named = sorted(layers(self.places).items(), key=lambda pair: min(order[place.quantizer] for place in pair[1]))
        for name, members in named:
            holder = members[0].holder
            weight = getattr(holder, "weight", None) if isinstance(holder, QuantizedLayer) else None
            bits = {place.is_weight: place.quantizer.bits for place in reversed(members)}
            kind = float_class(holder)
            parameters = 0 if weight is None else weight.numel()
            records.append(
                LayerRecord(
                    name=name,
                    kind=kind.__name__
                    if kind is not None
                    else ("" if members[0].tensor == "value" else type(holder).__name__),
                    weight_bits=bits.get(True),
                    activation_bits=bits.get(False),
                    parameters=parameters,
                    size_bits=parameters * (bits.get(True) or 32),
                    alone=self.alone.sqnr(name),
                    accumulated=self.errors.sqnr(name),
                )
            )
        return tuple(records)

    def norm_records(self) -> tuple[NormRecord, ...]:
        records = []
        for name in self.norms.sums:
            drift, mean_shift, std_ratio = self.norms.against_stored(name)
            float_drift = self.float_norms.against_stored(name)[0]
            theirs = self.reference_norms
            reference = None if theirs is None or name not in theirs.sums else theirs.against_stored(name)[0]
            channels = self.norms.norms[name].num_features
            records.append(NormRecord(name, channels, drift, float_drift, reference, mean_shift, std_ratio))
        return tuple(records)


def _channel_dim(place: Place) -> int | None:
    if place.tensor == "input":
        return _input_dim(place.holder)
    if place.tensor != "weight" or not isinstance(place.holder, QuantizedLayer):
        return None
    return None if isinstance(place.holder, nn.modules.conv._ConvTransposeNd) else 0


def _input_dim(layer: nn.Module) -> int | None:
    """The dimension of a layer's input that has its channels."""
    if isinstance(layer, nn.Linear):
        return -1
    return 1 if isinstance(layer, QuantizedLayer) else None
