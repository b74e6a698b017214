"""What the terminal shows while the demo runs: a pure picture of a `Frame`. Fits 100 columns; columns never move."""

import io
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rich import box
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tierwise.demo.timeline import Point

WIDTH = 100
SPARKS = "▁▂▃▄▅▆▇█"
SPARK_COLUMNS = 60


@dataclass(frozen=True, slots=True)
class ArmFrame:
    """One arm now.

    Attributes:
        name: of the arm. title: in words.
        points: its tiers now. classes: the policy's classes, in order.
        cost: since the first request, measured.
        attainment: share of answered requests within their objective, measured; None before the first answer.
    """

    name: str
    title: str
    points: Sequence[Point]
    classes: Sequence[str]
    cost: float
    attainment: float | None


@dataclass(frozen=True, slots=True)
class Frame:
    """Everything that one picture shows.

    Attributes:
        elapsed_seconds, total_seconds: of the run.
        sent, answered, failed: requests of all arms so far.
        arms: in order; the first is Auto.
        rates: requests/s sent to each arm, one per second, oldest first.
        saving: how many times dearer the second arm has been so far; None before there is a bill.
        move: the last move in the operator's words; empty before the first. move_age_seconds: how long ago.
        currency: of all costs.
        phase: what goes on.
    """

    elapsed_seconds: float
    total_seconds: float
    sent: int
    answered: int
    failed: int
    arms: Sequence[ArmFrame]
    rates: Sequence[float] = ()
    saving: float | None = None
    move: str = ""
    move_age_seconds: float | None = None
    currency: str = "USD"
    phase: str = ""
    notes: Mapping[str, str] = field(default_factory=dict)


def clock(seconds: float) -> str:
    """Minutes and seconds."""
    whole = max(0, int(seconds))
    return f"{whole // 60}:{whole % 60:02d}"


def sparkline(values: Sequence[float], columns: int = SPARK_COLUMNS) -> str:
    """Bars of equal width; each is the mean of its part of the values."""
    if not values:
        return ""
    count = min(columns, len(values))
    edges = [round(index * len(values) / count) for index in range(count + 1)]
    means = [sum(values[low:high]) / (high - low) for low, high in itertools.pairwise(edges) if high > low]
    most = max(means)
    if most <= 0:
        return SPARKS[0] * len(means)
    return "".join(SPARKS[min(len(SPARKS) - 1, int(value / most * (len(SPARKS) - 1) + 0.5))] for value in means)


def picture(frame: Frame) -> RenderableType:
    """The whole picture."""
    head = Table.grid(expand=True, padding=(0, 1))
    head.add_column(width=13)
    head.add_column(ratio=1)
    head.add_column(justify="right", width=44)
    head.add_row(
        Text(f"{clock(frame.elapsed_seconds)} of {clock(frame.total_seconds)}", style="bold"),
        ProgressBar(total=max(frame.total_seconds, 1), completed=min(frame.elapsed_seconds, frame.total_seconds)),
        Text(f"{frame.sent:>6} sent {frame.answered:>6} answered {frame.failed:>4} failed"),
    )
    parts: list[RenderableType] = [head]
    parts += [_arm(arm, frame.currency) for arm in frame.arms]
    parts.append(_foot(frame))
    title = "Tierwise demo: one trace, two ways to serve it. Engines are simulated."
    return Panel(Group(*parts), title=title, box=box.ROUNDED, width=WIDTH, padding=(0, 1))


def _arm(arm: ArmFrame, currency: str) -> RenderableType:
    table = Table(box=box.SIMPLE_HEAD, expand=True, padding=(0, 1), show_edge=False, title=arm.title)
    table.title_justify = "left"
    table.title_style = "bold cyan"
    table.add_column("tier", width=10)
    table.add_column("replicas", justify="right", width=10)
    for name in arm.classes:
        table.add_column(f"{name} %", justify="right", width=max(9, len(name) + 2))
    table.add_column("requests/s", justify="right", width=10)
    table.add_column("TTFT p95", justify="right", width=9)
    table.add_column(f"{currency}/h", justify="right", width=9)
    for point in arm.points:
        table.add_row(*_cells(point, arm.classes))
    total = sum(point.cost_per_hour for point in arm.points)
    rate = sum(point.requests_per_second for point in arm.points)
    met = "" if arm.attainment is None else f"met {arm.attainment:.1%}"
    blanks = [""] * len(arm.classes)
    table.add_section()
    table.add_row("together", "", *blanks, f"{rate:.1f}", met, f"{total:.2f}", style="bold")
    return table


