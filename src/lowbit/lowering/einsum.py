"""torch.einsum, written out while a network is recorded: one matrix product, or product, for each pair of tensors."""

from __future__ import annotations

import string
from typing import Any

import torch
from torch import fx


def einsum(equation: str, *operands: Any) -> Any:
    """What torch.einsum gives of tensors, for every equation in which each tensor has a letter once."""
    tensors = list(operands[0]) if len(operands) == 1 and isinstance(operands[0], (tuple, list)) else list(operands)
    letters, output = _letters(equation, tensors)
    left, x = letters[0], tensors[0]
    for number in range(1, len(tensors)):
        kept = set(output).union(*letters[number + 1 :])
        left, x = _product(left, x, letters[number], tensors[number], kept)
    left, x = _summed(left, x, set(output))
    return _in_order(x, left, output)


def _letters(equation: str, tensors: list[Any]) -> tuple[list[str], str]:
    """The letters of each tensor and of the result; what "..." stands for has capitals that are not used."""
    before, arrow, after = equation.replace(" ", "").partition("->")
    parts = before.split(",")
    free = [letter for letter in string.ascii_uppercase if letter not in equation]
    found = []
    for part, x in zip(parts, tensors):
        rest = x.dim() - len(part.replace("...", ""))
        found.append(part.replace("...", "".join(free[-rest:] if rest else [])))
    together = "".join(found)
    if not arrow:
        after = "..." + "".join(sorted(each for each in set(together) - {*free} if together.count(each) == 1))
    rest = max((sum(each in free for each in part) for part in found), default=0)
    output = after.replace("...", "".join(free[-rest:] if rest else []))
    if len(parts) != len(tensors) or any(len(set(part)) < len(part) for part in found):
        raise fx.proxy.TraceError(
            f"torch.einsum({equation!r}) takes a letter of a tensor twice, which has no integer form"
        )
    return found, output


def _product(a_letters: str, a: Any, b_letters: str, b: Any, kept: set[str]) -> tuple[str, Any]:
    """Two tensors as one, summed over the letters that are not kept."""
    if _is_open(b) and not _is_open(a):  # what the network holds comes second, as a weight does
        a_letters, a, b_letters, b = b_letters, b, a_letters, a
    a_letters, a = _summed(a_letters, a, kept | set(b_letters))
    b_letters, b = _summed(b_letters, b, kept | set(a_letters))
    sizes = dict(zip(b_letters, b.size())) | dict(zip(a_letters, a.size()))
    for letter, size in zip(b_letters, b.size()):
        if isinstance(size, int) and size != sizes[letter]:
            raise fx.proxy.TraceError(
                "torch.einsum repeats a dimension of size 1, which has no integer form: expand it before"
            )
    shared = [each for each in a_letters if each in b_letters]
    batch, summed = [x for x in shared if x in kept], [x for x in shared if x not in kept]
    rows, columns = ([x for x in own if x not in shared] for own in (a_letters, b_letters))
    if not summed:
        order = [*batch, *rows, *columns]
        a, b = (
            _in_order(x, own, [each for each in order if each in own])[
                tuple(slice(None) if each in own else None for each in order)
            ]
            for x, own in ((a, a_letters), (b, b_letters))
        )
        return "".join(order), a * b
    # The batch is no row or column of a matrix.
    (open_rows, rows), (open_columns, columns) = (
        ([x for x in own if not isinstance(sizes[x], int)], [x for x in own if isinstance(sizes[x], int)])
        for own in (rows, columns)
    )
    a = _in_order(a, a_letters, [*open_rows, *batch, *rows, *summed])
    b = _in_order(b, b_letters, [*open_columns, *batch, *summed, *columns])
    first = [*open_rows, *open_columns, *batch]
    a = a.reshape(*(1 if x in open_columns else sizes[x] for x in first), _count(rows, sizes), _count(summed, sizes))
    leading = [1 if x in open_rows else sizes[x] for x in first] if batch or open_columns else []
    b = b.reshape(*leading, _count(summed, sizes), _count(columns, sizes))
    y = torch.matmul(a, b)
    order = [*first, *rows, *columns]
    return "".join(order), y.reshape(*(sizes[x] for x in order))


def _is_open(x: Any) -> bool:
    """Whether one of its sizes has the batch in it."""
    return any(not isinstance(size, int) for size in x.size())


def _count(letters: list[str], sizes: dict[str, Any]) -> int:
    product = 1
    for each in letters:
        product *= sizes[each]
    return product


def _summed(letters: str, x: Any, kept: set[str]) -> tuple[str, Any]:
    gone = [axis for axis, each in enumerate(letters) if each not in kept]
    return ("".join(each for each in letters if each in kept), x.sum(gone)) if gone else (letters, x)


def _in_order(x: Any, letters: str, order: Any) -> Any:
    axes = [letters.index(each) for each in order]
    return x if axes == list(range(len(axes))) else x.permute(axes)
