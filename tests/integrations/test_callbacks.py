"""Callbacks for other libraries' loops: progress, batch-norm, diagnosis, and the optimizer that decays steps."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import lowbit
from lowbit.integrations.training import TrainingHooks
from lowbit.quantizer.rounding import asr

ANNEALED = lowbit.Method("annealed", surrogate_gradient=asr(2.0, final=10.0), activations=lowbit.METHODS["lsq"])


def network() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
    prepared = lowbit.prepare(model, weights=3, activations=3, method=ANNEALED, first_last=3)
    return lowbit.calibrate(prepared, [torch.randn(8, 1, 8, 8)])


def sharpness(model: nn.Module) -> float:
    return float(model[0].weight_quantizer.surrogate_value)


def test_progress_goes_from_the_first_step_to_the_end():
    model, hooks = network(), TrainingHooks()
    hooks.step(model, 0, 4)
    assert sharpness(model) == 2.0
    hooks.step(model, 3, 4)
    assert sharpness(model) == pytest.approx(8.0)
    hooks.step(model, 3, float("inf"))  # training without an end
    assert sharpness(model) == pytest.approx(8.0)
    hooks.end(model, None)
    assert sharpness(model) == 10.0


def test_batch_norm_is_reestimated_on_as_many_batches_as_are_asked_for():
    model, batches = network(), [torch.randn(8, 1, 8, 8) + number for number in range(5)]
    expected = lowbit.calibrate(
        lowbit.prepare(model_of(model), method=ANNEALED, weights=3, activations=3, first_last=3), [batches[0]]
    )
    expected.load_state_dict(model.state_dict())
    lowbit.set_progress(expected, 1.0)
    lowbit.reestimate_batchnorm(expected, batches[:3])
    TrainingHooks(batchnorm_batches=3).end(model, batches)
    assert torch.equal(model[1].running_mean, expected[1].running_mean) and int(model[1].num_batches_tracked) == 3
    before = model[1].running_mean.clone()
    TrainingHooks(batchnorm_batches=0).end(model, batches)
    assert torch.equal(model[1].running_mean, before)


def model_of(prepared: nn.Module) -> nn.Module:
    """A float network of the same shapes."""
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))


def test_diagnosis_is_of_as_many_samples_as_are_asked_for():
    hooks = TrainingHooks(diagnosis_batches=2)
    hooks.end(network(), [torch.randn(8, 1, 8, 8) for _ in range(5)])
    assert hooks.diagnosis is not None and hooks.diagnosis.samples == 16


def test_an_optimizer_that_decays_steps_is_named():
    model = network()
    with pytest.warns(UserWarning, match=r"weight decay of 0\.1 applies to 4 learned steps .*lowbit\.parameter_groups"):
        TrainingHooks().begin(model, [torch.optim.AdamW(model.parameters(), weight_decay=0.1)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TrainingHooks().begin(model, [torch.optim.AdamW(lowbit.parameter_groups(model, weight_decay=0.1))])
        TrainingHooks().begin(model, [torch.optim.AdamW(model.parameters(), weight_decay=0.0)])


def test_networks_that_are_not_ready_are_refused():
    with pytest.raises(lowbit.LowbitError, match=r"no quantizers: lowbit\.prepare"):
        TrainingHooks().begin(nn.Linear(2, 2), [])
    with pytest.raises(lowbit.LowbitError, match=r"has no step yet: run lowbit\.calibrate"):
        TrainingHooks().begin(lowbit.prepare(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))), [])


@pytest.mark.filterwarnings("ignore")  # the library's own
def test_lightning(tmp_path):
    lightning = pytest.importorskip("lightning", reason="the callback is for lightning: pip install 'lowbit[examples]'")
    from torch.utils.data import DataLoader, TensorDataset

    from lowbit.integrations.lightning import LowbitCallback

    class Module(lightning.LightningModule):
        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.network, self.seen = network, []

        def training_step(self, batch, index):
            self.seen.append(sharpness(self.network))
            return nn.functional.cross_entropy(self.network(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(lowbit.parameter_groups(self, weight_decay=1e-3), 0.01)

    model = network()
    data = DataLoader(TensorDataset(torch.randn(32, 1, 8, 8), torch.arange(32) % 2), batch_size=8)
    callback, module = LowbitCallback(model, batchnorm_batches=2, diagnosis_batches=1), Module(model)
    lightning.Trainer(
        max_epochs=2, default_root_dir=tmp_path, logger=False, enable_progress_bar=False, enable_checkpointing=False,
        callbacks=[callback], accelerator="cpu",
    ).fit(module, data)  # fmt: skip
    assert module.seen == pytest.approx([2.0 + number for number in range(8)])  # from 2 to 10 in eight steps
    assert sharpness(model) == 10.0 and int(model[1].num_batches_tracked) == 2
    assert callback.diagnosis.samples == 8


@pytest.mark.filterwarnings("ignore")  # the library's own
def test_hugging_face(tmp_path):
    transformers = pytest.importorskip(
        "transformers", reason="the callback is for transformers: pip install 'lowbit[examples]'"
    )
    pytest.importorskip("accelerate", reason="transformers' Trainer needs accelerate: pip install 'lowbit[train]'")
    from lowbit.integrations.huggingface import LowbitCallback

    class Module(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network, self.seen = network(), []

        def forward(self, pixels, labels=None):
            if self.training:
                self.seen.append(sharpness(self.network))
            logits = self.network(pixels)
            return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}

    data = [{"pixels": torch.randn(1, 8, 8), "labels": number % 2} for number in range(32)]
    arguments = transformers.TrainingArguments(
        str(tmp_path), num_train_epochs=2, per_device_train_batch_size=8, save_strategy="no", report_to="none",
        disable_tqdm=True, use_cpu=True,
    )  # fmt: skip
    model, callback = Module(), LowbitCallback(batchnorm_batches=2, diagnosis_batches=1)
    transformers.Trainer(model, arguments, train_dataset=data, callbacks=[callback]).train()
    assert model.seen == pytest.approx([2.0 + number for number in range(8)])
    assert sharpness(model.network) == 10.0 and int(model.network[1].num_batches_tracked) == 2
    assert callback.diagnosis.samples == 8
