"""Two processes with half of each batch train as one process with the whole."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from typing import Any

import parallel_job
import pytest
import torch
from launch import forked
from torch import Tensor, nn

import lowbit
from lowbit.train.batchnorm import batch_norm, synchronise_batchnorm
from lowbit.train.recompute import recompute_activations

# Relative difference (norm over norm) of any tensor after six steps; measured: 4e-6 of any weight or learned step, 4e-4 of
# a momentum that is nearly zero. Single precision sums a batch in another order; as
# soon as that moves one element over the boundary between two codes, differences are of the size of a step.
TOLERANCE = 1e-3

# What takes each process's part of a batch by itself, or rounds too coarsely.
DIFFERENT = ("bf16", "balanced", "sharded, balanced")


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict]]:
    """What each of two processes came to, by variant."""
    folder = tmp_path_factory.mktemp("parallel")
    done = forked(parallel_job.__file__, str(folder))
    assert done.returncode == 0, done.stderr
    return {
        name: [torch.load(folder / f"{number}.{rank}.pt") for rank in (0, 1)]
        for number, name in enumerate(parallel_job.VARIANTS)
    }


@pytest.fixture(scope="module")
def alone():
    """What one process comes to."""
    return functools.cache(parallel_job.train)


def flat(state: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(state, dict):
        for key, value in state.items():
            yield from flat(value, f"{name}.{key}")
    elif isinstance(state, list | tuple):
        for number, value in enumerate(state):
            yield from flat(value, f"{name}.{number}")
    else:
        yield name, state


def assert_close(found: Any, expected: Any, tolerance: float) -> None:
    found, expected = dict(flat(found)), dict(flat(expected))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if value is None:
            assert found[name] is None
            continue
        value, other = (torch.as_tensor(x).double() for x in (value, found[name]))
        assert (other - value).norm() <= tolerance * max(value.norm(), 1e-2), name


@pytest.mark.parametrize("name", parallel_job.VARIANTS)
def test_all_processes_hold_the_same_bits(outcomes, name: str) -> None:
    first, second = (dict(flat(outcome)) for outcome in outcomes[name])
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert torch.equal(value, second[key]) if isinstance(value, Tensor) else value == second[key], key


@pytest.mark.parametrize("name", parallel_job.VARIANTS)
def test_saved_state_restores_every_bit(outcomes, alone, name: str) -> None:
    for outcome in (outcomes[name][0], alone(name)):
        expected, found = dict(flat((outcome["network"], outcome["rest"]))), dict(flat(outcome["restored"]))
        assert found.keys() == expected.keys() and len(found) > 20
        for key, value in expected.items():
            assert torch.equal(value, found[key]) if isinstance(value, Tensor) else value == found[key], key


@pytest.mark.parametrize("name", parallel_job.VARIANTS)
def test_quantizers_start_from_the_data_of_all(outcomes, alone, name: str) -> None:
    assert_close(outcomes[name][0]["start"], alone(name)["start"], 1e-6)


@pytest.mark.parametrize("name", [name for name in parallel_job.VARIANTS if name not in DIFFERENT])
def test_two_halves_train_as_the_whole(outcomes, alone, name: str) -> None:
    found, expected = outcomes[name][0], alone(name)
    for what in ("network", "rest", "train_loss", "test"):
        assert_close(found[what], expected[what], TOLERANCE)
    moved = expected["network"]["blocks.0.conv.weight"] - expected["start"]["blocks.0.conv.weight"]
    assert moved.norm() > 10 * TOLERANCE * expected["start"]["blocks.0.conv.weight"].norm()


@pytest.mark.parametrize("name", ["balanced", "sharded, balanced"])
def test_balanced_steps_learn_at_the_pace_of_the_parts(outcomes, alone, name: str) -> None:
    """Each process measures its part of a batch; their mean is measured, and what comes of it is of the same size."""
    first, expected = outcomes[name][0], alone(name)
    measured = {key: value for key, value in first["network"].items() if key.endswith("relative_gradients")}
    assert len(measured) == 12
    unmeasured = {key for key, squares in measured.items() if not squares.any()}
    # Inputs of 8 bits have no balance, and no other step keeps their pace.
    assert len(unmeasured) == 2 and all(key.endswith("input_quantizer.relative_gradients") for key in unmeasured)
    for key, squares in measured.items():
        if key in unmeasured:
            continue
        # Of the square of half a batch's gradient about twice as much is noise.
        assert 1.2 < float(squares[0] / expected["network"][key][0]) < 3, key
    for key, step in expected["network"].items():
        if key.endswith("raw_step"):
            assert float(first["network"][key]) == pytest.approx(float(step), rel=0.15), key


def test_bf16_trains_as_the_whole_within_its_precision(outcomes, alone) -> None:
    assert_close(outcomes["bf16"][0]["train_loss"], alone("bf16")["train_loss"], 1e-2)


def test_evaluation_counts_every_image_once(outcomes, alone) -> None:
    for name in parallel_job.VARIANTS:
        loss, accuracy = outcomes[name][0]["test"]
        assert accuracy * 9 / 100 == pytest.approx(round(accuracy * 9 / 100))
        assert loss == pytest.approx(alone(name)["test"][0], rel=3e-2 if name in DIFFERENT else 1e-2)


@pytest.mark.parametrize("method", ["lsq", "lsq+", "lg-lsq"])
def test_recomputed_activations_change_nothing(method: str) -> None:
    results = []
    for recompute in (False, True):
        torch.manual_seed(0)
        x, y = torch.randn(8, 3, 8, 8), torch.randint(5, (8,))
        model = lowbit.prepare(parallel_job.Net(batch_norm=True), weights=3, activations=3, method=method)
        lowbit.calibrate(model, [x])
        assert any(quantizer.shared for _, quantizer in lowbit.quantizers(model))
        if recompute:
            recompute_activations(model)
        model.train()
        for _ in range(2):
            nn.functional.cross_entropy(model(x), y).backward()
        results.append(
            (
                {name: p.grad for name, p in model.named_parameters() if p.grad is not None},
                dict(model.named_buffers()),
            )
        )
    (gradients, buffers), (again, buffers_again) = results
    assert gradients.keys() == again.keys() and len(gradients) > 20
    for name in gradients:
        torch.testing.assert_close(again[name], gradients[name], rtol=1e-5, atol=1e-8, msg=name)
    for name in buffers:
        assert torch.equal(buffers[name], buffers_again[name]), name


def test_recomputing_keeps_less(monkeypatch) -> None:
    def kept(recompute: bool) -> int:
        torch.manual_seed(0)
        model = parallel_job.Net(batch_norm=True)
        if recompute:
            recompute_activations(model)
        total = 0

        def count(tensor: Tensor) -> Tensor:
            nonlocal total
            total += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            model.train()(torch.randn(8, 3, 8, 8))
        return total

    assert kept(True) < 0.5 * kept(False)


def test_batch_norm_of_one_process_is_torchs(monkeypatch) -> None:
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: None)
    torch.manual_seed(0)
    results = []
    for function in (torch.nn.functional.batch_norm, batch_norm):
        torch.manual_seed(1)
        x = torch.randn(6, 4, 3, 3).add_(5).requires_grad_()
        weight, bias = torch.rand(4, requires_grad=True), torch.rand(4, requires_grad=True)
        mean, var = torch.zeros(4), torch.ones(4)
        y = function(x, mean, var, weight, bias, True, 0.1, 1e-5)
        (y * torch.randn(y.shape)).sum().backward()
        results.append((y.detach(), mean, var, x.grad, weight.grad, bias.grad))
    for expected, found in zip(*results):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_synchronised_layers_keep_what_they_do_besides(monkeypatch) -> None:
    from timm.layers import BatchNormAct2d

    for name, value in (("all_reduce", lambda tensor: None), ("get_world_size", lambda: 2)):
        monkeypatch.setattr(torch.distributed, name, value)
    monkeypatch.setattr("lowbit.train.batchnorm.several", lambda: True)
    for layer in (nn.BatchNorm2d(4), BatchNormAct2d(4, act_layer=nn.ReLU), nn.BatchNorm2d(4, momentum=None)):
        plain, model = copy.deepcopy(layer), nn.Sequential(layer)
        synchronise_batchnorm(model)
        assert isinstance(layer, type(plain)) and type(layer) is not type(plain)
        x = torch.randn(6, 4, 3, 3)
        for _ in range(2):
            torch.testing.assert_close(model(x), plain(x), rtol=1e-4, atol=1e-5)
        for expected, found in zip(plain.buffers(), layer.buffers()):
            torch.testing.assert_close(found, expected)
        torch.testing.assert_close(model.eval()(x), plain.eval()(x))
