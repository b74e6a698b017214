"""Plots as HTML with inline SVG: lines, steps and stacked areas over time. Pure; no script is needed to read them.

Shapes are SVG that stretches with the page; all text is HTML at percentages of the plot, so that it keeps its size on
a narrow window. The same values are in `data-` attributes, from which the page's script shows them under the pointer.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

MOST_POINTS = 400
"""More points than pixels say nothing more: longer series are drawn by the mean of so many parts."""
COLOURS = 8
LABEL_GAP = 0.085
"""Least distance of two direct labels, as a share of a plot's height: a line of text in 200 pixels."""
THIN = 0.04
"""An area that ends thinner than this, as a share of a plot's height, has no direct label but a legend."""
ROOM = 12.0
"""Percent of a plot's height that a line of words needs."""
LOWEST = 0.94
"""A direct label ends above the words of the time axis."""


@dataclass(frozen=True, slots=True)
class Series:
    """One line or area. `values` has one entry per moment, None where it is not known; `colour` 0 to 7."""

    name: str
    values: Sequence[float | None]
    colour: int = 0
    dashed: bool = False


@dataclass(frozen=True, slots=True)
class Chart:
    """One plot.

    Attributes:
        title: what is shown. unit: of the vertical axis. times: seconds, ascending, one per value.
        series: lines, or areas from the bottom up.
        kind: `line`, `step` or `stack`.
        low, high: ends of the vertical axis; None: from the values (and 0).
        marks: (value, words) of horizontal lines, such as an objective or a ceiling.
        note: where the figures are from, in one sentence.
    """

    title: str
    unit: str
    times: Sequence[float]
    series: Sequence[Series]
    kind: str = "line"
    low: float | None = 0.0
    high: float | None = None
    marks: Sequence[tuple[float, str]] = ()
    note: str = ""


