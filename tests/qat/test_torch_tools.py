"""Prepared networks under torch's own tools: torch.jit, its ONNX exporters, torch.func, SyncBatchNorm, tensors without elements."""

from __future__ import annotations

import io
import warnings

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn import functional as F

import lowbit
from lowbit import LowbitError
from lowbit.grid import Grid
from lowbit.quantizer import functional, kernels


def network(method="lsq", *, side=6, **options) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten()]
    model = nn.Sequential(*layers, nn.Linear(4 * (side - 2) ** 2, 5))
    x = torch.randn(4, 3, side, side)
    return lowbit.calibrate(lowbit.prepare(model, method=method, **options), [x]).eval(), x


# torch notes that numbers which come from parameters' shapes become constants.
constants = pytest.mark.filterwarnings("ignore:Converting a tensor to a Python:torch.jit.TracerWarning")


@constants
@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("lsq+", {}),
        ("lsq+", {"integer_only": True}),
        ("lsq+", {"granularity": "group:9", "rules": [lowbit.Rule("5", granularity="tensor")]}),
        ("dorefa", {}),
        ("lsq", {"scales": "power-of-two"}),
    ],
)
def test_a_network_recorded_by_torch_jit_is_exact_and_can_be_saved(method, options):
    model, x = network(method, **options)
    lowbit.round_zero_points(model)
    with torch.no_grad():
        traced = torch.jit.trace(model, x)
        file = io.BytesIO()
        torch.jit.save(traced, file)
        file.seek(0)
        for again in (traced, torch.jit.load(file)):
            for batch in (x, 3 * x[:1]):
                assert torch.equal(again(batch), model(batch))


@constants
def test_fused_kernels_are_not_recorded(monkeypatch):
    model, x = network()
    with torch.no_grad():
        expected = model(2 * x)
        monkeypatch.setattr(kernels, "smallest", 1)
        monkeypatch.setattr(kernels, "_run", lambda *_: pytest.fail("a kernel ran"))
        assert torch.equal(torch.jit.trace(model, x, check_trace=False)(2 * x), expected)


@constants
@pytest.mark.parametrize(("method", "scales"), [("lsq", None), ("lsq", "power-of-two"), ("lg-lsq", None)])
def test_recording_in_evaluation_says_that_gradients_are_lost_and_in_training_keeps_them(method, scales):
    model, x = network(method, weights=4, activations=4, scales=scales)
    with pytest.warns(
        torch.jit.TracerWarning, match=r"not its gradients: record it within torch.no_grad\(\), or in training mode"
    ):
        traced = torch.jit.trace(model, x)
    assert torch.equal(traced(x), model(x))
    model[1].momentum = 0.0
    traced = torch.jit.trace(model.train(), x)
    found = []
    for each in (traced, model):
        model.zero_grad()
        each(x).square().sum().backward()
        found.append([p.grad.clone() for p in model.parameters()])
    for ours, theirs in zip(*found):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


@constants
@pytest.mark.parametrize(
    ("method", "dynamo", "options"),
    [
        ("lsq", False, {}),
        ("lsq", False, {"scales": "power-of-two"}),
        ("dorefa", False, {"integer_only": True}),
        ("pact", True, {}),
        ("lsq", True, {"scales": "power-of-two"}),
    ],
)
def test_torchs_onnx_exporters(method, dynamo, options, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model, x = network(method, **options)
    if dynamo:  # which takes a second for each layer
        model, x = model[-1], torch.randn(4, 64)
    path = str(tmp_path / "network.onnx")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        warnings.filterwarnings("ignore", "# 'dynamic_axes' is not recommended", UserWarning)
        torch.onnx.export(model, (x,), path, dynamo=dynamo, verbose=False)
    session = onnxruntime.InferenceSession(path)
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(y), model(x).detach(), atol=1e-5, rtol=1e-5)


def per_sample_gradients(model, x):
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    loss = lambda parameters, x: torch.func.functional_call(model, parameters, (x[None],)).sum()  # noqa: E731
    return torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)


def forward_mode(model, x):
    with forward_ad.dual_level():
        return model(forward_ad.make_dual(x, x))


@pytest.mark.parametrize(
    ("transform", "words"),
    [
        (lambda model, x: torch.func.vmap(model)(x[:, None]), "torch.func"),
        (lambda model, x: torch.func.jvp(model, (x,), (x,)), "torch.func"),
        (lambda model, x: torch.func.jacrev(lambda x: model(x).sum())(x), "torch.func"),
        (per_sample_gradients, "torch.func"),
        (forward_mode, "forward-mode"),
        (
            lambda model, x: torch.func.vmap(lambda x: lowbit.fake_quantize(x, torch.tensor(0.1), Grid(4, True)))(x),
            "torch.func",
        ),
    ],
)
def test_what_torch_func_does_is_refused_in_words(transform, words):
    model, x = network()
    with pytest.raises(LowbitError, match=f"quantizers do not support .*{words}"):
        transform(model, x)
    assert model(x).requires_grad  # and is well afterwards


