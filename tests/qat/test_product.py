"""A prepared layer keeps what the float layer keeps, and its gradients are those of the plain computation."""

from __future__ import annotations

import sys
import weakref
from itertools import pairwise
from types import FrameType

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import lowbit
from lowbit import Quantizer
from lowbit.quantizer import kernels
from lowbit.quantizer.methods import lg_lsq

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
    if method == "lg-lsq":  # what it measures in one backward pass, the next one counts
        method = lg_lsq(balance=None)
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


def tripled(x_hat):
    return x_hat * 3


def tripled_in_place(x_hat):
    return x_hat.mul_(3)


def tripled_unseen(x_hat):
    """In a way that autograd does not follow."""
    with torch.no_grad():
        return x_hat.mul_(3)


@pytest.mark.parametrize("change", [tripled, tripled_in_place, tripled_unseen])
def test_what_a_hook_makes_of_the_quantized_tensor_is_used_in_both_passes(change):
    torch.manual_seed(0)
    layer, shape = LAYERS["conv2d"]
    model = prepared(layer, shape)
    x = torch.randn(shape, requires_grad=True)
    q = model[0]
    plain = q._conv_forward(change(q.input_quantizer(x)), q.weight_quantizer(q.weight), q.bias)
    q.input_quantizer.register_forward_hook(lambda _, args, x_hat: change(x_hat))
    y = model(x)
    assert torch.equal(y, plain)
    for ours, theirs in zip(gradients(y, model, x), gradients(plain, model, x)):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("mode", ["train", "eval", "no_grad", "inference"])
def test_every_quantized_tensor_goes_through_its_quantizer(mode):
    layers = [nn.Conv2d(4, 6, 3), nn.ReLU(), nn.ConvTranspose2d(6, 4, 3), nn.Flatten(), nn.Linear(4 * 9 * 9, 3)]
    x = torch.randn(3, 4, 9, 9)
    model = lowbit.calibrate(lowbit.prepare(nn.Sequential(*layers)), [x]).train(mode == "train")
    seen = []
    for name, quantizer in lowbit.quantizers(model):
        quantizer.register_forward_hook(lambda _, args, x_hat, name=name: seen.append(name))
    context = {"no_grad": torch.no_grad, "inference": torch.inference_mode}.get(mode, torch.enable_grad)
    with context():
        model(x)
    assert sorted(seen) == sorted(name for name, _ in lowbit.quantizers(model)) and len(seen) == 6


@pytest.mark.parametrize("kind", ["conv2d", "linear"])
def test_the_way_from_a_layer_to_the_rounding_is_short(kind, monkeypatch):
    """Python functions that are entered on the way, a module's own __call__ as one; and changes of file among ours."""
    layer, shape = LAYERS[kind]
    model = prepared(layer, shape, method="lg-lsq")
    walks = []
    rounding = torch.round

    def observed(*arguments):
        frames, frame = [], sys._getframe(1)
        while frame is not None and frame.f_locals.get("self") is not model[0]:
            frames.append(frame)
            frame = frame.f_back
        walks.append([frame, *reversed(frames)])
        return rounding(*arguments)

    monkeypatch.setattr(torch, "round", observed)
    model(torch.randn(shape))
    assert len(walks) == 2  # the input and the weight

    def name(frame: FrameType) -> str:
        code = frame.f_code
        return "__call__" if code.co_name in ("_wrapped_call_impl", "_call_impl") else code.co_name

    for walk in walks:
        names = [name(frame) for frame in walk]
        hops = [after for before, after in pairwise(names) if not before == after == "__call__"]
        files = [frame.f_code.co_filename for frame in walk if "lowbit" in frame.f_code.co_filename]
        assert len(hops) <= 7, hops
        assert sum(before != after for before, after in pairwise(files)) <= 3, files
        assert Quantizer.forward.__code__ in [frame.f_code for frame in walk]


