"""The integers there are."""

from __future__ import annotations

import pytest

from lowbit import Grid, LowbitError


@pytest.mark.parametrize(
    ("bits", "signed", "narrow", "qn", "qp"),
    [
        (1, False, False, 0, 1), (2, False, False, 0, 3), (8, False, False, 0, 255),
        (16, False, False, 0, 65535), (16, True, True, -32767, 32767),
        (1, True, False, -1, 1), (2, True, False, -2, 1), (3, True, False, -4, 3), (8, True, False, -128, 127),
        (2, True, True, -1, 1), (4, True, True, -7, 7), (8, True, True, -127, 127),
    ],
)  # fmt: skip
def test_bounds(bits, signed, narrow, qn, qp):
    grid = Grid(bits, signed, narrow)
    assert (grid.qn, grid.qp) == (qn, qp)


@pytest.mark.parametrize("arguments", [(0, True), (17, False), (-1, True), (2.0, True), (True, True), ("4", True)])
def test_bits_out_of_range(arguments):
    with pytest.raises(LowbitError, match="bits must be a whole number from 1 to 16"):
        Grid(*arguments)


@pytest.mark.parametrize("signed", [None, "no", 1])
def test_signed_must_be_said(signed):
    with pytest.raises(LowbitError, match="signed must be True or False"):
        Grid(4, signed)


@pytest.mark.parametrize("arguments", [(4, False, True), (1, True, True)])
def test_narrow_where_it_means_nothing(arguments):
    with pytest.raises(LowbitError, match="narrow"):
        Grid(*arguments)
