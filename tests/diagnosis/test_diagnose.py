"""The diagnosis of networks whose faults are known, its numbers against numbers computed here, and what it leaves alone."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn

import lowbit
from lowbit.diagnosis import Kind, diagnose
from lowbit.errors import LowbitError
from lowbit.quantizer.initialization import Initial
from tests.diagnosis.networks import Small, Transformer, TwoInputs, settled


def batches(count: int = 2) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(32, 3, 8, 8, generator=generator) for _ in range(count)]


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return settled(Small(), torch.cat(batches()))


def prepared(network: nn.Module, data=None, bits: int = 4, **settings) -> nn.Module:
    settings = {"init_weights": "least-squares", "init_activations": "least-squares", **settings}
    model = lowbit.prepare(network, weights=bits, activations=bits, **settings)
    return lowbit.calibrate(model, batches() if data is None else data).eval()


def decibels(expected: torch.Tensor, found: torch.Tensor) -> float:
    expected, found = expected.double(), found.double()
    return 10 * float(torch.log10(expected.pow(2).sum() / (found - expected).pow(2).sum()))


@pytest.mark.parametrize("integer_only", [False, True])
@pytest.mark.parametrize("granularity", ["tensor", "channel", "group:9"])
def test_a_healthy_network_has_no_findings(network, integer_only, granularity):
    if granularity == "group:9":
        integer_only = False
        found = diagnose(
            prepared(network, granularity=granularity, rules=[lowbit.Rule("linear", granularity="tensor")]), batches()
        )
    else:
        found = diagnose(prepared(network, granularity=granularity, integer_only=integer_only), batches())
    assert found.findings == ()
    assert found.samples == 64
    names = [layer.name for layer in found.layers if not layer.name.startswith("activation_quantizers")]
    assert names == ["conv1", "conv2", "conv3", "conv4", "linear"]
    assert "nothing found" in found.table()


def test_a_range_that_the_method_fixes_is_no_finding(network):
    with torch.no_grad():
        network.bn3.weight.mul_(30)  # far beyond DoReFa's [0, 1]
    rules = {"init_weights": None, "method": "dorefa"}
    fixed = diagnose(prepared(network, init_activations=None, **rules), batches())
    chosen = diagnose(prepared(network, **rules), batches())
    kinds = [{(f.layer, f.kind) for f in found.findings} for found in (fixed, chosen)]
    tensor = next(each for each in fixed.tensors if (each.layer, each.tensor) == ("conv4", "input"))
    assert tensor.clipped_high > 0.3 and tensor.gain == 0
    assert ("conv4", Kind.CLIPPED) not in kinds[0] | kinds[1]


def test_numbers_of_tensors_and_layers(network):
    model = prepared(network, bits=3)
    data = batches()
    found = diagnose(model, data)
    x = torch.cat(data)
    with torch.no_grad():
        # The tensors.
        weight = {t.name: t for t in found.tensors}["conv2.weight"]
        w = model.conv2.weight.detach()
        step = float(model.conv2.weight_quantizer.step)
        codes = (w / step).round().clamp(-4, 3)
        assert weight.sqnr == pytest.approx(decibels(w, codes * step), abs=1e-3)
        assert weight.clipped == pytest.approx(
            float(((w / step) > 3.5).double().mean() + ((w / step) < -4.5).double().mean())
        )
        assert weight.used_codes == len(codes.unique()) and weight.codes == 8
        assert sum(weight.code_counts) == pytest.approx(1) and sum(weight.values) == pytest.approx(1)
        # Accumulated, and of one layer alone.
        want = network(x)
        assert found.output_sqnr == pytest.approx(decibels(want, model(x)), abs=1e-3)
        alone = copy.deepcopy(network)
        x0 = network.bn1(network.conv1(data[0])).relu()
        step, high = float(model.conv2.input_quantizer.step), 7
        alone.conv1.forward = lambda _: None
        alone.bn1.forward = lambda _: x0  # ReLU is idempotent
        alone.conv2.forward = lambda x: nn.functional.conv2d(
            (x / step).round().clamp(0, high) * step, codes * w_step, padding=1
        )
        w_step = float(model.conv2.weight_quantizer.step)
        layers = {layer.name: layer for layer in found.layers}
        assert layers["conv2"].alone == pytest.approx(decibels(network(data[0]), alone(data[0])), abs=1e-2)
        outputs = []
        for each in (network, model):
            hook = each.conv4.register_forward_hook(lambda module, arguments, output: outputs.append(output))
            each(x)
            hook.remove()
        assert layers["conv4"].accumulated == pytest.approx(decibels(*outputs), abs=1e-3)
        assert (layers["conv4"].size_bits, layers["conv4"].kind) == (16 * 16 * 9 * 3, "Conv2d")


def test_against_a_reference_with_other_weights(network):
    model = prepared(network)
    with torch.no_grad():
        model.linear.weight.mul_(1.5)
    x = torch.cat(batches())
    found = diagnose(model, [(x, network(x).argmax(1))], network)
    assert found.against == "the reference"
    with torch.no_grad():
        assert found.output_sqnr == pytest.approx(decibels(network(x), model(x)), abs=1e-3)
    assert found.accuracy.samples == 64 and found.accuracy.reference == 100.0
    right = (model(x).argmax(1) == network(x).argmax(1)).double().mean()
    assert found.accuracy.quantized == pytest.approx(100 * float(right))


@pytest.mark.parametrize("integer_only", [False, True])
def test_nothing_of_the_model_changes(network, integer_only):
    model = prepared(network, integer_only=integer_only).train()
    model.bn2.eval()
    model.conv3.weight.grad = torch.ones_like(model.conv3.weight)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modules, modes = dict(model.named_modules()), [m.training for m in model.modules()]
    torch.manual_seed(5)
    state = torch.get_rng_state()
    diagnose(model, batches(), network)
    assert torch.equal(torch.get_rng_state(), state)
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(after[name], before[name]) for name in before)
    assert dict(model.named_modules()) == modules and [m.training for m in model.modules()] == modes
    assert not any(m._forward_hooks for m in [*model.modules(), *network.modules()])
    assert torch.equal(model.conv3.weight.grad, torch.ones_like(model.conv3.weight))


def test_nothing_changes_where_a_batch_fails(network):
    model = prepared(network)
    modules = dict(model.named_modules())
    with pytest.raises(RuntimeError):
        diagnose(model, [torch.zeros(2, 4, 8, 8)])
    assert dict(model.named_modules()) == modules and not any(m._forward_hooks for m in model.modules())


def test_several_inputs_and_outputs():
    torch.manual_seed(0)
    network = TwoInputs().eval()
    data = [{"a": torch.randn(64, 6), "b": torch.randn(64, 4)} for _ in range(2)]
    model = prepared(network, data)
    found = diagnose(model, data)
    assert found.findings == () and [each.name for each in found.layers] == ["left", "right", "head"]
    outputs = [[each(**data[0]), each(**data[1])] for each in (network, model)]
    flat = [torch.cat([o[key].flatten() for o in run for key in ("head", "hidden")]) for run in outputs]
    assert found.output_sqnr == pytest.approx(decibels(*flat), abs=1e-3)


@pytest.mark.parametrize("integer_only", [False, True])
def test_a_transformer(integer_only):
    torch.manual_seed(0)
    network, data = Transformer().eval(), [torch.randn(16, 8, 8) for _ in range(2)]
    model = prepared(
        network, data, bits=8, integer_only=integer_only, example_input=data[0][:1] if integer_only else None
    )
    found = diagnose(model, data, network)
    assert found.findings == ()
    assert {"embed", "qkv", "proj", "fc1", "fc2", "head"} <= {each.name for each in found.layers}
    assert any(each.tensor == "value" for each in found.tensors) == integer_only


def first(model: nn.Module, reference: nn.Module | None = None, data=None) -> tuple[str, Kind]:
    found = diagnose(model, batches() if data is None else data, reference).findings
    assert found, "nothing found"
    assert all(each.remedy and each.sentence and each.layer in each.text() for each in found)
    assert [each.severity for each in found] == sorted((each.severity for each in found), reverse=True)
    return found[0].layer, found[0].kind


def test_a_signed_grid_for_what_is_never_negative(network):
    data = [each.abs() for each in batches()]
    settled(network, torch.cat(data))
    assert first(prepared(network, data, method="lsq+2"), data=data) == ("conv1", Kind.SIGNED_GRID)


def test_a_layer_with_few_bits(network):
    model = prepared(network, bits=8, rules=[lowbit.Rule("conv3", weights=2)])
    assert first(model) == ("conv3", Kind.LOW_BITS)


@torch.no_grad()
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_an_outlier(network, granularity, bits):
    model = prepared(network, bits=bits, granularity=granularity)
    layer, quantizer = model.conv3, model.conv3.weight_quantizer
    value = 12 * layer.weight.abs().max()
    layer.weight[3, 2, 1, 1] = value
    index = 3 if granularity == "channel" else ()
    step = quantizer.step.clone()
    step[index] = value / quantizer.grid.qp
    quantizer.set_initial(Initial(quantizer.grid, False, step, torch.zeros_like(step)))
    assert first(model) == ("conv3", Kind.OUTLIER)


@torch.no_grad()
@pytest.mark.parametrize("with_reference", [False, True])
def test_a_dead_channel(network, with_reference):
    model = prepared(network, bits=8)
    model.conv4.weight[5] = 0
    assert first(model, network if with_reference else None) == ("conv4", Kind.DEAD_CHANNEL)


@torch.no_grad()
def test_a_channel_that_is_dead_in_the_reference_too_is_no_finding(network):
    network.conv4.weight[5] = 0
    assert diagnose(prepared(network), batches(), network).findings == ()


def scale_step(quantizer: lowbit.Quantizer, factor: float) -> None:
    with torch.no_grad():
        quantizer.raw_step.mul_(factor)
        quantizer.initial_step.mul_(factor)


def test_a_clipped_residual(network):
    model = prepared(network, bits=8, integer_only=True)
    name = next(
        n for n, m in model.activation_quantizers.named_children() if isinstance(m, lowbit.Quantizer) and "bn2" in n
    )
    scale_step(model.activation_quantizers[name], 1 / 10)
    assert first(model) == (f"activation_quantizers.{name}", Kind.CLIPPED)


def test_a_step_that_is_too_large(network):
    model = prepared(network)
    scale_step(model.conv2.weight_quantizer, 6)
    assert first(model) == ("conv2", Kind.STEP_TOO_LARGE)


def test_a_saturated_gelu():
    torch.manual_seed(0)
    network, data = Transformer().eval(), [torch.randn(16, 8, 8)]
    model = prepared(network, data, bits=8)
    scale_step(model.fc2.input_quantizer, 1 / 20)
    assert first(model, data=data) == ("fc2", Kind.CLIPPED)


def test_gelu_at_two_bits_wants_an_offset():
    """Behind the layer norms and in the attention values lie on both sides, and at 4 bits half of the codes are enough."""
    torch.manual_seed(0)
    network, data = Transformer().eval(), [torch.randn(64, 8, 8)]
    network.fc1.weight.data.mul_(4)  # so that GELU bends
    for method, bits, layers in (("lsq", 2, ["fc2"]), ("lsq", 4, []), ("lsq+", 2, []), ("lsq+", 4, [])):
        found = diagnose(prepared(network, data, bits=bits, method=method), data, network).findings
        wanting = [each for each in found if each.kind == Kind.ONE_SIDED]
        assert [each.layer for each in wanting] == layers
        assert all(each.numbers["gain_db"] > 3 and "lsq+" in each.remedy for each in wanting)


@torch.no_grad()
def test_an_offset_far_from_the_data(network):
    model = prepared(network, method="lsq+4")
    quantizer = model.conv3.input_quantizer
    quantizer.offset.sub_(12 * quantizer.step)
    assert first(model) == ("conv3", Kind.ZERO_POINT)


@torch.no_grad()
@pytest.mark.parametrize("factor", [3000.0, 1 / 3000])
def test_a_step_run_to_its_bound(network, factor):
    model = prepared(network)
    model.conv2.weight_quantizer.raw_step.mul_(factor)
    assert first(model) == ("conv2", Kind.STEP_AT_BOUND)


@torch.no_grad()
def test_batchnorm_statistics_of_other_data(network):
    model = prepared(network)
    model.bn3.running_mean.add_(2 * model.bn3.running_var.sqrt())
    model.bn3.running_var.mul_(4)
    assert first(model) == ("bn3", Kind.BATCHNORM_DRIFT)


@pytest.mark.parametrize("wrong", [lambda x: 60 * x + 120, lambda x: 0.01 * x, lambda x: torch.sigmoid(x)])
def test_calibration_data_on_another_scale(network, wrong):
    model = prepared(network, [wrong(each) for each in batches()])
    assert first(model) == ("conv1", Kind.CALIBRATION_DATA)


def test_an_unsigned_grid_for_what_is_negative(network):
    model = prepared(network)
    quantizer = model.conv4.input_quantizer
    model.bn3.register_forward_hook(
        lambda *_: _[2] * 0 + torch.randn(_[2].shape, generator=torch.Generator().manual_seed(0))
    )
    model.forward = lambda x: model.linear(
        model.conv4(model.bn3(model.conv3(model.conv2(model.conv1(x))))).mean((2, 3))
    )
    assert not quantizer.grid.signed
    assert (("conv4", Kind.UNSIGNED_GRID)) in {(each.layer, each.kind) for each in diagnose(model, batches()).findings}


def test_oscillation_in_the_history(network):
    looks = [{"quantizers": {"conv3.weight_quantizer": {"oscillating": share}}} for share in (0.9, 0.9, 0.3, 0.3)]
    (finding,) = diagnose(prepared(network), batches(), history=looks).findings
    assert (finding.layer, finding.kind) == ("conv3", Kind.OSCILLATION)
    assert finding.numbers["oscillating"] == pytest.approx(0.3)
    assert diagnose(prepared(network), batches(), history=looks[:2] + [{"quantizers": {}}] * 2).findings == ()


def test_json(network):
    model = prepared(network, bits=2)
    found = json.loads(diagnose(model, batches()).to_json())
    assert [each["name"] for each in found["layers"]] == ["conv1", "conv2", "conv3", "conv4", "linear"]
    assert {"samples", "tensors", "norms", "findings", "accuracy", "output_sqnr"} <= found.keys()


def test_bad_input(network):
    with pytest.raises(LowbitError, match=r"no quantizers: lowbit\.prepare"):
        diagnose(network, batches())
    model = lowbit.prepare(network)
    with pytest.raises(LowbitError, match=r"the weight of layer 'conv1' has no step yet: run lowbit\.calibrate"):
        diagnose(model, batches())
    model = prepared(network)
    with pytest.raises(LowbitError, match="no batches to diagnose with"):
        diagnose(model, [])
    with pytest.raises(LowbitError, match=r"got one tensor: pass \[tensor\]"):
        diagnose(model, batches()[0])
    with pytest.raises(LowbitError, match="a batch must be a tensor, an"):
        diagnose(model, ["images"])
    with pytest.raises(LowbitError, match="a batch is empty"):
        diagnose(model, [torch.zeros(0, 3, 8, 8)])
    with pytest.raises(LowbitError, match="the reference has quantizers"):
        diagnose(model, batches(), model)
    with pytest.raises(LowbitError, match="the reference has no layer 'conv1'"):
        diagnose(model, batches(), TwoInputs())
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.conv2.weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(LowbitError, match="the weight of layer 'conv2' holds NaN"):
        diagnose(broken, batches())
