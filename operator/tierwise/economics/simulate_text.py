"""A simulation's figures for a terminal."""

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from tierwise.simulate.agreement import Agreement

WIDTH = 110


def show(found: Mapping[str, Any]) -> None:
    """Print the figures as tables; every one says that it is simulated."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    money = found["currency"]
    given = found["inputs"]
    console.print(f"Simulated: {found['model']}.", highlight=False)
    rounds = f"planning every {given['roundSeconds']:g} s, seed {given['seed']}"
    console.print(f"{found['requests']['total']:,} requests in {found['hours']:.4g} h, {rounds}.", highlight=False)
    table = _table("Cost (simulated, at declared prices)", "way", f"{money}/h", "times", "within objective")
    mean = float(found["cost"]["perHour"])
    table.add_row("as simulated", f"{mean:,.2f}", "1.00", _percent(found["attainment"]["overall"]))
    for name, entry in found["allLarge"].items():
        if isinstance(entry, dict):
            hourly = float(entry["perHour"])
            factor = f"{hourly / mean:.2f}" if mean else ""
            table.add_row(_words(name), f"{hourly:,.2f}", factor, _percent(entry.get("attainment")))
    for name, words in (("boundPerHour", "offline bound"), ("replayPerHour", "offline, whole replicas")):
        value = (found.get("optimum") or {}).get(name)
        if value is not None:
            table.add_row(words, f"{float(value):,.2f}", f"{float(value) / mean:.2f}" if mean else "", "")
    console.print(table)
    table = _table(
        "Classes (shares simulated, scores declared)", "class", "requests", "within objective", "score", "floor",
        "all-large", "loss",
    )  # fmt: skip
    for name, entry in found["quality"]["classes"].items():
        loss = f"{entry['lossPercent']:.2f} %" if "lossPercent" in entry else ""
        scores = [f"{entry[key]:.3f}" if key in entry else "" for key in ("expected", "floor", "allLarge")]
        met = _percent(found["attainment"]["classes"].get(name))
        table.add_row(name, f"{found['requests']['classes'][name]:,}", met, *scores, loss)
    console.print(table)
    table = _table("Tiers", "tier", "cost", "changes of replicas", "engine")
    for name, cost in found["cost"]["tiers"].items():
        changes = found["changes"]["replicas"].get(name)
        table.add_row(name, f"{float(cost):,.2f}", "" if changes is None else str(changes), given["engines"][name])
    console.print(table)
    for line in _lines(found):
        console.print(line, highlight=False)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 or column == "engine" else "right", overflow="fold")
    return table


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f} %"


def _words(name: str) -> str:
    return {
        "perToken": "all-large, per token",
        "fixedForPeak": "all-large, replicas for its peak",
        "autoscaled": "all-large, HPA at 70 %",
        "perfectlyAutoscaled": "all-large, perfectly autoscaled",
    }.get(name, name)


def _lines(found: Mapping[str, Any]) -> list[str]:
    changes, steps = found["changes"], found["convergence"]
    moved = f"weights {changes['weightsPerHour']:g} and replicas {changes['replicasPerHour']:g} an hour"
    lines = [f"Changes: {moved}; {changes['reversalsPerDay']:g} reversals within 30 min a day."]
    if steps["steps"]:
        longest = steps["longestSeconds"]
        words = f"the longest took {longest:g} s to settle" if longest is not None else "none settled"
        late = f"{steps['notConverged']} did not before the next"
        lines.append(f"Steps of demand: {len(steps['steps'])}; {words}, {late}.")
    lines += [
        f"Budget {each['name']}: {float(each['spentInTheDearestPeriod']):,.2f} of {float(each['ceiling']):,.2f} in the "
        f"dearest {each['period'].lower()}, overspend {each['overspendPercent']:g} %."
        for each in found["budgets"]
    ]
    failed = sum(found["failedRequests"].values())
    if failed:
        lines.append(f"{failed:,} requests found no ready tier.")
    best = found.get("optimum")
    if best and "why" in best:
        lines.append(f"Offline optimum: {best['why']}.")
    return lines


def show_agreement(name: str, found: Agreement) -> None:
    """Print both simulators beside each other."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    table = _table(f"Fluid and event level, {name} (simulated)", "", "fluid", "event level", "difference")
    cost = f"{found.fluid_cost:,.2f}", f"{found.events_cost:,.2f}", f"{found.cost_percent:+.2f} %"
    table.add_row("cost", *cost)
    for each in found.requests:
        fluid, events = found.fluid_attainment[each], found.events_attainment[each]
        table.add_row(f"{each} within objective", f"{fluid:.2f} %", f"{events:.2f} %", f"{events - fluid:+.2f} points")
    table.add_row("all within objective", "", "", f"{found.attainment_points:+.2f} points")
    console.print(table)