@pytest.mark.parametrize("shape", [(4,), (2, 4), (2, 3, 4), (2, 3, 5, 4)])
def test_addition_in_place_to_a_linear_layers_output(shape):
    torch.manual_seed(0)
    layer = lowbit.calibrate(lowbit.prepare(nn.Sequential(nn.Linear(4, 4))), [torch.randn(2, 3, 4)])
    x, residual = torch.randn(shape, requires_grad=True), torch.randn(shape)
    found = []
    for in_place in (True, False):
        layer.zero_grad()
        y = layer(x)
        if in_place:
            y += residual
            y[..., 0].mul_(2)
        else:
            y = (y + residual) * torch.tensor([2.0, 1, 1, 1])
        (grad_x,) = torch.autograd.grad(y.square().sum(), [x], retain_graph=True)
        y.square().sum().backward()
        found.append([y.detach(), grad_x, *(p.grad for p in layer.parameters())])
    for ours, theirs in zip(*found):
        assert torch.equal(ours, theirs)


# ---------------------------------------------------------------- SyncBatchNorm


def test_sync_batchnorm_before_prepare_becomes_integers():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5)
    plain, x = nn.Sequential(*layers), torch.randn(8, 3, 6, 6)
    nn.init.normal_(plain[1].bias)
    networks = []
    for model in (plain, nn.SyncBatchNorm.convert_sync_batchnorm(plain)):
        prepared = lowbit.calibrate(lowbit.prepare(model, integer_only=True), [x])
        prepared.train()(x).sum().backward()
        networks.append(prepared.eval())
    ours, theirs = networks[1], networks[0]
    assert isinstance(ours.get_submodule("1"), nn.SyncBatchNorm)
    assert torch.equal(ours(x), theirs(x))
    codes, expected = (lowbit.to_integer(each, x).codes(x) for each in networks)
    assert all(torch.equal(codes[name], expected[name]) for name in expected)


def test_sync_batchnorm_after_prepare_trains_and_is_refused_where_integers_are_meant():
    model, x = network()
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model).train()
    model(x).sum().backward()

    torch.manual_seed(0)
    float_network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5))
    late = lowbit.calibrate(lowbit.prepare(float_network, integer_only=True), [x])
    late = nn.SyncBatchNorm.convert_sync_batchnorm(late)
    late.train()(x)
    words = (
        r"layer '1' \(SyncBatchNorm\) took the place of a batch-norm after lowbit.prepare.*convert_sync_batchnorm first"
    )
    with pytest.raises(LowbitError, match=words):
        lowbit.to_integer(late.eval(), x)
    uncalibrated = nn.SyncBatchNorm.convert_sync_batchnorm(lowbit.prepare(float_network, integer_only=True))
    with pytest.raises(LowbitError, match=words):
        lowbit.calibrate(uncalibrated, [x])

    right = lowbit.prepare(nn.SyncBatchNorm.convert_sync_batchnorm(float_network), integer_only=True)
    right.load_state_dict(late.state_dict())  # as the message says
    lowbit.to_integer(right.eval(), x)


# ---------------------------------------------------------------- tensors without elements


class Detector(nn.Module):
    """A second stage that takes as many boxes as the first one finds."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(1, 4, 1), nn.Conv2d(4, 4, 1), nn.Linear(4, 2)

    def forward(self, x):
        features = self.first(x)
        found = features[x.mean((1, 2, 3)) > 0]
        return self.head(self.second(found).mean((2, 3)))


@pytest.mark.parametrize("method", ["lsq+", "pact", "dorefa", "lg-lsq"])
def test_a_second_stage_without_detections_is_calibrated_by_the_batches_that_have_some(method):
    some, none = torch.rand(3, 1, 5, 5), -torch.rand(3, 1, 5, 5)
    torch.manual_seed(0)
    model = Detector()
    with_empty = lowbit.calibrate(lowbit.prepare(model, method=method), [none, some, none])
    without = lowbit.calibrate(lowbit.prepare(model, method=method), [some])
    for name in ("second", "head"):
        ours, theirs = (each.get_submodule(f"{name}.input_quantizer") for each in (with_empty, without))
        assert torch.equal(ours.step, theirs.step) and torch.equal(ours.zero_point, theirs.zero_point)
    y = with_empty(none)
    assert y.shape == (0, 2)
    y.sum().backward()
    assert all(p.grad is None or not p.grad.isnan().any() for p in with_empty.parameters())
    with pytest.raises(LowbitError, match="no batch reaches the input of layer 'second' and 1 more"):
        lowbit.calibrate(lowbit.prepare(model, method=method), [none])


def test_no_size_of_a_recorded_network_is_kept():
    """Sizes are tensors while torch.jit records; they must not fill the cache of sizes."""
    before = functional._counted.cache_info().currsize
    step = torch.tensor(0.1)
    torch.jit.trace(
        lambda x: F.relu(lowbit.fake_quantize(x, step, Grid(4, True))), torch.rand(7, 11), check_trace=False
    )
    assert functional._counted.cache_info().currsize == before
