"""The run as a report with plots over time: the same page that `tierwise simulate --html` writes. Pure."""

from collections.abc import Sequence

from tierwise.demo import objects
from tierwise.demo.recorder import Move
from tierwise.demo.records import Served
from tierwise.demo.summary import PROMISED, ArmOutcome, Outcome, saving
from tierwise.demo.terms import Terms
from tierwise.demo.timeline import WINDOW_SECONDS, Point
from tierwise.simulate.charts import Chart, Series
from tierwise.simulate.page import NONE, Decision, Figure, Report, Section, Table, kept

ATTAINED_SECONDS = 30.0
"""Share within the objective over so long: some seconds hold too few requests."""
CLASS_COLOUR = 4


def report(
    outcome: Outcome, points: Sequence[Point], served: Sequence[Served], moves: Sequence[Move], terms: Terms
) -> Report:
    """The whole report.

    Args:
        outcome: of the run.
        points: its timeline.
        served: every request.
        moves: the operator's decisions.
        terms: prices, objectives, floors.
    """
    times = [float(second) for second in sorted({point.second for point in points})]
    auto = [point for point in points if point.arm == objects.AUTO]
    sections = [
        Section(
            "Demand and replicas",
            (_demand(served, terms, times), _replicas(points, terms, times)),
            (_bills(outcome, terms),),
        ),
        Section(
            "Weights of auto",
            tuple(_weights(auto, terms, each.name, times) for each in terms.classes),
            text="Percent of each class's requests, as the policy's status shows them: the operator's word. "
            "What clients got is in the tables, measured.",
        ),
        Section(
            "Cost and promises",
            (
                _cost(points, outcome, times, terms),
                _spent(points, outcome, times, terms),
                _attained(served, terms, times),
                _attained_all(served, outcome, terms, times),
            ),
            (_classes(outcome), _ways(outcome, terms)),
        ),
        Section("What was promised", tables=(_checks(outcome),)),
    ]
    notes = [f"{name}: {value}." for name, value in outcome.facts.items()]
    notes += [f"{name}: {seconds:.1f} s, measured." for name, seconds in outcome.timings.items()]
    return Report(
        title="Tierwise demo: one policy, live, beside all-large",
        lead="Two set-ups got the same requests at the same moments through a real gateway, on a real control plane. "
        "Requests, latencies, replicas and tokens are measured at the clients and the API server; prices and scores "
        "are declared. Engines and the provider are simulators (docs/simulator.md).",
        figures=_headline(outcome, terms),
        sections=tuple(sections),
        decisions=tuple(Decision(max(0.0, move.at_seconds), "policy", move.text) for move in moves),
        span=times[-1] if times else 1.0,
        notes=tuple(notes),
    )


def _headline(outcome: Outcome, terms: Terms) -> list[Figure]:
    arms = list(outcome.arms.values())
    out = [
        Figure(f"Cost, {arm.name}", f"{arm.bill.cost_per_hour:,.2f}", "measured", f"{terms.currency}/h") for arm in arms
    ]
    factor = saving(arms[0].bill, arms[1].bill) if len(arms) > 1 else None
    if factor is not None:
        out.append(Figure("Saving factor", f"{factor:.2f}\u00d7", "against all-large with an HPA, measured"))
    out += [Figure(f"Within objective, {arm.name}", kept(arm.attainment), "measured") for arm in arms]
    out.append(Figure("Requests", f"{arms[0].requests:,}", f"to each set-up; {arms[0].failed} failed in auto"))
    return out


def _trailing(counts: Sequence[float], window: int) -> list[float]:
    """Sum of the last `window` entries."""
    sums = [0.0]
    for value in counts:
        sums.append(sums[-1] + value)
    return [sums[at + 1] - sums[max(0, at + 1 - window)] for at in range(len(counts))]


def _per_second(served: Sequence[Served], times: Sequence[float]) -> list[float]:
    counts = [0.0] * len(times)
    for record in served:
        place = int(record.sent_seconds)
        if 0 <= place < len(counts):
            counts[place] += 1
    return counts


