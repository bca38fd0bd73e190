"""What copies a quantizer's parameters and buffers copies the quantizer: checkpoints, processes and averages."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import lowbit
from lowbit import Quantizer
from lowbit.quantizer.methods import lg_lsq
from lowbit.quantizer.rounding import asr
from tests.quantizer import data_parallel_job


def network(method="lsq+4", bits=3, **options) -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(6, 8), nn.SiLU(), nn.Linear(8, 4))
    return lowbit.prepare(layers, weights=bits, activations=bits, first_last=bits, method=method, **options)


def data() -> Tensor:
    return torch.randn(64, 6, generator=torch.Generator().manual_seed(1)) + 0.3


def calibrated(method="lsq+4", x=None, **options) -> nn.Module:
    return lowbit.calibrate(network(method, **options), [data() if x is None else x])


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict]:
    """What each of two processes found."""
    folder = tmp_path_factory.mktemp("processes")
    torch.multiprocessing.spawn(data_parallel_job.run, (str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


@pytest.mark.parametrize("method", data_parallel_job.METHODS)
def test_processes_that_calibrated_apart_compute_as_the_first_once_they_train_together(ranks, method):
    first, second = (found[method] for found in ranks)
    assert not torch.equal(first["before"], second["before"])  # they did differ
    assert torch.equal(first["after"], first["before"]) and torch.equal(second["after"], first["before"])
    assert first["grid"] == second["grid"] and ("unsigned" in first["grid"])


def test_zero_points_rounded_later_are_rounded_everywhere(ranks):
    first, second = (found["lsq+4"] for found in ranks)
    assert torch.equal(first["rounded"], second["rounded"])
    assert not torch.equal(first["rounded"], first["after"])


def test_a_checkpoint_that_one_process_loads_reaches_the_other(ranks):
    model = lowbit.round_zero_points(lowbit.calibrate(data_parallel_job.network("lsq+4"), [data_parallel_job.data(0)]))
    expected = model(data_parallel_job.inputs())
    for found in ranks:
        assert torch.equal(found["loaded"]["after"], expected)


def by_hand(average: nn.Module, model: nn.Module) -> None:
    for copies, originals in ((average.buffers(), model.buffers()), (average.parameters(), model.parameters())):
        for a, b in zip(copies, originals):
            a.detach().copy_(b)


def by_state_dict(average: nn.Module, model: nn.Module) -> None:
    for a, b in zip(average.state_dict().values(), model.state_dict().values()):
        a.copy_(b)


@pytest.mark.parametrize("copied", [by_hand, by_state_dict])
def test_a_copy_made_before_zero_points_were_rounded_follows(copied):
    model, x = calibrated(), data()
    average = copy.deepcopy(model)
    assert torch.equal(average(x), model(x))
    exact = model(x)
    lowbit.round_zero_points(model)
    copied(average, model)
    assert torch.equal(average(x), model(x)) and not torch.equal(model(x), exact)
    assert not any(not quantizer.integer_zero_point for _, quantizer in lowbit.quantizers(average))


def test_torchs_average_follows_too():
    model, x = calibrated(), data()
    average = AveragedModel(model, use_buffers=True)
    assert torch.equal(average(x), model(x))
    lowbit.round_zero_points(model)
    average.update_parameters(model)
    assert torch.equal(average(x), model(x))


def test_a_copy_of_a_calibrated_network_initializes_one_that_is_not():
    model, other, x = calibrated(), network(), data()
    by_hand(other, model)
    assert torch.equal(other(x), model(x))
    assert all(quantizer.initialized for _, quantizer in lowbit.quantizers(other))
    grids = [str(quantizer.grid) for _, quantizer in lowbit.quantizers(model)]
    assert [str(quantizer.grid) for _, quantizer in lowbit.quantizers(other)] == grids


@pytest.mark.parametrize("decay", [0.913, 0.946, 0.999])
def test_an_average_of_equal_networks_is_that_network(decay):
    """A buffer of integers would be truncated: 0.946·3 + 0.054·3 is a little less than 3 in single precision."""
    model, x = calibrated("lsq", bits=3), data()
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
    for _ in range(5):
        average.update_parameters(model)
    assert torch.equal(average(x), model(x))


def test_an_average_takes_over_rounding_when_most_of_it_is_rounded():
    model = calibrated()
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True)
    average.update_parameters(model)
    lowbit.round_zero_points(model)
    for _ in range(3):
        average.update_parameters(model)
    assert torch.equal(average(data()), model(data()))


def test_progress_of_the_rounding_is_copied_whole():
    """The surrogate gradient's norm goes with its sharpness, whoever copies."""
    method = lowbit.Method("annealed", surrogate_gradient=asr(2.0, final=8.0))
    model, x = calibrated(method), data()
    average = copy.deepcopy(model)
    lowbit.set_progress(model, 0.7)
    by_state_dict(average, model)
    for each in (model, average):
        each(x).square().sum().backward()
    for mine, theirs in zip(average.parameters(), model.parameters()):
        assert torch.equal(mine.grad, theirs.grad) if mine.requires_grad else mine.grad is None