def number(value: float | None) -> str:
    """A figure with three or four digits; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return "\u2013"
    size = abs(value)
    if size >= 1000:
        return f"{value:,.0f}"
    digits = 0 if size >= 100 or value == round(value) else 1 if size >= 10 else 2 if size >= 0.995 or not size else 3
    return f"{value:.{digits}f}"


def clock(seconds: float, span: float) -> str:
    """A moment of a run that lasts `span` seconds: minutes, hours, or days."""
    if span <= 3 * 3600:
        return f"{int(seconds // 60)}:{int(seconds % 60):02d}"
    if span <= 2 * 86400:
        return f"{int(seconds // 3600)}:{int(seconds % 3600 // 60):02d}"
    return f"day {int(seconds // 86400) + 1} {int(seconds % 86400 // 3600):02d}:{int(seconds % 3600 // 60):02d}"


def axis_words(span: float) -> str:
    """What the horizontal axis counts."""
    return "minutes:seconds" if span <= 3 * 3600 else "hours:minutes" if span <= 2 * 86400 else "day and hour"


def thinned(chart: Chart) -> Chart:
    """The same plot with at most `MOST_POINTS` moments: means of equal parts."""
    count = len(chart.times)
    if count <= MOST_POINTS:
        return chart
    edges = [round(part * count / MOST_POINTS) for part in range(MOST_POINTS + 1)]
    spans = list(pairwise(edges))
    series = [
        Series(each.name, [_mean(each.values[a:b]) for a, b in spans], each.colour, each.dashed)
        for each in chart.series
    ]
    times = [chart.times[a] for a, _ in spans]
    return Chart(
        chart.title, chart.unit, times, series, "line" if chart.kind == "step" else chart.kind,
        chart.low, chart.high, chart.marks, chart.note,
    )  # fmt: skip


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def ticks(low: float, high: float, wanted: int = 4) -> list[float]:
    """Round values that span [low, high]."""
    span = (high - low) or 1.0
    raw = span / wanted
    step = 10 ** math.floor(math.log10(raw))
    step *= next(factor for factor in (1, 2, 2.5, 5, 10) if factor * step >= raw - 1e-12)
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [place * step for place in range(first, last + 1)]


def moments(start: float, span: float, wanted: int = 6) -> list[float]:
    """Round moments within a run, from its start."""
    steps = (10, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400, 172800, 604800)
    step = next((each for each in steps if span / each <= wanted), steps[-1])
    return [start + place * step for place in range(int(span / step + 1e-9) + 1)]


def render(chart: Chart, name: str) -> str:
    """The plot with its legend, and its values as a table that can be opened.

    Args:
        chart: what to show.
        name: unique in the page, for references.
    """
    shown = thinned(chart)
    low, high, marks_at = _range(shown)
    span = (shown.times[-1] - shown.times[0]) or 1.0 if shown.times else 1.0
    start = shown.times[0] if shown.times else 0.0
    stacked = _stacked(shown) if shown.kind == "stack" else [list(each.values) for each in shown.series]
    paths = _paths(shown, stacked, start, span, low, high)
    grid = "".join(f'<line x1="0" x2="1000" y1="{y:.1f}" y2="{y:.1f}"/>' for y in (_y(t, low, high) for t in marks_at))
    lines = "".join(
        f'<line class="mark" x1="0" x2="1000" y1="{_y(value, low, high):.1f}" y2="{_y(value, low, high):.1f}"/>'
        for value, _ in shown.marks
    )
    described = f"{chart.title}, {chart.unit}: " + "; ".join(
        f"{each.name} from {number(_first(each.values))} to {number(_last(each.values))}" for each in shown.series
    )
    return (
        f'<figure class="chart" id="{name}"><figcaption><b>{escape(chart.title)}</b> '
        f'<span class="unit">{escape(chart.unit)}</span></figcaption>{_legend(shown)}'
        f'<div class="frame"><div class="ys" aria-hidden="true">{_y_labels(marks_at, low, high)}</div>'
        f'<div class="plot" tabindex="0" role="img" aria-label="{escape(described)}" '
        f"data-values='{_data(shown, start, span)}'>"
        f'<svg viewBox="0 0 1000 1000" preserveAspectRatio="none" aria-hidden="true"><g class="grid">{grid}</g>'
        f"{paths}{lines}</svg>{_mark_words(shown, low, high)}"
        '<i class="cursor" hidden="hidden"></i><div class="tip" hidden="hidden"></div></div>'
        f'<div class="ends" aria-hidden="true">{_ends(shown, stacked, low, high)}</div></div>'
        f'<div class="xs" aria-hidden="true">{_x_labels(start, span)}<span class="unit">{axis_words(span)}</span></div>'
        f"{_note(chart)}{_table(shown, span)}</figure>"
    )


def _note(chart: Chart) -> str:
    return f'<p class="note">{escape(chart.note)}</p>' if chart.note else ""


def _range(chart: Chart) -> tuple[float, float, list[float]]:
    if chart.kind == "stack":
        sums = [sum(value or 0.0 for value in column) for column in zip(*(s.values for s in chart.series), strict=True)]
        values = [0.0, *sums]
    else:
        values = [value for each in chart.series for value in each.values if value is not None]
        values += [value for value, _ in chart.marks]
    low = chart.low if chart.low is not None else min(values, default=0.0)
    high = chart.high if chart.high is not None else max(values, default=1.0)
    if high <= low:
        high = low + 1.0
    at = ticks(low, high)
    if chart.high is not None:
        at = [value for value in at if value <= high + 1e-9]
    if chart.low is not None:
        at = [value for value in at if value >= low - 1e-9]
    return min(low, at[0]), max(high, at[-1]), at


def _y(value: float, low: float, high: float) -> float:
    return 1000 * (1 - (min(max(value, low), high) - low) / (high - low))


def _stacked(chart: Chart) -> list[list[float | None]]:
    """Upper edges of the areas."""
    sums = [0.0] * len(chart.times)
    edges: list[list[float | None]] = []
    for each in chart.series:
        sums = [total + (value or 0.0) for total, value in zip(sums, each.values, strict=True)]
        edges.append(list(sums))
    return edges


def _paths(
    chart: Chart, edges: Sequence[Sequence[float | None]], start: float, span: float, low: float, high: float
) -> str:
    xs = [1000 * (t - start) / span for t in chart.times]
    out = []
    before: Sequence[float | None] = [low] * len(xs)
    for each, upper in zip(chart.series, edges, strict=True):
        colour = each.colour % COLOURS
        if chart.kind == "stack":
            points = [(x, _y(value or 0.0, low, high)) for x, value in zip(xs, upper, strict=True)]
            below = [(x, _y(value or 0.0, low, high)) for x, value in zip(xs, before, strict=True)]
            shape = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in _steps(points) + _steps(below)[::-1]) + "Z"
            out.append(f'<path class="area c{colour}" d="{shape}"/>')
            before = upper
            continue
        dash = " dashed" if each.dashed else ""
        for run in _runs(xs, upper):
            points = [(x, _y(value, low, high)) for x, value in run]
            drawn = _steps(points) if chart.kind == "step" else points
            shape = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in drawn)
            out.append(f'<path class="line c{colour}{dash}" d="{shape}"/>')
    return "".join(out)


def _runs(xs: Sequence[float], values: Sequence[float | None]) -> list[list[tuple[float, float]]]:
    """Pieces without a gap."""
    pieces: list[list[tuple[float, float]]] = [[]]
    for x, value in zip(xs, values, strict=True):
        if value is None:
            if pieces[-1]:
                pieces.append([])
        else:
            pieces[-1].append((x, value))
    return [piece for piece in pieces if piece]


def _steps(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """A value holds until the next one."""
    out: list[tuple[float, float]] = []
    for x, y in points:
        if out and out[-1][1] != y:
            out.append((x, out[-1][1]))
        out.append((x, y))
    return out


def _first(values: Sequence[float | None]) -> float | None:
    return next((value for value in values if value is not None), None)


def _last(values: Sequence[float | None]) -> float | None:
    return next((value for value in reversed(values) if value is not None), None)


def _legend(chart: Chart) -> str:
    if len(chart.series) < 2 and not (chart.series and chart.series[0].name):
        return ""
    entries = "".join(
        f'<li><i class="key c{each.colour % COLOURS}{" dashed" if each.dashed else ""}"></i>{escape(each.name)}</li>'
        for each in chart.series
    )
    ends = [_last(each.values) or 0.0 for each in chart.series]
    thin = chart.kind == "stack" and min(ends) < THIN * (sum(ends) or 1.0)
    return f'<ul class="legend{" always" if thin else ""}">{entries}</ul>'


def _y_labels(at: Sequence[float], low: float, high: float) -> str:
    digits = _digits(at)
    return "".join(f'<span style="top:{_y(t, low, high) / 10:.2f}%">{t:,.{digits}f}</span>' for t in at)


def _digits(at: Sequence[float]) -> int:
    return next((digits for digits in range(4) if all(abs(t - round(t, digits)) < 1e-9 for t in at)), 4)


def _x_labels(start: float, span: float) -> str:
    at = moments(start, span)
    return "".join(f'<span style="left:{100 * (t - start) / span:.2f}%">{clock(t - start, span)}</span>' for t in at)


def _mark_words(chart: Chart, low: float, high: float) -> str:
    """Words above their line, or below it where there is no room above."""
    return "".join(
        f'<span class="words{" below" if top < ROOM else ""}" style="top:{top:.2f}%">{escape(words)}</span>'
        for top, words in ((_y(value, low, high) / 10, words) for value, words in chart.marks)
    )


def _ends(chart: Chart, edges: Sequence[Sequence[float | None]], low: float, high: float) -> str:
    """Names at the right end of their lines, moved apart where they would lie on each other."""
    places: list[tuple[float, Series]] = []
    before: Sequence[float | None] = [low] * len(chart.times)
    for each, upper in zip(chart.series, edges, strict=True):
        last = _last(upper)
        if last is None:
            continue
        if chart.kind == "stack":
            below = _last(before) or 0.0
            before = upper
            if last - below < THIN * (high - low):
                continue
            last = (last + below) / 2
        places.append((_y(last, low, high) / 1000, each))
    places.sort(key=lambda place: place[0])
    shown: list[float] = []
    for top, _ in places:
        shown.append(max(top, shown[-1] + LABEL_GAP) if shown else top)
    over = shown[-1] - LOWEST if shown else 0.0
    if over > 0:
        shown = [max(LABEL_GAP * place, top - over) for place, top in enumerate(shown)]
    return "".join(
        f'<span class="t{each.colour % COLOURS}" style="top:{100 * top:.2f}%">{escape(each.name)}</span>'
        for top, (_, each) in zip(shown, places, strict=True)
    )


def _data(chart: Chart, start: float, span: float) -> str:
    body = {
        "x": [round((t - start) / span, 4) for t in chart.times],
        "t": [clock(t - start, span) for t in chart.times],
        "s": [
            {"n": each.name, "c": each.colour % COLOURS, "v": [number(value) for value in each.values]}
            for each in chart.series
        ],
    }
    return escape(json.dumps(body, separators=(",", ":"), ensure_ascii=False), quote=True)


def _table(chart: Chart, span: float, most: int = 25) -> str:
    count = len(chart.times)
    each = max(1, -(-count // most))
    head = "".join(f'<th scope="col">{escape(one.name)}</th>' for one in chart.series)
    rows = "".join(
        f'<tr><th scope="row">{clock(chart.times[at] - chart.times[0], span)}</th>'
        + "".join(f"<td>{number(one.values[at])}</td>" for one in chart.series)
        + "</tr>"
        for at in range(0, count, each)
    )
    words = "Values" if each == 1 else f"Values, every {each}th point"
    return (
        f'<details><summary>{words}</summary><div class="wide"><table><thead><tr><th scope="col">'
        f"{axis_words(span)}</th>{head}</tr></thead><tbody>{rows}</tbody></table></div></details>"
    )
