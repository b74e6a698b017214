"""The summary that a run ends with, for people: every figure says where it comes from."""

from collections.abc import Sequence

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from tierwise.demo import summary
from tierwise.demo.live import WIDTH
from tierwise.demo.summary import ArmOutcome, Outcome


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold", width=WIDTH)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", overflow="fold")
    return table


def _milliseconds(value: float | None) -> str:
    return "" if value is None else f"{1000 * value:.0f} ms"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def classes(arms: Sequence[ArmOutcome]) -> Table:
    """What clients got, by class."""
    table = _table(
        "What clients got (measured at the clients; scores and floors declared)",
        "arm, class",
        "requests",
        "met objective",
        "TTFT p95",
        "per token p95",
        "score",
        "floor",
    )
    for arm in arms:
        for entry in arm.classes:
            table.add_row(
                f"{arm.name}, {entry.name}",
                str(entry.requests),
                _share(entry.attainment),
                _milliseconds(entry.ttft_p95_seconds),
                _milliseconds(entry.inter_token_p95_seconds),
                "" if entry.score is None else f"{entry.score:.3f}",
                "" if entry.floor is None else f"{entry.floor:.3f}",
            )
    return table


def bills(arms: Sequence[ArmOutcome], currency: str) -> Table:
    """What it cost, by tier."""
    table = _table(
        f"What it cost (measured replica-hours and tokens, declared prices, {currency})",
        "arm, tier",
        "answers",
        "replica-h",
        "of it starting",
        "most",
        "tokens in",
        "tokens out",
        "cost",
    )
    for arm in arms:
        for tier in arm.bill.tiers:
            inside = tier.tier in arm.most_replicas
            table.add_row(
                f"{arm.name}, {tier.tier}",
                str(tier.requests),
                f"{tier.replica_seconds / 3600:.4f}" if inside else "",
                f"{tier.starting_seconds / 3600:.4f}" if inside else "",
                str(arm.most_replicas[tier.tier]) if inside else "",
                str(tier.prompt_tokens),
                str(tier.completion_tokens),
                f"{tier.cost:.4f}",
            )
        table.add_row(
            f"{arm.name}, together",
            str(arm.requests - arm.failed),
            f"{arm.bill.replica_hours:.4f}",
            "",
            "",
            "",
            "",
            f"{arm.bill.cost:.4f}",
            style="bold",
            end_section=True,
        )
    return table


def comparison(outcome: Outcome, currency: str) -> Table:
    """All ways to serve the trace, beside each other."""
    table = _table(
        "The comparison", "way", f"{currency}/h", "times Auto", "met objective", "worst class", "figures are"
    )
    arms = list(outcome.arms.values())
    for arm in arms:
        hour = float(arm.bill.cost_per_hour)
        factor = float(arm.bill.cost / arms[0].bill.cost) if arms[0].bill.cost else 0.0
        table.add_row(arm.name, f"{hour:.2f}", f"{factor:.2f}", _share(arm.attainment), _share(arm.worst), "measured")
    table.add_section()
    base = outcome.simulated[0].cost if outcome.simulated else 0.0
    for row in outcome.simulated:
        table.add_row(
            row.name,
            f"{row.cost_per_hour:.2f}",
            f"{row.cost / base:.2f}" if base else "",
            _share(row.attainment),
            _share(row.worst),
            "simulated",
        )
    return table


def checks(outcome: Outcome) -> RenderableType:
    """Every promise, held or not."""
    lines = Text()
    for check in outcome.checks:
        lines.append("  held      " if check.held else "  NOT HELD  ", style="green" if check.held else "bold red")
        lines.append(f"{check.name}: {check.text}\n")
    return lines


def render(outcome: Outcome, currency: str) -> RenderableType:
    """The whole summary."""
    arms = list(outcome.arms.values())
    parts: list[RenderableType] = [
        Text(
            "Every engine and provider in this run is a simulator (docs/simulator.md); all else is real.", style="dim"
        ),
        classes(arms),
        bills(arms, currency),
        comparison(outcome, currency),
    ]
    if len(arms) > 1:
        factor = summary.saving(arms[0].bill, arms[1].bill)
        if factor is not None:
            parts.append(Text(f"Auto was {factor:.2f} times cheaper than all-large (measured).", style="bold"))
    parts.append(Text("\nWhat was promised", style="bold"))
    parts.append(checks(outcome))
    timings = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in outcome.timings.items())
    facts = ", ".join(f"{name}: {value}" for name, value in outcome.facts.items())
    parts.append(Text(f"Times (measured): {timings}\n{facts}", style="dim"))
    return Group(*parts)


def show(outcome: Outcome, currency: str, console: Console) -> None:
    """Print it."""
    console.print(render(outcome, currency))
