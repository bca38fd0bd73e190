"""A prepared layer keeps what the float layer keeps, and its gradients are those of the plain computation."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import lowbit
from lowbit.quantizer import kernels

LAYERS = {
    "linear": (nn.Linear(12, 5), (3, 7, 12)),
    "conv1d": (nn.Conv1d(4, 6, 3, padding=1), (3, 4, 9)),
    "conv2d": (nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), (3, 4, 9, 9)),
    "conv2d without bias": (nn.Conv2d(4, 6, 3, dilation=2, bias=False), (3, 4, 9, 9)),
    "conv2d, reflected": (nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), (3, 4, 9, 9)),
    "conv2d, same": (nn.Conv2d(4, 6, 3, padding="same"), (3, 4, 9, 9)),
    "conv3d": (nn.Conv3d(2, 3, 2), (2, 2, 4, 4, 4)),
    "transposed": (nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1, groups=2), (3, 4, 5, 5)),
    "one sample": (nn.Conv2d(4, 6, 3), (4, 9, 9)),
    "one sample, transposed": (nn.ConvTranspose2d(4, 6, 3), (4, 5, 5)),
    "one sample, linear": (nn.Linear(12, 5), (12,)),
}


def prepared(layer: nn.Module, shape, method="lsq+", **options) -> nn.Module:
    return lowbit.calibrate(
        lowbit.prepare(nn.Sequential(layer), weights=3, activations=3, first_last=3, method=method, **options),
        [torch.randn(shape)],
    )


def gradients(y, model, x):
    wanted = [x, *(p for p in model.parameters() if p.requires_grad)]
    return torch.autograd.grad(y.sin().sum(), wanted)


def compare(layer: nn.Module, shape, **options) -> nn.Module:
    """The prepared layer against the float one that is given quantized operands: the same bits."""
    model = prepared(layer, shape, **options)
    x = torch.randn(shape, requires_grad=True)
    q = model[0]
    batch = (
        x if len(shape) >= max(2, q.weight.dim()) else x[None]
    )  # the first dimension is the batch, which N leaves out
    x_hat, w_hat = q.input_quantizer(batch), q.weight_quantizer(q.weight)
    operands = {"weight": w_hat} if q.bias is None else {"weight": w_hat, "bias": q.bias}
    plain = torch.func.functional_call(layer, operands, (x_hat,))
    y = model(x)
    assert torch.equal(y, plain.reshape(y.shape))
    for ours, theirs in zip(gradients(y, model, x), gradients(plain, model, x)):
        assert torch.equal(ours, theirs), (ours - theirs).abs().max()
    return model


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("kind", LAYERS)
def test_the_same_bits_as_the_layer_on_quantized_operands(kind, granularity):
    torch.manual_seed(0)
    compare(*LAYERS[kind], granularity=granularity)


@pytest.mark.parametrize("method", list(lowbit.METHODS))
def test_the_same_bits_for_every_method(method):
    torch.manual_seed(0)
    compare(*LAYERS["conv2d"], method=method, granularity="channel")
    compare(*LAYERS["linear"], method=method, granularity="group:4")


def test_the_same_bits_by_fused_kernels(compiler, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(kernels, "smallest", 1)
    compare(*LAYERS["conv2d"], granularity="channel")


@pytest.mark.parametrize("kept", ["weights", "activations"])
def test_the_same_bits_with_one_operand_in_full_precision(kept):
    torch.manual_seed(0)
    rules = [lowbit.Rule("0", **{kept: None})]
    compare(*LAYERS["conv2d"], rules=rules)


def test_a_quantizer_with_a_hook_is_called():
    """Whoever looks at x̂, or changes it, is asked; gradients take the same way."""
    torch.manual_seed(0)
    layer, shape = LAYERS["conv2d"]
    model = prepared(layer, shape)
    x = torch.randn(shape, requires_grad=True)
    quiet = model(x)
    expected = gradients(quiet, model, x)
    seen = []
    hook = model[0].input_quantizer.register_forward_hook(lambda _, args, x_hat: seen.append(x_hat))
    loud = model(x)
    assert len(seen) == 1 and torch.equal(loud, quiet)
    for ours, theirs in zip(gradients(loud, model, x), expected):
        assert torch.equal(ours, theirs)
    hook.remove()
    model(x)
    assert len(seen) == 1


def held(y_of, own: set[int]) -> int:
    """Bytes kept for the backward pass beside parameters and input."""
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = y_of()
    assert y.requires_grad
    return sum(size for size, _ in kept.values())


@pytest.mark.parametrize("compiled", [False, True])
def test_no_more_is_held_than_by_the_float_network(compiled, request):
    if compiled:
        request.getfixturevalue("compiler")
    torch.manual_seed(0)
    layers = [nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
    network = nn.Sequential(*(type_ for _ in range(2) for type_ in layers))
    x = torch.randn(16, 8, 12, 12)
    quantized = lowbit.calibrate(lowbit.prepare(network, weights=4, activations=4), [x])
    sizes = []
    for model in (network, quantized):
        run = torch.compile(model, fullgraph=True) if compiled else model
        tensors = [x, *model.parameters(), *model.buffers()]
        sizes.append(held(lambda run=run: run(x).sum(), {t.untyped_storage().data_ptr() for t in tensors}))
    steps = 16 * sum(1 for _ in lowbit.quantizers(quantized))  # scalars
    assert sizes[1] <= (0.8 if compiled else 1.0) * sizes[0] + steps


def test_a_backward_pass_can_be_differentiated_as_before():
    """∂/∂w of ‖∂L/∂x‖²: through the second operand, with the straight-through estimator."""
    torch.manual_seed(0)
    model = prepared(nn.Linear(6, 4, bias=False), (5, 6), method="lsq")
    x = torch.randn(5, 6, requires_grad=True)
    q = model[0]

    def penalty(y):
        (grad,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        return torch.autograd.grad(grad.square().sum(), [q.weight, q.input_quantizer.raw_step])

    plain = F.linear(q.input_quantizer(x), q.weight_quantizer(q.weight))
    for ours, theirs in zip(penalty(model(x)), penalty(plain)):
        torch.testing.assert_close(ours, theirs)
        assert ours.abs().sum() > 0


def test_autocast_computes_gradients_in_its_type():
    torch.manual_seed(0)
    model = prepared(nn.Conv2d(4, 6, 3), (3, 4, 9, 9), method="lsq")
    x = torch.randn(3, 4, 9, 9, requires_grad=True)
    q = model[0]
    with torch.autocast("cpu", torch.bfloat16):
        y = model(x)
        plain = F.conv2d(q.input_quantizer(x), q.weight_quantizer(q.weight), q.bias)
    assert y.dtype == torch.bfloat16 and torch.equal(y, plain)
    for ours, theirs in zip(gradients(y, model, x), gradients(plain, model, x)):
        assert ours.dtype == theirs.dtype == torch.float32
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("changed", ["weight", "step", "input"])
def test_a_change_between_forward_and_backward_is_noticed(changed):
    model = prepared(nn.Linear(6, 4), (5, 6), method="lsq")
    x = torch.randn(5, 6)
    y = model(x).sum()
    q = model[0]
    with torch.no_grad():
        {"weight": q.weight, "step": q.input_quantizer.raw_step, "input": x}[changed].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()
