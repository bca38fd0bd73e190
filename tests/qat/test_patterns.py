"""Patterns of rules: what `re` says, in bounded time."""

from __future__ import annotations

import random
import re
import time

import pytest
from torch import nn

import lowbit
from lowbit import LowbitError
from lowbit.layers import patterns
from lowbit.layers.patterns import matcher


@pytest.mark.parametrize("simple", [True, False], ids=["by re where that is fast", "by places always"])
def test_the_same_names_as_re(simple, monkeypatch):
    """Random patterns on random names."""
    if not simple:
        monkeypatch.setattr(patterns, "_is_simple", lambda sequence: False)
    chooser = random.Random(0)

    def pattern(depth: int) -> str:
        kind = chooser.randrange(9 if depth else 4)
        if kind < 4:
            return chooser.choice(["a", "b", r"\.", ".", "[ab]", r"[^b]", r"\d", "1", r"\w", r"\b", "^", "$"])
        if kind < 6:
            return pattern(depth - 1) + pattern(depth - 1)
        if kind == 6:
            return f"({pattern(depth - 1)}|{pattern(depth - 1)})"
        inner = f"(?:{pattern(depth - 1)})"
        return inner + chooser.choice(["*", "+", "?", "{2}", "{1,3}", "{2,}", "*?", "+?"])

    matched = 0
    for _ in range(1500):
        text = pattern(4)
        matches = matcher(text)
        for _ in range(4):
            name = "".join(chooser.choice("ab.1") for _ in range(chooser.randrange(7)))
            expected = re.fullmatch(text, name) is not None
            assert matches(name) == expected, (text, name)
            matched += expected
    assert matched > 500


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        (r"(layer\d+\.)+conv\d?(\.\w+)*", ["layer1.layer2.conv", "layer1.conv1.a.b"], ["conv1", "layer1.conv1."]),
        (r"(?!head).*(\.(conv|fc)\d*)+", ["body.conv1.fc", "x.fc"], ["head.conv1", "body"]),
        (r"(?i:(LAYER\d)+)\.(?:a|b)+", ["layer1Layer2.ab"], ["layer1.AB"]),
        (r"(a|b)*(?<=a)\.(a|b)*", ["ba.b"], ["ab.b"]),
        (r"(?:(a|b){2})*", ["", "abab"], ["aba"]),
        (r"((a?){3}){2}", ["", "aaaaaa"], ["aaaaaaa"]),
    ],
)
def test_what_patterns_are_made_of(pattern, yes, no):
    matches = matcher(pattern)
    assert [name for name in yes + no if matches(name)] == yes
    assert [name for name in yes + no if re.fullmatch(pattern, name)] == yes


@pytest.mark.parametrize(
    "pattern",
    [
        "(a+)+b",
        "(a|a)*b",
        "(a|aa)+b",
        "(a?){60}a{60}b",
        "a?" * 60 + "b",
        "(a*)*(a*)*(a*)*b",
        "(.*a){25}b",
        "(a|a)" * 60 + "b",
        "((a+)+)+b",
        "((a{1,9}){1,9}){1,1000}b",
    ],
)
def test_hostile_patterns_take_no_time(pattern):
    began = time.process_time()
    assert not matcher(pattern)("a" * 100)
    assert time.process_time() - began < 2
    model = nn.ModuleDict({"a" * 60: nn.Linear(2, 2)})
    with pytest.raises(LowbitError, match="matches no layer"):
        lowbit.prepare(model, rules=[lowbit.Rule(pattern, skip=True)])


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("(a", "is not a regular expression"),
        ("a" * 1001, "1001 characters, more than 1000"),
        (r"((a|bb)+)\1", "a reference to a group among nested repetitions"),
        (r"(a|b)*(?=(a+)+b)a", "looks around for nested repetitions"),
    ],
)
def test_what_is_refused(pattern, words):
    with pytest.raises(LowbitError, match=words):
        lowbit.prepare(nn.Sequential(nn.Linear(2, 2)), rules=[lowbit.Rule(pattern, skip=True)])
