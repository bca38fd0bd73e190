"""Hugging Face's Trainer: a ResNet in full precision, then the same network at 3 bits, on scikit-learn's digits.

    pip install transformers accelerate scikit-learn
    python examples/huggingface_trainer.py

Between the two trainings stand `lowbit.prepare` and `lowbit.calibrate`, and the second has a callback; nothing else is new.
Trainer takes the prepared network as any other, and so do its checkpoints and `resume_from_checkpoint`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from transformers import (
    EvalPrediction,
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

import lowbit
from lowbit.integrations.huggingface import LowbitCallback

pixels, labels = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
pixels = pixels.float().reshape(-1, 1, 8, 8) / 16
data = [{"pixel_values": image, "labels": label} for image, label in zip(pixels, labels)]
train_data, test_data = data[:1500], data[1500:]


def network() -> PreTrainedModel:
    """A small ResNet with random weights."""
    config = ResNetConfig(
        num_channels=1, embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic", num_labels=10
    )
    return ResNetForImageClassification(config)


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(1) == prediction.label_ids).mean())}


def trainer(model: PreTrainedModel, folder: Path, *, epochs: int, callbacks: Sequence[TrainerCallback] = ()) -> Trainer:
    arguments = TrainingArguments(
        str(folder),
        num_train_epochs=epochs,
        learning_rate=3e-3,
        lr_scheduler_type="cosine",
        per_device_train_batch_size=50,
        per_device_eval_batch_size=100,
        save_strategy="epoch",
        report_to="none",
        disable_tqdm=True,
    )
    # Trainer decays no weights by default. With `weight_decay` it would decay the learned steps too; give it an optimizer
    # that doesn't, the last argument below:
    #   optimizers=(torch.optim.AdamW(lowbit.parameter_groups(model, weight_decay=0.01), lr=3e-3), None)
    return Trainer(
        model,
        arguments,
        train_dataset=train_data,
        eval_dataset=test_data,
        compute_metrics=accuracy,
        callbacks=[*callbacks],
    )


def main(folder: Path) -> dict[str, float]:
    """Train twice; returns the accuracies."""
    set_seed(0)
    in_full = trainer(network(), folder / "full-precision", epochs=3)
    in_full.train()

    quantized = lowbit.prepare(in_full.model, weights=3, activations=3)
    lowbit.calibrate(quantized, [{"pixel_values": batch} for batch in pixels[:200].split(50)])

    low_bit = trainer(quantized, folder / "low-bit", epochs=3, callbacks=[LowbitCallback()])
    calibrated = low_bit.evaluate()["eval_accuracy"]
    low_bit.train()
    return {
        "full precision": in_full.evaluate()["eval_accuracy"],
        "3 bits, calibrated": calibrated,
        "3 bits, trained": low_bit.evaluate()["eval_accuracy"],
    }


if __name__ == "__main__":
    print(main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/huggingface")))
