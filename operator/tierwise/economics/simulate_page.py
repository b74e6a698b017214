"""A simulation as a report: plots over time and tables from the run, headline figures from its document."""

from collections.abc import Mapping, Sequence
from typing import Any

from tierwise.economics import figures
from tierwise.economics.simulation import Run
from tierwise.simulate.charts import Chart, Series
from tierwise.simulate.page import NONE, Figure, Report, Section, Table, kept

SMOOTH_SECONDS, SMOOTH_PARTS = 60.0, 300
"""Rates, cost and attainment are shown as means of so long, or of so many parts of a long run: a round of some seconds
holds too few requests."""
PROMISED = 95.0
"""Objectives are 95th percentiles."""
CLASS_COLOUR = 4
"""Classes have colours of their own, beside those of tiers."""


def report(run: Run, found: Mapping[str, Any]) -> Report:
    """The whole report.

    Args:
        run: that has been performed.
        found: its figures, as `figures.document` gives them.
    """
    per = max(1, round(max(SMOOTH_SECONDS, run.hours * 3600 / SMOOTH_PARTS) / run.round_seconds))
    times = [each.seconds for each in run.rounds]
    money = str(found["currency"])
    sections = [
        Section("Demand and replicas", (_demand(run, times, per), _replicas(run, times)), (_tiers(run, found, money),)),
        Section("Weights", tuple(_weights(run, name, times) for name in run.setting.classes)),
        Section(
            "Cost and promises",
            (_cost(run, found, times, per, money), _attainment(run, times, per)),
            (_classes(run, found), _ways(found, money)),
        ),
    ]
    if run.setting.budgets:
        sections.append(_budgets(run, times, money))
    return Report(
        title=f"Simulation of {', '.join(found['inputs']['policies'])} in {found['inputs']['namespace']}",
        lead=f"Every figure on this page is simulated: {found['model']}. The decisions are those of the operator's own "
        "planner, which sees signals only, never the replica model.",
        figures=_headline(found, money),
        sections=tuple(sections),
        decisions=tuple(run.decisions),
        span=run.hours * 3600,
        notes=_notes(found),
    )


def _headline(found: Mapping[str, Any], money: str) -> list[Figure]:
    long = f"{found['hours']:.4g} h" if found["hours"] >= 2 else f"{60 * found['hours']:.3g} min"
    total = f"{float(found['cost']['total']):,.2f} {money} in {long}"
    out = [Figure("Cost", f"{float(found['cost']['perHour']):,.2f}", total, f"{money}/h")]
    names = {
        "perToken": "all-large, per token",
        "fixedForPeak": "all-large, replicas for its peak",
        "autoscaled": "all-large, HPA",
    }
    out += [
        Figure("Saving factor", f"{found['savingFactor'][name]:.2f}\u00d7", f"against {words}")
        for name, words in names.items()
        if found["savingFactor"].get(name)
    ]
    met = found["attainment"]
    out.append(Figure("Within objective", kept(met["overall"]), f"worst class {kept(met['worst'])}"))
    loss = found["quality"]["lossPercent"]
    if loss is not None:
        worst = found["quality"]["worstLossPercent"]
        out.append(Figure("Quality loss", f"{loss:.2f} %", f"against all-large; worst class {worst:.2f} %"))
    for budget in found["budgets"]:
        out.append(Figure(f"Overspend, {budget['name']}", f"{budget['overspendPercent']:.1f} %", budget["period"]))
    return out


def _smooth(values: Sequence[float], per: int) -> list[float]:
    """Mean of the last `per` values."""
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    return [(sums[at + 1] - sums[max(0, at + 1 - per)]) / min(per, at + 1) for at in range(len(values))]


def _demand(run: Run, times: Sequence[float], per: int) -> Chart:
    series = [
        Series(name, _smooth([each.demand[name].requests / run.round_seconds for each in run.rounds], per), colour)
        for colour, name in enumerate(run.setting.classes, CLASS_COLOUR)
    ]
    return Chart("Demand", "requests/s", times, series)


def _colours(run: Run) -> dict[str, int]:
    return {tier.name: place for place, tier in enumerate(run.scenario.tiers)}


def _replicas(run: Run, times: Sequence[float]) -> Chart:
    colours = _colours(run)
    series = [
        Series(tier.name, [float(each.slot.tiers[tier.name].existing) for each in run.rounds], colours[tier.name])
        for tier in run.scenario.tiers
        if tier.params is not None
    ]
    return Chart("Replicas", "existing, starting ones included", times, series, kind="step")


def _weights(run: Run, name: str, times: Sequence[float]) -> Chart:
    colours = _colours(run)
    used = sorted({tier for each in run.rounds for tier in each.wanted.weights.get(name, {})}, key=colours.__getitem__)
    series = []
    for tier in used:
        values = [each.wanted.weights.get(name, {}).get(tier, 0.0) for each in run.rounds]
        if any(values):
            series.append(Series(tier, values, colours[tier]))
    return Chart(f"Weights of {name}", "% of its requests", times, series, kind="stack", high=100.0)


def _cost(run: Run, found: Mapping[str, Any], times: Sequence[float], per: int, money: str) -> Chart:
    hourly = [3600 / run.round_seconds * each.slot.cost for each in run.rounds]
    marks = []
    for name, words in (("fixedForPeak", "all-large for its peak"), ("perToken", "all-large, mean")):
        entry = found["allLarge"].get(name)
        if isinstance(entry, dict):
            marks.append((float(entry["perHour"]), words))
    series = [Series("as simulated", _smooth(hourly, per), 7)]
    return Chart(
        "Cost",
        f"{money}/h",
        times,
        series,
        marks=marks,
        note=f"Starting and idle replicas are paid for. {_means(run, per)}",
    )


