"""The report: one HTML file that needs nothing else, light and dark, of figures, plots and decisions. Pure.

It is well-formed XML too, so that tests can read it. The script only shows values under the pointer; without it the
page says the same in its tables.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from tierwise.simulate import charts
from tierwise.simulate.charts import Chart
from tierwise.simulate.style import SCRIPT, STYLE

MOST_DECISIONS = 300

NONE = "\u2013"
"""Where there is no figure."""


def kept(share: float | None) -> str:
    """Requests within the objective, a share of 1, in percent; never all of them where some were not."""
    if share is None:
        return NONE
    percent = 100 * share
    some_were_not = 99.9 <= percent < 100 - 1e-6  # sums of floats are not exact
    return f"{math.floor(100 * percent) / 100:.2f} %" if some_were_not else f"{percent:.1f} %"


@dataclass(frozen=True, slots=True)
class Figure:
    """A headline figure: what, how much in which unit, where it is from."""

    name: str
    value: str
    note: str = ""
    unit: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """A table; the first column names the row. `note` says where the figures are from; `prose`: cells are words."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    prose: bool = False


@dataclass(frozen=True, slots=True)
class Decision:
    """One decision: when (seconds), about what, and why, in the planner's words."""

    seconds: float
    what: str
    why: str


@dataclass(frozen=True, slots=True)
class Section:
    """Plots and tables under one heading."""

    title: str
    charts: Sequence[Chart] = ()
    tables: Sequence[Table] = ()
    text: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """All of it.

    Attributes:
        title: of the page. lead: what this is, and what kind its figures are of.
        figures: headline.
        sections: in order.
        decisions: what was moved, and why. span: seconds that the run lasts.
        notes: what a reader must know to judge the figures.
    """

    title: str
    lead: str
    figures: Sequence[Figure]
    sections: Sequence[Section]
    decisions: Sequence[Decision] = ()
    span: float = 3600.0
    notes: Sequence[str] = ()


def render(report: Report) -> str:
    """The page."""
    body = [
        f"<header><h1>{escape(report.title)}</h1><p>{escape(report.lead)}</p></header>",
        _figures(report.figures),
        *(_section(section, place) for place, section in enumerate(report.sections)),
        _decisions(report),
        _notes(report.notes),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
        '<meta name="color-scheme" content="light dark"/>'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; "
        "script-src 'unsafe-inline'\"/>"
        f"<title>{escape(report.title)}</title><style>{STYLE}</style></head><body><main>{''.join(body)}</main>"
        f"<script>//<![CDATA[\n{SCRIPT}\n//]]></script></body></html>\n"
    )


def _figures(figures: Sequence[Figure]) -> str:
    entries = "".join(
        f"<div><dt>{escape(each.name)}</dt><dd>{escape(each.value)}{_unit(each)}</dd>"
        + (f'<dd class="note">{escape(each.note)}</dd>' if each.note else "")
        + "</div>"
        for each in figures
    )
    return f'<dl class="figures">{entries}</dl>'


def _unit(figure: Figure) -> str:
    return f"<small>{escape(figure.unit)}</small>" if figure.unit else ""


def _section(section: Section, place: int) -> str:
    text = f"<p>{escape(section.text)}</p>" if section.text else ""
    plots = "".join(charts.render(chart, f"plot-{place}-{at}") for at, chart in enumerate(section.charts))
    tables = "".join(_table(table) for table in section.tables)
    return (
        f"<section><h2>{escape(section.title)}</h2>{text}"
        + (f'<div class="plots">{plots}</div>' if plots else "")
        + (f'<div class="tables">{tables}</div>' if tables else "")
        + "</section>"
    )


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in table.columns)
    rows = "".join(
        "<tr>"
        + "".join(
            f'<th scope="row">{escape(cell)}</th>' if at == 0 else f"<td>{escape(cell)}</td>"
            for at, cell in enumerate(row)
        )
        + "</tr>"
        for row in table.rows
    )
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    kind = ' class="prose"' if table.prose else ""
    return (
        f'<div class="wide"><table{kind}><caption>{escape(table.title)}</caption><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table>{note}</div>"
    )


def _decisions(report: Report) -> str:
    if not report.decisions:
        return ""
    shown = report.decisions[:MOST_DECISIONS]
    rows = "".join(
        f'<tr><th scope="row">{charts.clock(each.seconds, report.span)}</th><td>{escape(each.what)}</td>'
        f"<td>{escape(each.why)}</td></tr>"
        for each in shown
    )
    more = len(report.decisions) - len(shown)
    rest = f'<p class="note">{more} later ones are in the JSON output only.</p>' if more else ""
    count = len(report.decisions)
    return (
        f"<section><h2>Decisions</h2><p>{count} {'move' if count == 1 else 'moves'}, in the planner's own words.</p>"
        f'<div class="wide tall"><table class="prose"><thead><tr><th scope="col">{charts.axis_words(report.span)}</th>'
        f'<th scope="col">what</th><th scope="col">why</th></tr></thead><tbody>{rows}</tbody></table></div>{rest}'
        "</section>"
    )


def _notes(notes: Sequence[str]) -> str:
    if not notes:
        return ""
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f"<section><h2>What the figures rest on</h2><ul>{items}</ul></section>"