def test_the_output_of_a_linear_layer_can_be_changed_in_place():
    torch.manual_seed(0)
    model = prepared(nn.Linear(12, 5), (3, 7, 12))
    x, residual = torch.randn(3, 7, 12, requires_grad=True), torch.randn(3, 7, 5)
    expected = gradients(model(x) + residual, model, x)
    y = model(x)
    y += residual
    for ours, theirs in zip(gradients(y, model, x), expected):
        assert torch.equal(ours, theirs)


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


@pytest.mark.parametrize("mode", ["plain", "fused kernels", "compiled"])
def test_no_more_is_held_than_by_the_float_network(mode, request, monkeypatch):
    compiled = mode == "compiled"
    if compiled and torch.__version__ < "2.12":
        pytest.skip("torch 2.11 keeps what could be computed again in the backward pass")
    if mode != "plain":
        request.getfixturevalue("compiler")
    if mode == "fused kernels":
        monkeypatch.setattr(kernels, "smallest", 1)
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


@pytest.mark.parametrize("method", ["lsq+", "minmax", "dorefa"])
@pytest.mark.parametrize("kind", ["conv2d", "linear", "transposed"])
def test_no_copies_are_held_under_autocast(kind, method):
    """The float layer holds its input and weight as autocast copies them, the prepared layer x and w as they are."""
    layer, shape = LAYERS[kind]
    model = prepared(layer, shape, method=method, granularity="channel")
    x = torch.randn(shape, requires_grad=True)
    own = {t.untyped_storage().data_ptr() for t in (x, *layer.parameters(), *model.parameters(), *model.buffers())}
    with torch.autocast("cpu", torch.bfloat16):
        copies, ours = (held(lambda each=each: each(x), own) for each in (layer, model))
    assert copies >= 2 * (x.numel() + layer.weight.numel())
    transformed = 4 * 4 * layer.weight.numel() if method == "dorefa" else 0  # what DoReFa's transform keeps
    assert ours <= transformed + 200


def test_the_hooks_of_others_see_what_is_not_recomputed():
    """Who moves saved tensors elsewhere moves a layer's input in full precision too, and each tensor once."""
    layer, shape = LAYERS["conv2d"]
    model = prepared(layer, shape, rules=[lowbit.Rule("0", activations=None)])
    x = torch.randn(shape, requires_grad=True)
    packed, unpacked = [], []

    def pack(tensor):
        packed.append(tensor.shape)
        return tensor.clone()

    def unpack(tensor):
        unpacked.append(tensor.shape)
        return tensor

    expected = gradients(model(x), model, x)
    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        y = model(x)
    assert packed.count(x.shape) == 1 and packed.count(layer.weight.shape) == 1
    for ours, theirs in zip(gradients(y, model, x), expected):
        assert torch.equal(ours, theirs)
    assert unpacked.count(x.shape) == 1 and unpacked.count(layer.weight.shape) == 1


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_saved_tensors_can_be_kept_elsewhere(memory_format):
    """As by `save_on_cpu` with pinned memory, which brings them back in another order of memory."""
    torch.manual_seed(0)
    layer, shape = LAYERS["conv2d"]
    model = prepared(nn.Sequential(layer, nn.Flatten(), nn.Linear(6 * 5 * 5, 4)), shape).to(memory_format=memory_format)
    x = torch.randn(shape).to(memory_format=memory_format).requires_grad_()
    expected = gradients(model(x), model, x)
    elsewhere = lambda tensor: tensor.clone(memory_format=torch.contiguous_format)  # noqa: E731
    with torch.autograd.graph.saved_tensors_hooks(elsewhere, elsewhere):
        y = model(x)
    for ours, theirs in zip(gradients(y, model, x), expected):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("method", ["lsq+", "dorefa"])
def test_a_layer_can_be_computed_again_by_torch(reentrant, method):
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.Flatten(), nn.Linear(4 * 5 * 5, 3))
    model = lowbit.calibrate(lowbit.prepare(layers, method=method), [torch.randn(3, 4, 9, 9)])
    x = torch.randn(3, 4, 9, 9, requires_grad=True)
    expected = gradients(model(x), model, x)
    y = checkpoint(model, x, use_reentrant=reentrant)
    y.sin().sum().backward()
    for parameter, theirs in zip([x, *(p for p in model.parameters() if p.requires_grad)], expected):
        assert torch.equal(parameter.grad, theirs)


