"""Shapes that are known while a network is recorded: control flow goes by them, the batch stays open."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import lowbit
from lowbit import LowbitError
from lowbit.lowering.layouts import Layout, layout_of
from lowbit.lowering.tracer import BATCH
from tests.lowering.networks import Forward, finish, images, start

X = images(4, 3, 9, 7)


def prepared_for(function, x=X, **layers):
    return lowbit.calibrate(lowbit.prepare(Forward(function, **layers), integer_only=True, example_input=x), [x]).eval()


def grows_until(self, x):
    """Control flow on sizes, ranks, lengths and types."""
    assert len(x.shape) == x.ndim == x.dim() == 4 and x.dtype == torch.float32 and x.is_floating_point()
    if x.shape[2] % 2 and x.size(-1) < 8:
        x = F.pad(x, (0, 8 - x.shape[-1], 0, 10 - x.shape[-2]))
    for _ in range(x.shape[1] - 1):
        x = F.relu(self.first(x)) if x.shape[1] == 3 else F.relu(self.second(x))
    height, width = (size // 2 for size in x.shape[-2:])
    parts = [part for row in x.split(height, 2) for part in row.split(width, -1)]
    assert len(parts) == 4
    return self.head((parts[0] + parts[-1]).mean((2, 3)))


@pytest.mark.parametrize("samples", [1, 2, 5])
def test_control_flow_on_shapes_goes_as_the_example_does_for_every_batch(samples):
    network = prepared_for(grows_until)
    x = images(samples, 3, 9, 7)
    assert torch.allclose(lowbit.to_integer(network, X)(x), network(x), atol=1e-5)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda self, x: self.head(torch.stack([self.first(y[None])[0] for y in x]).mean((2, 3))), "size of the batch"),
        (lambda self, x: self.head(self.first(x).mean((2, 3))) * range(x.shape[0])[0], "size of the batch"),
        (lambda self, x: self.head(self.first(x).mean((2, 3)) if x.max() > 0 else x.mean((2, 3))), "control flow"),
    ],
)
def test_what_depends_on_the_batch_or_on_data_is_refused(function, words):
    with pytest.raises(LowbitError, match=words):
        lowbit.prepare(Forward(function), integer_only=True, example_input=X)


def test_comparisons_with_the_batch_go_as_for_a_batch_of_many():
    network = prepared_for(lambda self, x: self.head(self.first(x).mean((2, 3)) if x.shape[0] > 1 else x))
    assert network(X).shape == (4, 5)


def test_another_size_than_the_examples_is_refused_where_forward_computes_with_sizes():
    network = prepared_for(grows_until)
    with pytest.raises(LowbitError, match=r"'x' has shape \(3, 8, 8\), but .* an example of shape \(3, 9, 7\)"):
        network(images(2, 3, 8, 8))
    free = prepared_for(lambda self, x: self.head(F.relu(self.first(x)).mean((2, 3)).view(x.size(0), -1)))
    assert free(images(2, 3, 8, 8)).shape == (2, 5)


def test_tensors_that_forward_makes_become_constants():
    def positions(self, x):
        y = self.first(x)
        ramp = torch.arange(y.shape[-1]) / y.shape[-1]
        ones = torch.ones(x.shape[0], 1, 1, 1)
        return self.head((y + ramp + ones + torch.zeros_like(y)).mean((2, 3)))

    network = prepared_for(positions)
    x = images(3, 3, 9, 7)
    assert torch.allclose(lowbit.to_integer(network, X)(x), network(x), atol=1e-5)
    assert not any(name.startswith("_tensor_constant") for name in network.state_dict())


def test_a_recorded_network_pickles_copies_and_moves():
    network = prepared_for(grows_until)
    for again in (pickle.loads(pickle.dumps(network)), copy.deepcopy(network)):
        assert torch.equal(again(X), network(X))


def test_what_has_no_integer_form_is_named_at_once_before_training():
    def several(self, x):
        y = self.first(x)
        z = torch.cumsum(y, 2) + torch.sort(y, 3)[0]
        return self.head((z + y.flip(0)).mean((2, 3)))

    with pytest.raises(LowbitError) as error:
        lowbit.prepare(Forward(several), integer_only=True, example_input=X)
    text = str(error.value)
    assert "cumsum" in text and "sort" in text and "flip" in text and "batch" in text


@pytest.mark.parametrize(
    ("shape", "layout"),
    [
        ((BATCH, 3, 4), Layout(0, 1)),
        ((3, BATCH, 4), Layout(1, 1)),
        ((BATCH * 6, 4), Layout(0, 6)),
        ((2, BATCH * 3, 4), Layout(1, 3)),
        ((3, 4), Layout(None)),
        ((BATCH, BATCH), None),
    ],
)
def test_layouts(shape, layout):
    assert layout_of(shape) == layout
    if layout is not None:
        real = torch.randn([size // BATCH * 5 if size % BATCH == 0 else size for size in shape])
        samples = layout.to_samples(real, 5)
        assert samples.shape == (5, *layout.sample(shape)) and torch.equal(layout.from_samples(samples), real)
        if layout.axis is not None:  # a sample's values are those that stand in its part of the batch
            mark = torch.zeros_like(real)
            mark.narrow(layout.axis, 2 * layout.folded, layout.folded).fill_(1)
            assert (
                bool((layout.to_samples(mark, 5)[2] == 1).all())
                and int(layout.to_samples(mark, 5).sum()) == real.numel() // 5
            )


def windows(self, x):
    """Windows of a tensor folded into the batch, attention-like mixing within them, and back."""
    y = F.relu(self.first(x))[:, :, :8, :6]
    batch, channels, height, width = y.shape
    y = y.permute(0, 2, 3, 1).view(batch, height // 4, 4, width // 3, 3, channels).permute(0, 1, 3, 2, 4, 5)
    y = self.mix(y.reshape(-1, 12, channels))
    y = (y @ y.transpose(-2, -1)) @ y
    y = (
        y.view(-1, height // 4, width // 3, 4, 3, channels)
        .permute(0, 1, 3, 2, 4, 5)
        .reshape(batch, height, width, channels)
    )
    return self.head(y.permute(0, 3, 1, 2).mean((2, 3)))


def heads_in_the_batch(self, x):
    """Sequence first, as nn.MultiheadAttention has it: (N, B, C), heads folded into the batch behind it."""
    y = self.first(x).flatten(2).permute(2, 0, 1)
    length, batch, channels = y.shape
    q = self.mix(y).reshape(length, batch * 2, channels // 2).transpose(0, 1)
    y = torch.bmm(torch.bmm(q, q.transpose(1, 2)), q).transpose(0, 1).reshape(length, batch, channels)
    return self.head(y.permute(1, 0, 2)[:, 0])


def pooled_windows(self, x):
    """Windows in the batch, pooled there, in types they have anyway."""
    y = F.relu(self.first(x))[:, :, :8, :6].to(x.dtype)
    batch, channels = y.shape[:2]
    y = y.view(batch, channels, 2, 4, 2, 3).permute(0, 2, 4, 1, 3, 5).reshape(-1, channels, 4, 3)
    y = F.max_pool2d(y.type_as(x), 2, stride=1).float()
    return self.mix(y.reshape(batch, 4, channels, -1).mean(3).flatten(1)[:, :8])


@pytest.mark.parametrize("function", [windows, heads_in_the_batch, pooled_windows])
def test_windows_and_heads_may_lie_in_the_batch(function):
    network = prepared_for(function, mix=nn.Linear(8, 8))
    x = images(3, 3, 9, 7)
    integer = lowbit.to_integer(network, X)
    assert torch.allclose(integer(x), network(x), atol=1e-5)
    assert lowbit.to_integer(network, X[:1]).graph.nodes[-1].type == integer.graph.nodes[-1].type


def test_a_view_that_mixes_samples_is_refused():
    def mixes(self, x):
        y = self.first(x)
        return self.head(y.reshape(x.shape[1], -1, 8).transpose(0, 1).mean(1))

    with pytest.raises(LowbitError, match="batch of 7,919"):
        lowbit.prepare(Forward(mixes), integer_only=True, example_input=images(4, 3, 8, 8))


class TwoInputs(nn.Module):
    """A siamese network whose outputs are a dictionary with a tuple in it."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head, self.cls = nn.Conv2d(3, 8, 3), nn.Linear(8, 5), nn.Parameter(torch.randn(1, 1, 8))

    def forward(self, left, right, gain=None):
        a, b = (F.relu(self.body(x)).flatten(2).transpose(1, 2) for x in (left, right))
        tokens = torch.cat([self.cls.expand(a.shape[0], -1, -1), a - b], dim=1)
        return {"classes": self.head(tokens[:, 0]), "maps": (tokens.mean(1), a)}