@pytest.mark.parametrize("method", ["lsq", "lsq+", "lsq+4", "lg-lsq", "minmax"])
@pytest.mark.parametrize("rounded", [False, True])
def test_loading_by_assignment(method, rounded):
    model, other, x = calibrated(method), network(method), data()
    if rounded:
        lowbit.round_zero_points(model)
    expected = model(x)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    other.load_state_dict(state, assign=True)
    assert torch.equal(other(x), expected)
    wants = {name: p.requires_grad for name, p in model.named_parameters()}
    assert {name: p.requires_grad for name, p in other.named_parameters()} == wants
    other(x).sum().backward()


def test_another_buffer_that_was_written_as_often_is_read():
    model, other, x = calibrated(), calibrated(), data()
    lowbit.round_zero_points(model)
    for _, quantizer in lowbit.quantizers(other):
        quantizer.shared = 0
    pair = model[0].input_quantizer, other[0].input_quantizer
    assert pair[0].configuration._version == pair[1].configuration._version
    other.load_state_dict(model.state_dict(), assign=True)
    assert torch.equal(other(x), model(x))


def test_loading_by_assignment_onto_a_network_without_memory():
    model, x = calibrated("lg-lsq"), data()
    with torch.device("meta"):
        other = network("lg-lsq")
    other.load_state_dict(model.state_dict(), assign=True)
    assert torch.equal(other(x), model(x))


def as_in_0_1_0(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict as version 0.1.0 wrote it."""
    old = {}
    for name, value in state.items():
        if name.endswith("configuration"):
            old[name.replace("configuration", "layout")] = value.to(torch.int32)
        elif not name.endswith("surrogate_norm"):
            old[name.replace("initial_step", "start_step")] = value
    return old


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("method", ["lsq", "lsq+4", "lg-lsq", lg_lsq(asr_k=5.0)])
def test_a_checkpoint_of_0_1_0_loads(method, assign):
    model, x = calibrated(method), data()
    lowbit.round_zero_points(model)
    old = as_in_0_1_0(model.state_dict())
    assert old.keys() != model.state_dict().keys()
    other = network(method)
    other.load_state_dict(old, assign=assign, strict=True)
    assert torch.equal(other(x), model(x))
    for (name, value), new in zip(model.state_dict().items(), other.state_dict().values()):
        assert torch.equal(value, new) and value.dtype == new.dtype, name
    assert old.keys() == as_in_0_1_0(model.state_dict()).keys()  # the caller's own dictionary is left alone


def test_a_compiled_network_is_compiled_anew_when_it_changes():
    torch._dynamo.reset()
    model, x = calibrated(), data()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    exact = compiled(x).detach()
    torch.testing.assert_close(exact, model(x))
    lowbit.round_zero_points(model)
    torch.testing.assert_close(compiled(x), model(x))
    assert not torch.allclose(compiled(x), exact)
    compiled(x).square().sum().backward()
    found = [p.grad.clone() for p in model.parameters() if p.requires_grad]
    model.zero_grad()
    model(x).square().sum().backward()
    torch.testing.assert_close(found, [p.grad for p in model.parameters() if p.requires_grad])

    signed = calibrated(x=data().abs())
    model.load_state_dict(signed.state_dict())
    torch.testing.assert_close(compiled(x), signed(x))


def test_compiling_reads_the_buffers_as_they_are():
    """Copied by hand and looked at by nobody since."""
    torch._dynamo.reset()
    model, other, x = calibrated(), network(), data()
    lowbit.round_zero_points(model)
    by_hand(other, model)
    torch.testing.assert_close(torch.compile(other, fullgraph=True, backend="aot_eager")(x), model(x))


def test_reading_waits_for_no_device_while_nothing_changes(monkeypatch):
    model, x = calibrated(), data()
    model(x)
    monkeypatch.setattr(Tensor, "tolist", lambda self: pytest.fail("the buffer was read again"))
    for _ in range(2):
        model(x).sum().backward()


def test_copies_and_pickles_have_a_state_of_their_own():
    model, x = calibrated(), data()
    exact = model(x)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        lowbit.round_zero_points(other)
        assert not torch.equal(other(x), exact) and torch.equal(model(x), exact)


def test_a_state_made_in_inference_mode_is_read():
    with torch.inference_mode():
        quantizer = Quantizer(4)
        quantizer.initialize(torch.rand(9))
        assert str(quantizer.grid) == "4-bit unsigned [0, 15]"
        quantizer.reset()
        assert quantizer.grid is None