def _cells(point: Point, classes: Sequence[str]) -> list[RenderableType]:
    if point.replicas is None or point.ready is None:
        replicas = Text("per token", style="dim")
    else:
        style = "green" if point.ready == point.replicas else "yellow"
        replicas = Text(f"{point.ready} of {point.replicas}", style=style)
    ttft = "" if point.ttft_p95_seconds is None else f"{1000 * point.ttft_p95_seconds:.0f} ms"
    weights = [f"{point.weights[name]:.0f}" if name in point.weights else "" for name in classes]
    return [
        point.tier,
        replicas,
        *weights,
        f"{point.requests_per_second:.1f}",
        ttft,
        f"{point.cost_per_hour:.2f}",
    ]


def _foot(frame: Frame) -> RenderableType:
    grid = Table.grid(expand=True, padding=(0, 1))
    grid.add_column(width=13, style="dim")
    grid.add_column(ratio=1)
    rate = f"{sparkline(frame.rates)} {frame.rates[-1]:.0f}/s" if frame.rates else ""
    grid.add_row("load, each", Text(rate, style="blue", no_wrap=True))
    bills = "   ".join(f"{arm.name} {arm.cost:.4f} {frame.currency}" for arm in frame.arms)
    grid.add_row("bill so far", Text(bills, no_wrap=True))
    saving = "" if frame.saving is None else f"{frame.saving:.2f}x cheaper than all-large so far (measured)"
    grid.add_row("saving", Text(saving, style="bold green" if (frame.saving or 0) > 1 else "bold"))
    ago = "" if frame.move_age_seconds is None else f"{frame.move_age_seconds:.0f} s ago: "
    grid.add_row("last move", _lines(f"{ago}{frame.move}" if frame.move else "none yet", 3))
    if frame.phase:
        grid.add_row("", Text(frame.phase, style="dim", no_wrap=True))
    return grid


def _lines(text: str, count: int, width: int = WIDTH - 20) -> Text:
    """Wrapped at words to exactly `count` lines, so that nothing below jumps."""
    lines: list[str] = []
    line = ""
    for word in text.split():
        if line and len(line) + 1 + len(word) > width:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}" if line else word
    lines.append(line)
    if len(lines) > count:
        lines = [*lines[: count - 1], lines[count - 1][: width - 1] + "…"]
    return Text("\n".join([*lines, *[""] * (count - len(lines))]))


def line(frame: Frame) -> str:
    """One line for a log, where there is no terminal."""
    parts = [f"{clock(frame.elapsed_seconds)} {frame.answered}/{frame.sent} answered, {frame.failed} failed"]
    for arm in frame.arms:
        tiers = ", ".join(
            point.tier if point.replicas is None else f"{point.tier} {point.ready}/{point.replicas}"
            for point in arm.points
        )
        cost = sum(point.cost_per_hour for point in arm.points)
        parts.append(f"{arm.name}: {tiers}, {cost:.2f} {frame.currency}/h")
    if frame.saving is not None:
        parts.append(f"saving {frame.saving:.2f}x")
    return "; ".join(parts)


def answers_per_second(frame: Frame) -> float:
    """Over all arms."""
    return sum(point.requests_per_second for arm in frame.arms for point in arm.points)


def svg(frame: Frame) -> str:
    """The picture as an SVG image."""
    console = Console(width=WIDTH, record=True, file=io.StringIO())
    console.print(picture(frame))
    # Without the fonts that it would fetch from elsewhere: any monospaced one does.
    return re.sub(r"@font-face \{.*?\}\s*", "", console.export_svg(title="tierwise demo"), flags=re.DOTALL)