def test_several_inputs_and_outputs_by_name(tmp_path):
    x = {"left": images(4, 3, 6, 6), "right": images(4, 3, 6, 6) * 0.5}
    network = lowbit.prepare(TwoInputs(), integer_only=True, example_input=x)
    lowbit.calibrate(network, [x])
    network(**x)["classes"].sum().backward()
    network.eval()
    with pytest.raises(LowbitError, match="takes 2 inputs, left, right, and the example has no 'right'"):
        lowbit.to_integer(network, x["left"])
    integer = lowbit.to_integer(network, tuple(x.values()))
    found, trained = integer(x), network(**x)
    assert list(found) == ["classes", "maps_0", "maps_1"]
    for name, value in zip(found, (trained["classes"], *trained["maps"])):
        assert torch.allclose(found[name], value, atol=1e-5)
    assert lowbit.export(integer, tmp_path / "n.onnx", batches=[x]).ok
    assert lowbit.verify(network, tmp_path / "n.onnx", [x]).ok


def test_a_tensor_changed_in_place_is_what_comes_after_it():
    def residual(self, x):
        y = self.first(x)
        z = self.second(y.relu_())
        return self.head((z + y).mean((2, 3)))

    network = prepared_for(residual)
    assert torch.allclose(lowbit.to_integer(network, X)(X), network(X), atol=1e-5)
    # As the float network, where `y` has been changed when it is added.
    taken = {str(each.args[0]) for each in next(n for n in network.graph.nodes if n.name == "add").all_input_nodes}
    assert taken == {"second", "relu_"}


