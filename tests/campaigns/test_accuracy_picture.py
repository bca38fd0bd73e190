"""The pictures of the campaign of accuracy show what is recorded."""

from __future__ import annotations

import statistics

import pytest
from campaigns.accuracy import picture, results

from lowbit.models import SHIPPED


@pytest.fixture(scope="module")
def done() -> dict[str, results.Line]:
    return results.read(results.FOLDER)


def test_bits_are_means_over_seeds(done) -> None:
    (axes,) = picture.draw_bits(done).axes
    heights = [y for line in axes.lines for y in line.get_ydata()]
    lsq = [
        line["test"] for line in done.values() if (line["table"], line["row"], line["bits"]) == ("methods", "lsq", 2)
    ]
    assert statistics.mean(lsq) in heights


def test_steps_and_codes_have_a_panel_each(done) -> None:
    assert [axes.get_title() for axes in picture.draw_steps(done).axes] == [
        "lsq+lsq: 79.00 %", "lsq+lsq,balanced: 82.11 %", "least-squares+lsq: 83.06 %",
    ]  # fmt: skip
    panels = picture.draw_codes().axes
    assert len(panels) == len(SHIPPED)
    for axes in panels:
        assert sum(bar.get_height() for bar in axes.patches) == pytest.approx(100)
        assert len(axes.patches) == 2 ** int(axes.get_title()[-1])
