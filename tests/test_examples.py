"""lowbit within other people's loops: the examples run as they stand, and what they saved loads again."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import pytest
import torch

import lowbit

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
# Their libraries' warnings are about their own affairs (data loader workers, loggers, deprecated tree functions).
pytestmark = pytest.mark.filterwarnings("ignore")


def example(name: str, library: str) -> ModuleType:
    pytest.importorskip("sklearn", reason="the examples need scikit-learn: pip install 'lowbit[demo]'")
    pytest.importorskip(library, reason=f"this example needs {library}: pip install 'lowbit[examples]'")
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check(accuracies: dict[str, float]) -> None:
    """Chance is 10 %; training at 3 bits gains on calibration alone and is about as good as full precision."""
    in_full, calibrated, trained = accuracies.values()
    assert in_full > 0.8 and trained > 0.85
    assert trained > calibrated
    assert trained > in_full - 0.03


def prepared(network: torch.nn.Module) -> torch.nn.Module:
    return lowbit.prepare(network, weights=3, activations=3)


def test_huggingface_trainer(tmp_path):
    module = example("huggingface_trainer", "transformers")
    pytest.importorskip("accelerate", reason="transformers' Trainer needs accelerate: pip install 'lowbit[train]'")
    check(module.main(tmp_path))

    from safetensors.torch import load_file

    last = max((tmp_path / "low-bit").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    again = prepared(module.network())
    again.load_state_dict(load_file(last / "model.safetensors"))
    quantizers = [quantizer for _, quantizer in lowbit.quantizers(again)]
    assert all(quantizer.initialized for quantizer in quantizers)
    assert any(quantizer.shared for quantizer in quantizers)  # the ResNet's shortcut and its first layer share an input
    assert all(not torch.equal(quantizer.step, quantizer.initial_step) for quantizer in quantizers)
    evaluated = module.trainer(again, tmp_path / "again", epochs=1).evaluate()
    assert evaluated["eval_accuracy"] > 0.85
    # The optimizer of the example's comment: no step is decayed. Trainer's own, asked to decay, decays them all.
    arguments = module.TrainingArguments(str(tmp_path / "decay"), weight_decay=0.01, report_to="none")
    steps = {id(quantizer.raw_step) for quantizer in quantizers}
    decayed = decayed_parameters(module.Trainer(again, arguments).create_optimizer())
    assert steps <= decayed
    groups = lowbit.parameter_groups(again, weight_decay=0.01)
    assert not steps & decayed_parameters(torch.optim.AdamW(groups, lr=3e-3))


def decayed_parameters(optimizer: torch.optim.Optimizer) -> set[int]:
    return {id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}


def test_lightning(tmp_path):
    module = example("lightning_module", "lightning")
    accuracies = module.main(tmp_path)
    check(accuracies)

    checkpoint = tmp_path / "low-bit" / "final.ckpt"
    again = module.Classifier.load_from_checkpoint(checkpoint, network=prepared(module.network()), lr=0.02)
    assert all(quantizer.initialized for _, quantizer in lowbit.quantizers(again))
    (evaluated,) = module.trainer(tmp_path / "again", epochs=1).validate(again, module.test_data, verbose=False)
    assert evaluated["accuracy"] == pytest.approx(accuracies["3 bits, trained"], abs=1e-6)


def test_huggingface_language_model(tmp_path):
    """Linear layers at 4 bits, weights alone and with 8-bit activations, lose little of what the model has learned."""
    module = example("huggingface_language_model", "transformers")
    pytest.importorskip("accelerate", reason="transformers' Trainer needs accelerate: pip install 'lowbit[train]'")
    losses = module.main(tmp_path, steps=60)
    assert losses["full precision"] < 3.5  # bytes at random have 5.5 nats
    for name in ("W4A16", "W4A8"):
        assert losses[name] < losses["full precision"] + 0.1
    quantized = module.prepared(module.network(), None)
    layers = {row.name: (row.weight_bits, row.activation_bits) for row in lowbit.layer_table(quantized)}
    assert layers["lm_head"] == (None, None) and layers["model.layers.0.self_attn.q_proj"] == (4, None)
    assert list(layers.values()).count((4, None)) == 14
    weight, quantizer = (
        getattr(quantized.model.layers[0].mlp.up_proj, name) for name in ("weight", "weight_quantizer")
    )
    assert quantizer.step.shape == (128, 1) and int(quantizer.codes(weight).unique().numel()) <= 16


def test_microcontroller(tmp_path):
    """The firmware on this machine, and by `make run` on a Cortex-M4 in QEMU: both tell the digit that the reference tells."""
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None:
        pytest.skip("no C compiler: apt install gcc libc6-dev")
    for name in ("Makefile", "main.c", "export.py"):
        shutil.copy(EXAMPLES / "microcontroller" / name, tmp_path)
    integer = example("microcontroller/export", "sklearn").main(tmp_path, 1, 5)
    program = tmp_path / "firmware"
    subprocess.run([compiler, "-std=c99", tmp_path / "main.c", tmp_path / "digits.c", "-o", program], check=True)
    shown = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    image = torch.from_numpy(images[1505]).float().reshape(1, 1, 8, 8) / 16
    told = int(integer(image, "fixed").argmax())
    assert shown == f"self-test passed; this is a {told} (labelled {labels[1505]})\n"
    if all(map(shutil.which, ("make", "arm-none-eabi-gcc", "qemu-system-arm"))):
        done = subprocess.run(["make", "run"], cwd=tmp_path, capture_output=True, text=True, env=os.environ)
        assert done.returncode == 0 and shown in done.stdout + done.stderr
