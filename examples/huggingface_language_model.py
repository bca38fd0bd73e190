"""A language model in Hugging Face's Trainer: linear layers at 4 bits, weights alone (W4A16) or with 8-bit activations (W4A8).

    pip install transformers accelerate
    python examples/huggingface_language_model.py

The model is a small Llama with random weights, which learns this file's own text, a byte a token. TRL's trainers derive from Trainer
and take the prepared model and the callback as it does: SFTTrainer(model=quantized, …, callbacks=[LowbitCallback()]).
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Trainer, TrainingArguments, set_seed

import lowbit
from lowbit.integrations.huggingface import LowbitCallback

LENGTH = 64
text = torch.frombuffer(bytearray(Path(__file__).read_bytes()), dtype=torch.uint8).long()
windows = [text[start : start + LENGTH] for start in range(0, len(text) - LENGTH, LENGTH // 4)]
data = [{"input_ids": window, "labels": window} for window in windows]


def network() -> PreTrainedModel:
    """A small Llama with random weights: two blocks, the head's weight not tied to the embedding's."""
    config = LlamaConfig(
        vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=LENGTH, tie_word_embeddings=False,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def prepared(model: PreTrainedModel, activations: int | None) -> PreTrainedModel:
    """4-bit weights with a step for each output channel; the embedding and the head stay as they are, as usual for language models."""
    rules = [lowbit.Rule(r"lm_head|model\.embed_tokens", skip=True)]
    quantized = lowbit.prepare(
        model, weights=4, activations=activations, first_last=4, granularity="channel", rules=rules
    )
    # Weight-only quantizers need no data.
    batches = [] if activations is None else [{"input_ids": torch.stack(windows[:16])}]
    return lowbit.calibrate(quantized, batches)


def train(
    model: PreTrainedModel, folder: Path, *, steps: int, lr: float, callback: LowbitCallback | None = None
) -> float:
    """Returns the loss on the text after training."""
    arguments = TrainingArguments(
        str(folder), max_steps=steps, per_device_train_batch_size=16, per_device_eval_batch_size=32, learning_rate=lr,
        lr_scheduler_type="cosine", save_strategy="no", report_to="none", disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(
        model, arguments, train_dataset=data, eval_dataset=data, callbacks=None if callback is None else [callback]
    )
    trainer.train()
    return trainer.evaluate()["eval_loss"]


def main(folder: Path, steps: int = 150) -> dict[str, float]:
    """Train in full precision, then at both settings from there; returns the losses in nats a byte."""
    set_seed(0)
    model = network()
    losses = {"full precision": train(model, folder / "full-precision", steps=steps, lr=3e-3)}
    for name, activations in (("W4A16", None), ("W4A8", 8)):
        quantized = prepared(model, activations)
        losses[name] = train(quantized, folder / name, steps=steps // 3, lr=1e-3, callback=LowbitCallback())
    return losses


if __name__ == "__main__":
    print(main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/language-model")))