def test_a_layer_that_torch_computes_again_holds_its_input_alone():
    model = prepared(nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3)), (3, 4, 9, 9))
    x = torch.randn(3, 4, 9, 9)
    own = {t.untyped_storage().data_ptr() for t in (x, *model.parameters(), *model.buffers())}
    assert held(lambda: checkpoint(model, x, use_reentrant=False), own) == 0
    live = []
    model[0][2].input_quantizer.register_forward_pre_hook(lambda _, args: live.append(weakref.ref(args[0])))
    y = checkpoint(model, x, use_reentrant=False)
    assert len(live) == 1 and live[0]() is None  # what the second layer took is gone
    y.sum().backward()


def test_a_backward_pass_for_the_weights_alone_can_be_repeated():
    torch.manual_seed(0)
    layer, shape = LAYERS["conv2d"]
    model = prepared(layer, shape, method="lsq")
    x = torch.randn(shape, requires_grad=True)
    q, y = model[0], model(x).sin().sum()
    (first,) = torch.autograd.grad(y, model[0].weight, retain_graph=True)
    (again,) = torch.autograd.grad(y, model[0].weight, retain_graph=True)
    assert torch.equal(first, again)
    whole = gradients(model(x), model, x)
    for ours, theirs in zip(torch.autograd.grad(y, [x, model[0].weight]), (whole[0], first)):
        assert torch.equal(ours, theirs)
    quantized = []
    model[0].input_quantizer.register_forward_hook(lambda _, args, x_hat: quantized.append(x_hat))
    y = model(x).sin().sum()
    torch.autograd.grad(y, model[0].weight, retain_graph=True)
    with torch.no_grad():
        x.mul_(2)
    for changed in (lambda: torch.autograd.grad(quantized[0].sum(), x), lambda: torch.autograd.grad(y, q.weight)):
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            changed()


def test_parameters_given_to_the_call():
    torch.manual_seed(0)
    layer, shape = LAYERS["conv2d"]
    model = prepared(layer, shape)
    x = torch.randn(shape, requires_grad=True)
    given = {name: (p.detach() * 1.25).requires_grad_() for name, p in model.named_parameters()}
    y = torch.func.functional_call(model, given, (x,))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(given[name])
    assert torch.equal(y, model(x))
    wanted = [given[name] for name, p in model.named_parameters() if p.requires_grad]
    for ours, theirs in zip(torch.autograd.grad(y.sin().sum(), [x, *wanted]), gradients(model(x), model, x)):
        assert torch.equal(ours, theirs)


def test_one_quantizer_of_two_layers():
    """x̂ is computed for each; gradients are those of the plain computation on both."""
    torch.manual_seed(0)

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = nn.Linear(6, 4), nn.Linear(6, 4)

        def forward(self, x):
            return self.left(x) * self.right(x)

    model = lowbit.calibrate(
        lowbit.prepare(Two(), method="lsq", weights=3, activations=3, first_last=3), [torch.randn(9, 6)]
    )
    left, right = model.left, model.right
    assert left.input_quantizer is right.input_quantizer
    x = torch.randn(5, 6, requires_grad=True)
    plain = 1.0
    for layer in (left, right):
        plain = plain * F.linear(layer.input_quantizer(x), layer.weight_quantizer(layer.weight), layer.bias)
    y = model(x)
    assert torch.equal(y, plain)
    for ours, theirs in zip(gradients(y, model, x), gradients(plain, model, x)):
        torch.testing.assert_close(ours, theirs)


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


@pytest.mark.parametrize("changed", ["weight", "step", "input", "initial step"])
def test_a_change_between_forward_and_backward_is_noticed(changed):
    model = prepared(nn.Linear(6, 4), (5, 6), method="lsq")
    x = torch.randn(5, 6)
    y = model(x).sum()
    q = model[0]
    with torch.no_grad():
        {"weight": q.weight, "step": q.input_quantizer.raw_step, "input": x}.get(
            changed, q.weight_quantizer.initial_step
        ).mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()