def _demand(served: Sequence[Served], terms: Terms, times: Sequence[float]) -> Chart:
    width = int(WINDOW_SECONDS)
    series = []
    for colour, each in enumerate(terms.classes, CLASS_COLOUR):
        mine = [record for record in served if record.arm == objects.AUTO and record.class_name == each.name]
        sums = _trailing(_per_second(mine, times), width)
        rates = [total / min(width, at + 1) for at, total in enumerate(sums)]
        series.append(Series(each.name, rates, colour))
    return Chart("Demand", "requests/s to each set-up", times, series, note=f"Measured, means of {width} s.")


def _colours(terms: Terms) -> dict[str, int]:
    return {name: place for place, name in enumerate(terms.tiers)}


def _replicas(points: Sequence[Point], terms: Terms, times: Sequence[float]) -> Chart:
    colours = _colours(terms)
    series = []
    for arm, dashed in ((objects.AUTO, False), (objects.ALL_LARGE, True)):
        for name, tier in terms.tiers.items():
            seen = {point.second: point.replicas for point in points if (point.arm, point.tier) == (arm, name)}
            if tier.external or not any(seen.values()):
                continue
            values = [None if (count := seen.get(int(at))) is None else float(count) for at in times]
            label = objects.ALL_LARGE if dashed else name
            series.append(Series(label, values, colours[name], dashed))
    note = "Pods at the API server, starting and draining ones included; measured. Dashed: all-large."
    return Chart("Replicas", "Pods", times, series, kind="step", note=note)


def _weights(auto: Sequence[Point], terms: Terms, name: str, times: Sequence[float]) -> Chart:
    colours = _colours(terms)
    by_tier: dict[str, dict[int, float]] = {}
    for point in auto:
        if name in point.weights:
            by_tier.setdefault(point.tier, {})[point.second] = point.weights[name]
    series = [
        Series(tier, [seen.get(int(at), 0.0) for at in times], colours[tier])
        for tier, seen in sorted(by_tier.items(), key=lambda item: colours[item[0]])
        if any(seen.values())
    ]
    return Chart(f"Weights of {name}", "% of its requests", times, series, kind="stack", high=100.0)


def _hourly(points: Sequence[Point], arm: str) -> dict[int, float]:
    found: dict[int, float] = {}
    for point in points:
        if point.arm == arm:
            found[point.second] = found.get(point.second, 0.0) + point.cost_per_hour
    return found


def _arms(outcome: Outcome) -> list[tuple[str, int, bool]]:
    """Name, colour, dashed."""
    return [(name, 0 if name == objects.AUTO else 7, name != objects.AUTO) for name in outcome.arms]


def _cost(points: Sequence[Point], outcome: Outcome, times: Sequence[float], terms: Terms) -> Chart:
    series = []
    for name, colour, dashed in _arms(outcome):
        hourly = _hourly(points, name)
        series.append(Series(name, [hourly.get(int(at)) for at in times], colour, dashed))
    note = f"Pods that exist, and tokens of the last {WINDOW_SECONDS:g} s, at declared prices; measured."
    return Chart("Cost", f"{terms.currency}/h", times, series, kind="step", note=note)


def _spent(points: Sequence[Point], outcome: Outcome, times: Sequence[float], terms: Terms) -> Chart:
    series = []
    for name, colour, dashed in _arms(outcome):
        hourly = _hourly(points, name)
        spent, total = [], 0.0
        for at in times:
            total += hourly.get(int(at), 0.0) / 3600
            spent.append(total)
        series.append(Series(name, spent, colour, dashed))
    return Chart("Spent so far", terms.currency, times, series, note="Sum of the plot of cost; measured.")


def _attained(served: Sequence[Served], terms: Terms, times: Sequence[float]) -> Chart:
    series = []
    for colour, each in enumerate(terms.classes, CLASS_COLOUR):
        mine = [record for record in served if record.arm == objects.AUTO and record.class_name == each.name]
        met = [record for record in mine if each.objective.met(record)]
        series.append(Series(each.name, _shares(met, mine, times), colour))
    return _promise("Auto within objective, by class", times, series)