def test_without_an_example_the_first_batch_serves(tmp_path):
    network = lowbit.prepare(Forward(grows_until), integer_only=True)
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    with pytest.raises(LowbitError, match=r"give it to lowbit\.prepare"):
        network.load_state_dict(network.state_dict())
    with pytest.raises(LowbitError, match="there is none"):
        lowbit.calibrate(network, [])
    assert lowbit.calibrate(network, iter([(X, torch.zeros(4)), X])) is network
    weight = network.first.weight.detach().clone()
    network(X).square().sum().backward()
    optimizer.step()
    assert not torch.equal(network.first.weight, weight)
    network.eval()
    assert lowbit.export(lowbit.to_integer(network, X), tmp_path / "n.onnx").ok
    network.load_state_dict(network.state_dict())


def test_what_has_no_integer_form_for_the_first_batch_is_refused_before_training():
    def folds(self, x):
        y = self.first(x)
        return self.head(y.flip(0).mean((2, 3)))

    network = lowbit.prepare(Forward(folds), integer_only=True)
    with pytest.raises(LowbitError, match=r"flip .* along the dimension of the batch"):
        lowbit.calibrate(network, [X])


@pytest.mark.parametrize(
    ("norm", "words"), [(nn.BatchNorm2d(5), "running_mean should contain 8"), (nn.BatchNorm1d(8), "expected 2D or 3D")]
)
def test_batch_norm_that_does_not_fit_is_refused(norm, words):
    """Its shape is taken for its input's only where it takes that."""
    model = Forward(lambda self, x: finish(self, self.wrong(start(self, x))), wrong=norm)
    with pytest.raises(LowbitError, match=words):
        lowbit.prepare(model, integer_only=True, example_input=torch.randn(2, 3, 6, 5))