def _attainment(run: Run, times: Sequence[float], per: int) -> Chart:
    series = []
    lowest = PROMISED
    for colour, name in enumerate(run.setting.classes, CLASS_COLOUR):
        met = _smooth(figures.kept(run, name), per)
        asked = _smooth([each.demand[name].requests for each in run.rounds], per)
        values = [100 * min(1.0, one / all_) if all_ > 0 else None for one, all_ in zip(met, asked, strict=True)]
        lowest = min([lowest, *(value for value in values if value is not None)])
        series.append(Series(name, values, colour))
    low = max(0.0, 10 * ((lowest - 1) // 10)) if lowest < 90 else 90.0
    marks = ((PROMISED, "95 %: what a 95th percentile promises"),)
    note = _means(run, per)
    return Chart("Within objective", "% of requests", times, series, low=low, high=100.0, marks=marks, note=note)


def _means(run: Run, per: int) -> str:
    seconds = per * run.round_seconds
    return f"Means of {seconds / 60:.3g} min." if seconds >= 60 else f"Means of {seconds:g} s."


def _tiers(run: Run, found: Mapping[str, Any], money: str) -> Table:
    rows = []
    for tier in run.scenario.tiers:
        inside = tier.params is not None
        counts = [each.slot.tiers[tier.name].existing for each in run.rounds]
        requests = sum(
            f.requests for each in run.rounds for (_, name), f in each.slot.flows.items() if name == tier.name
        )
        hours = sum(counts) * run.round_seconds / 3600
        rows.append(
            (
                tier.name,
                f"{requests:,.0f}",
                f"{hours:,.2f}" if inside else NONE,
                f"{min(counts, default=0)} to {max(counts, default=0)}" if inside else NONE,
                f"{float(found['cost']['tiers'][tier.name]):,.2f}",
            )
        )
    return Table(
        "Tiers", ("tier", "requests", "replica-hours", "replicas", money), rows, "Simulated, at declared prices."
    )


def _classes(run: Run, found: Mapping[str, Any]) -> Table:
    rows = []
    for name in run.setting.classes:
        quality = found["quality"]["classes"][name]
        rows.append(
            (
                name,
                f"{found['requests']['classes'][name]:,}",
                kept(found["attainment"]["classes"].get(name)),
                *(_score(quality.get(key)) for key in ("expected", "floor", "allLarge")),
                NONE if "lossPercent" not in quality else f"{quality['lossPercent']:.2f} %",
            )
        )
    columns = ("class", "requests", "within objective", "score", "floor", "all-large", "loss")
    return Table("Classes", columns, rows, "Scores are declared by the tiers; shares are simulated.")


def _score(value: float | None) -> str:
    return NONE if value is None else f"{value:.3f}"


def _ways(found: Mapping[str, Any], money: str) -> Table:
    mean = float(found["cost"]["perHour"])
    rows = [("as simulated", f"{mean:,.2f}", "1.00", kept(found["attainment"]["overall"]))]
    words = {
        "perToken": "all-large, per token",
        "fixedForPeak": "all-large, replicas for its peak",
        "autoscaled": "all-large, HPA at 70 %",
        "perfectlyAutoscaled": "all-large, perfectly autoscaled",
    }
    for name, text in words.items():
        entry = found["allLarge"].get(name)
        if isinstance(entry, dict):
            rows.append(_way(text, float(entry["perHour"]), mean, entry.get("attainment")))
    best = found.get("optimum") or {}
    for name, text in (("boundPerHour", "offline bound"), ("replayPerHour", "offline, whole replicas")):
        if name in best:
            rows.append(_way(text, float(best[name]), mean, None))
    note = "All simulated on the same trace. The offline rows know it beforehand."
    return Table("Beside other ways", ("way", f"{money}/h", "times", "within objective"), rows, note)


def _way(text: str, hourly: float, mean: float, attained: float | None) -> tuple[str, str, str, str]:
    return text, f"{hourly:,.2f}", f"{hourly / mean:.2f}" if mean > 0 else NONE, kept(attained)


def _budgets(run: Run, times: Sequence[float], money: str) -> Section:
    plots = []
    for key, budget in run.setting.budgets.items():
        known = figures.spending(run, budget)
        spent = Series("spent", [value for value, _ in known], 7)
        marks = ((float(budget.spec.ceiling), "ceiling"),)
        title = f"Budget {key.name}"
        plots.append(Chart(title, f"{money} in this {budget.spec.period.value.lower()}", times, [spent], marks=marks))
    return Section("Budgets", tuple(plots))


def _notes(found: Mapping[str, Any]) -> list[str]:
    given = found["inputs"]
    engines = [f"{tier}: {source}." for tier, source in given["engines"].items()]
    files = [
        f"{name}: {each['file']} ({each['form']}, scale {each['scale']:g})." for name, each in given["traces"].items()
    ]
    warm = f"a run of {given['warmUpSeconds'] / 60:g} minutes on the trace's first two minutes came before"
    rounds = f"The planner decides every {given['roundSeconds']:g} s; {warm}. Seed {given['seed']}."
    return [*engines, *files, rounds]