def _attained_all(served: Sequence[Served], outcome: Outcome, terms: Terms, times: Sequence[float]) -> Chart:
    objective = {each.name: each.objective for each in terms.classes}
    series = []
    for name, colour, dashed in _arms(outcome):
        mine = [record for record in served if record.arm == name and record.class_name in objective]
        met = [record for record in mine if objective[record.class_name].met(record)]
        series.append(Series(name, _shares(met, mine, times), colour, dashed))
    return _promise("Within objective, both set-ups", times, series)


def _shares(met: Sequence[Served], all_: Sequence[Served], times: Sequence[float]) -> list[float | None]:
    width = int(ATTAINED_SECONDS)
    good, every = (_trailing(_per_second(records, times), width) for records in (met, all_))
    return [100 * one / total if total else None for one, total in zip(good, every, strict=True)]


def _promise(title: str, times: Sequence[float], series: Sequence[Series]) -> Chart:
    known = [value for each in series for value in each.values if value is not None]
    lowest = min(known, default=100.0)
    low = 90.0 if lowest >= 90.0 else max(0.0, 10 * (lowest // 10))
    marks = ((100 * PROMISED, "95 %: what a 95th percentile promises"),)
    note = f"Share of the requests of the last {ATTAINED_SECONDS:g} s; measured at the clients."
    return Chart(title, "% of requests", times, series, low=low, high=100.0, marks=marks, note=note)


def _bills(outcome: Outcome, terms: Terms) -> Table:
    rows = []
    for arm in outcome.arms.values():
        for tier in arm.bill.tiers:
            inside = tier.tier in arm.most_replicas
            rows.append(
                (
                    f"{arm.name}, {tier.tier}",
                    f"{tier.requests:,}",
                    f"{tier.replica_seconds / 3600:.3f}" if inside else NONE,
                    str(arm.most_replicas[tier.tier]) if inside else NONE,
                    f"{tier.prompt_tokens + tier.completion_tokens:,}",
                    f"{tier.cost:.4f}",
                )
            )
    columns = ("set-up, tier", "answers", "replica-hours", "most", "tokens", terms.currency)
    return Table("What it cost", columns, rows, "Measured replica-hours and tokens, at declared prices.")


def _classes(outcome: Outcome) -> Table:
    rows = [
        (
            f"{arm.name}, {each.name}",
            f"{each.requests:,}",
            kept(each.attainment),
            NONE if each.ttft_p95_seconds is None else f"{1000 * each.ttft_p95_seconds:.0f} ms",
            NONE if each.inter_token_p95_seconds is None else f"{1000 * each.inter_token_p95_seconds:.0f} ms",
            NONE if each.score is None else f"{each.score:.3f}",
            NONE if each.floor is None else f"{each.floor:.3f}",
        )
        for arm in outcome.arms.values()
        for each in arm.classes
    ]
    columns = ("set-up, class", "requests", "within objective", "TTFT p95", "per token p95", "score", "floor")
    return Table("What clients got", columns, rows, "Measured; scores are measured shares of declared scores.")


def _ways(outcome: Outcome, terms: Terms) -> Table:
    arms = list(outcome.arms.values())
    rows = [_way(arm, arms[0]) for arm in arms]
    base = outcome.simulated[0].cost if outcome.simulated else 0.0
    rows += [
        (
            row.name,
            f"{row.cost_per_hour:.2f}",
            f"{row.cost / base:.2f}" if base else NONE,
            kept(row.attainment),
            kept(row.worst),
            "simulated",
        )
        for row in outcome.simulated
    ]
    columns = ("way", f"{terms.currency}/h", "times Auto", "within objective", "worst class", "figures are")
    return Table("Beside other ways", columns, rows, "Simulated rows: the same trace in the replica model.")


def _way(arm: ArmOutcome, first: ArmOutcome) -> tuple[str, ...]:
    times = f"{arm.bill.cost / first.bill.cost:.2f}" if first.bill.cost else NONE
    hourly = f"{arm.bill.cost_per_hour:.2f}"
    return arm.name, hourly, times, kept(arm.attainment), kept(arm.worst), "measured"


def _checks(outcome: Outcome) -> Table:
    rows = [(check.name, "held" if check.held else "NOT HELD", check.text) for check in outcome.checks]
    return Table("Checks", ("promise", "", "figures"), rows, prose=True)
