"""Plots as inline SVG: lines, bars along the network, histograms. Colours and fonts are the page's (`html.STYLE`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 12, 38
_WIDE = {"width": 900, "height": 230}
_NAMED = 32  # so many names of layers have room along an axis


@dataclass(frozen=True)
class Series:
    """A line: its points, its name and its colour (a class of `html.STYLE`: "c1" to "c6", or "faint")."""

    name: str
    points: Sequence[tuple[float, float]]
    colour: str


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers from low to high."""
    if not high > low:
        return [low]
    rough = (high - low) / count
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * each for each in (1, 2, 5, 10) if size * each >= rough)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    if high / low < 3:
        return ticks(low, high)
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1,) if high / low > 300 else (1, 2, 5)
    found = [factor * 10.0**e for e in exponents for factor in factors if low <= factor * 10.0**e <= high]
    return found if len(found) > 1 else [low, high]


def _short(number: float) -> str:
    """At most six characters, which is what fits between an axis and its label."""
    return f"{number / 1000:.4g}k" if abs(number) >= 10_000 else f"{number:.4g}"


class Frame:
    """The axes of one plot, and the way from its numbers to its pixels."""

    def __init__(
        self,
        x: tuple[float, float],
        y: tuple[float, float],
        *,
        width: int = 560,
        height: int = 260,
        log: bool = False,
        names: Sequence[str] = (),
    ) -> None:
        self.names = names if len(names) <= _NAMED else ()
        self.bottom = 20 + min(max(map(len, self.names)), 24) * 4.6 if self.names else _BOTTOM
        self.width, self.height, self.log = width, height + round(self.bottom - _BOTTOM), log
        self.x0, self.x1 = x if x[1] > x[0] else (x[0] - 1, x[0] + 1)
        low, high = y if y[1] > y[0] else (y[0] - abs(y[0]) / 10 - 0.1, y[0] + abs(y[0]) / 10 + 0.1)
        self.y0, self.y1 = low, high

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Pixels of a point."""
        across = (x - self.x0) / (self.x1 - self.x0)
        if self.log:
            up = math.log(max(y, 1e-300) / self.y0) / math.log(self.y1 / self.y0)
        else:
            up = (y - self.y0) / (self.y1 - self.y0)
        return (
            _LEFT + across * (self.width - _LEFT - _RIGHT),
            self.height - self.bottom - min(max(up, 0.0), 1.0) * (self.height - _TOP - self.bottom),
        )

    def drawn(self, inside: str, label: str, *, x_label: str = "", y_label: str = "", x_ticks: bool = True) -> str:
        """The plot with axes around what is inside; `label` says in words what it shows."""
        parts = [f'<svg class="plot" viewBox="0 0 {self.width} {self.height}" role="img" aria-label="{escape(label)}">']
        for tick in _log_ticks(self.y0, self.y1) if self.log else ticks(self.y0, self.y1):
            x, y = self.at(self.x0, tick)
            parts.append(f'<line class="grid" x1="{x:.1f}" x2="{self.width - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(
                f'<text class="tick" x="{x - 6:.1f}" y="{y + 3.5:.1f}" text-anchor="end">{_short(tick)}</text>'
            )
        base = self.height - self.bottom
        for i, name in enumerate(self.names):
            x, _ = self.at(i, self.y0)
            short = name if len(name) <= 24 else f"…{name[-23:]}"
            parts.append(
                f'<text class="tick" transform="translate({x + 4:.1f} {base + 12:.1f}) rotate(-45)" '
                f'text-anchor="end">{escape(short)}</text>'
            )
        # What goes across is counted: epochs, and steps of the optimizer.
        whole = [tick for tick in ticks(self.x0, self.x1, 8) if tick == round(tick)]
        for tick in whole if x_ticks and not self.names else []:
            x, _ = self.at(tick, self.y0)
            parts.append(f'<text class="tick" x="{x:.1f}" y="{base + 14}" text-anchor="middle">{tick:.6g}</text>')
        parts.append(f'<line class="axis" x1="{_LEFT}" x2="{self.width - _RIGHT}" y1="{base}" y2="{base}"/>')
        middle = (_LEFT + self.width - _RIGHT) / 2
        parts.append(
            f'<text class="label" x="{middle}" y="{self.height - 6}" text-anchor="middle">{escape(x_label)}</text>'
        )
        height = (_TOP + base) / 2
        parts.append(
            f'<text class="label" transform="translate(12 {height}) rotate(-90)" text-anchor="middle">'
            f"{escape(y_label)}</text>"
        )
        return "".join([*parts, inside, "</svg>"])


def lines(
    series: Sequence[Series],
    label: str,
    *,
    x_label: str,
    y_label: str,
    log: bool = False,
    wide: bool = False,
    names: Sequence[str] = (),
) -> str:
    """Lines over one axis; with few points each has a mark that names itself and its value.

    `names` are those of the x values.
    """
    points = [point for each in series for point in each.points]
    if not points:
        return ""
    low, high = min(y for _, y in points), max(y for _, y in points)
    if log:
        bounds = (min(low, 0.99) / 1.05, max(high, 1.01) * 1.05)
    else:
        margin = (high - low) * 0.06
        bounds = (low - margin, high + margin)
    xs = [x for x, _ in points]
    across = (-0.5, len(names) - 0.5) if names else (min(xs), max(xs))
    frame = Frame(across, bounds, log=log, names=names, **_WIDE if wide else {})
    parts = []
    for each in series:
        if not each.points:
            continue
        placed = [frame.at(*point) for point in each.points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        parts.append(
            f'<polyline class="line {each.colour}" points="{path}"><title>{escape(each.name)}</title></polyline>'
        )
        if each.colour != "faint" and len(placed) <= 120:
            for (x, y), (at, value) in zip(placed, each.points):
                where = names[round(at)] if names and 0 <= round(at) < len(names) else f"{at:g}"
                text = escape(f"{each.name}, {where}: {value:.4g}")
                parts.append(
                    f'<circle class="mark {each.colour}" cx="{x:.1f}" cy="{y:.1f}" r="2.4">'
                    f"<title>{text}</title></circle>"
                )
    drawn = frame.drawn("".join(parts), label, x_label=x_label, y_label=y_label)
    return _with_legend(drawn, [(each.name, each.colour) for each in series if each.colour != "faint" and each.points])


def bars(
    values: Sequence[tuple[str, float, str]],
    label: str,
    *,
    x_label: str,
    y_label: str,
    legend: Sequence[tuple[str, str]],
) -> str:
    """A bar for each (name, value, colour), along the network; `legend` names the colours."""
    if not values:
        return ""
    names = [name for name, _, _ in values]
    frame = Frame(
        (-0.5, len(values) - 0.5), (0.0, max(value for _, value, _ in values) * 1.05 or 1.0), names=names, **_WIDE
    )
    width = (frame.at(1, 0)[0] - frame.at(0, 0)[0]) * 0.78
    parts = []
    for i, (name, value, colour) in enumerate(values):
        x, y = frame.at(i, value)
        _, base = frame.at(i, 0)
        text = escape(f"{name}: {value:.4g}")
        parts.append(
            f'<rect class="bar {colour}" x="{x - width / 2:.1f}" y="{y:.1f}" width="{width:.1f}" '
            f'height="{max(base - y, 0.8):.1f}">'
            f"<title>{text}</title></rect>"
        )
    drawn = frame.drawn("".join(parts), label, x_label=x_label, y_label=y_label, x_ticks=False)
    return _with_legend(drawn, legend)


def histogram(values: Sequence[float], low: float, high: float, codes: Sequence[float], qn: int, label: str) -> str:
    """Values before quantization as an outline, codes after it as bars: shares of each.

    The values are in steps, from `low` to `high`; the codes are those from `qn` on.

    Heights are of the highest each; codes and values share the axis, which shows what occurs. Where the grid ends there
    is a line.
    """
    occur = [qn + i for i, share in enumerate(codes) if share > 0]
    if not values or not occur:
        return ""
    width, height, base = 260, 108, 92
    qp = qn + len(codes) - 1
    start, end = min(low, occur[0] - 0.6), max(high, occur[-1] + 0.6)

    def at(x: float) -> float:
        return 6 + (x - start) / (end - start) * (width - 12)

    parts = [f'<svg class="small" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}">']
    # So many codes that bars would be thinner than two pixels: neighbours together.
    group = max(1, math.ceil((occur[-1] - occur[0] + 1) / 100))
    firsts = range(occur[0], occur[-1] + 1, group)
    shares = [sum(codes[first - qn : first - qn + group]) for first in firsts]
    for first, share in zip(firsts, shares):
        if share <= 0:
            continue
        last = min(first + group - 1, qp)
        left, right, tall = at(first - 0.4), at(last + 0.4), max(share / max(shares) * (base - 8), 0.6)
        name = f"code {first}" if first == last else f"codes {first} to {last}"
        parts.append(
            f'<rect class="bar c1" x="{left:.1f}" y="{base - tall:.1f}" width="{max(right - left, 0.7):.1f}" '
            f'height="{tall:.1f}">'
            f"<title>{name}: {100 * share:.3g} %</title></rect>"
        )
    peak, size = max(values) or 1.0, (high - low) / len(values)
    outline = []
    for i, share in enumerate(values):
        y = base - share / peak * (base - 8)
        outline += [f"{at(low + i * size):.1f},{y:.1f}", f"{at(low + (i + 1) * size):.1f},{y:.1f}"]
    parts.append(f'<polyline class="line c2 thin" points="{" ".join(outline)}"/>')
    for bound in (qn - 0.5, qp + 0.5):
        if start < bound < end:
            parts.append(f'<line class="bound" x1="{at(bound):.1f}" x2="{at(bound):.1f}" y1="6" y2="{base}"/>')
    parts.append(f'<line class="axis" x1="6" x2="{width - 6}" y1="{base}" y2="{base}"/>')
    shown = sorted({occur[0], occur[-1], *([0] if occur[0] < 0 < occur[-1] else [])})
    if len(shown) == 3 and min(at(0) - at(shown[0]), at(shown[2]) - at(0)) < 22:  # else they cover each other
        shown = [shown[0], shown[2]]
    for code in shown:
        x = min(max(at(code), 12), width - 12)
        parts.append(f'<text class="tick" x="{x:.1f}" y="{base + 12}" text-anchor="middle">{code}</text>')
    return "".join([*parts, "</svg>"])


def _with_legend(drawn: str, entries: Sequence[tuple[str, str]]) -> str:
    if len(entries) < 2:
        return drawn
    items = "".join(f'<span><i class="swatch {colour}"></i>{escape(name)}</span>' for name, colour in entries)
    return f'{drawn}<p class="legend">{items}</p>'
