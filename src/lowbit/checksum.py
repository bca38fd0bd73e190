"""The checksum that lowbit's own files of tensors carry in their header."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def checksum(text: str, tensors: dict[str, Tensor]) -> str:
    """SHA-256 of a text and, in order of name, of every tensor's name, type, shape and bytes, in hexadecimal digits."""
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
