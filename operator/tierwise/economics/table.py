"""The benchmark's table, and the checks against reference figures and goals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

WITHIN = 0.02
"""The offline bound must agree with the reference figures so closely."""

Results = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Goal:
    """Cost over replay at most, percent kept at least, of all and of the worst class, and saving at least."""

    cost: float
    kept: float
    worst: float | None = None
    saving: float | None = None


GOALS: Mapping[str, Goal] = {
    "week-hybrid-claude": Goal(1.05, 99, 98, 4.5),
    "week-hybrid-gpt5": Goal(1.05, 99, 98, 2.1),
    "week-incluster": Goal(1.05, 99, 98),
    "halfday-reasoning": Goal(1.20, 98),
    "halfhour-azure": Goal(1.15, 97),
    "halfhour-longctx": Goal(1.15, 97),
}
"""Of the published scenarios; docs/economics.md."""

_HEADER = (
    f"  {'':26}{'USD/h':>9}{'/bound':>8}{'/replay':>8}{'saving':>8}{'kept%':>8}{'worst%':>8}{'loss%':>8}{'worst%':>8}"
    f"{'repl/h':>8}{'wts/h':>7}{'rev/d':>7}"
)


@dataclass(frozen=True, slots=True)
class Check:
    """One statement about a scenario's figures, and whether it holds."""

    text: str
    holds: bool
    binding: bool = False


def lines(name: str, results: Results, reference: Mapping[str, Any]) -> list[str]:
    """One scenario's block.

    Args:
        name: of the scenario.
        results: kind of task -> what it gave.
        reference: the scenario's reference figures; empty where there are none.
    """
    offline = results.get("bound", {})
    bound, replay = offline.get("bound"), offline.get("replay")
    shown = {
        row: values
        for kind in ("bound", "baselines", "planner")
        for row, values in results.get(kind, {}).get("rows", {}).items()
    }
    large = next((values["usd_per_hour"] for row, values in shown.items() if row.startswith("all-large")), None)
    out = [name]
    plain = ("bound", "baselines", "planner")
    out += [f"  {kind}: {results[kind]['note']}" for kind in plain if "note" in results.get(kind, {})]
    if shown:
        out.append(_HEADER)
    if bound is not None:
        out.append(_figures("offline bound (LP)", {"usd_per_hour": bound}, bound, replay, large))
    if offline.get("replay_each_slot") is not None:
        cost = {"usd_per_hour": offline["replay_each_slot"]}
        out.append(_figures("replay, floor in each slot", cost, bound, replay, large))
    for row, values in shown.items():
        title = {"planner": "Tierwise", "replay": "perfect-knowledge replay"}.get(row, row)
        out.append(_figures(title, values, bound, replay, large))
    perfect = results.get("baselines", {}).get("all_large")
    if perfect is not None:
        out.append(_figures("all-large, perfect scaler", {"usd_per_hour": perfect}, bound, replay, large))
    out += _variants(results)
    out += [f"  {'ok  ' if check.holds else 'MISS'} {check.text}" for check in checks(name, results, reference)]
    return out


def _figures(
    title: str, values: Mapping[str, Any], bound: float | None, replay: float | None, large: float | None
) -> str:
    cost = values["usd_per_hour"]
    text = f"  {title:26}{cost:9.2f}{_ratio(cost, bound)}{_ratio(cost, replay)}{_ratio(large, cost, 2)}"
    for key, width, digits in (
        ("attainment", 8, 2),
        ("worst", 8, 2),
        ("loss", 8, 2),
        ("worst_loss", 8, 2),
        ("replica_changes", 8, 1),
        ("weight_changes", 7, 1),
        ("reversals", 7, 1),
    ):
        text += f"{values[key]:{width}.{digits}f}" if key in values else " " * width
    return text.rstrip()


def _ratio(above: float | None, below: float | None, digits: int = 3) -> str:
    return f"{above / below:8.{digits}f}" if above is not None and below else " " * 8


def _variants(results: Results) -> list[str]:
    out: list[str] = []
    for kind, result in results.items():
        rows = result.get("rows", {})
        if kind in {"bound", "baselines", "planner"} or (not rows and "up_seconds" not in result):
            if "note" in result and kind not in {"bound", "baselines", "planner"}:
                out.append(f"  {kind:18} does not apply: {result['note']}")
            continue
        if "up_seconds" in result:
            up, down = (_seconds(result[key]) for key in ("up_seconds", "down_seconds"))
            out.append(f"  {kind:18} demand doubled: settled after {up}; halved again: after {down}")
            continue
        values = rows[kind]
        text = f"  {kind:18}{values['usd_per_hour']:9.2f} USD/h"
        if "replay" in result:
            text += f" ({values['usd_per_hour'] / result['replay']:.3f} of its replay)"
        text += f", kept {values['attainment']:.2f}% (worst {values['worst']:.2f}%), loss {values['loss']:.2f}%"
        text += f" (worst {values['worst_loss']:.2f}%)"
        if "overspend" in result:
            least = result["least_loss"]
            text += (
                f"; {result['spent_share']:.1f}% of the ceiling spent ({result['counted_share']:.1f}% counted), "
                f"overspend {result['overspend']:.2f}%, denied {result['denied']:.2f}%; worst loss without it "
                f"{result['worst_loss_without']:.2f}%, least that fits "
                + (f"{least:.2f}%" if least is not None else "unknown: nothing fits")
            )
        if "hour_attainment" in result:
            text += (
                f"; without it {result['usd_per_hour_without']:.2f} USD/h and {result['attainment_without']:.2f}%"
                f"; in its hour {result['hour_attainment']:.2f}% of {result['hour_attainment_without']:.2f}%"
                f"; misrouted {result['misrouted']:.0f}"
            )
        out.append(text)
    return out


def _seconds(value: float | None) -> str:
    return "the phase's end" if value is None else f"{value:.0f} s"


def checks(name: str, results: Results, reference: Mapping[str, Any]) -> list[Check]:
    """What can be said of the figures: agreement with the reference, dominance, goals."""
    found = _agreement(results, reference)
    planner = results.get("planner", {}).get("rows", {}).get("planner")
    if planner is None:
        return found
    for other, values in results.get("baselines", {}).get("rows", {}).items():
        if other.startswith("all-large") or other == "static split of the HPA":
            continue
        holds = dominates(planner, values)
        found.append(Check(f"{'dominates' if holds else 'does not dominate'} {other}", holds))
    found += _promises(results, planner)
    goal, replay = GOALS.get(name), results.get("bound", {}).get("replay")
    if goal is None or replay is None:
        return found
    cost = planner["usd_per_hour"]
    found.append(Check(f"cost / replay {cost / replay:.3f}, goal {goal.cost:.2f}", cost / replay <= goal.cost))
    found.append(Check(f"kept {planner['attainment']:.2f}%, goal {goal.kept:g}%", planner["attainment"] >= goal.kept))
    if goal.worst is not None:
        found.append(Check(f"worst {planner['worst']:.2f}%, goal {goal.worst:g}%", planner["worst"] >= goal.worst))
    if goal.saving is not None:
        rows = results.get("baselines", {}).get("rows", {})
        large = next((v["usd_per_hour"] for row, v in rows.items() if row.startswith("all-large")), None)
        if large is not None:
            found.append(Check(f"saving {large / cost:.2f}, goal {goal.saving:g}", large / cost >= goal.saving))
    return found


LONG_HOURS = 24.0
REVERSALS_A_DAY = 24.0
LOSS_POINTS = 0.2
SETTLED_SECONDS = 600.0
FAULT_POINTS = 2.0
OVERSPEND_PERCENT = 2.0


def _promises(results: Results, planner: Mapping[str, Any]) -> list[Check]:
    """What holds of any scenario: floors, calm, quick to settle, faults and ceilings survived."""
    found: list[Check] = []
    allowed = results["planner"].get("floor_loss")
    if allowed is not None:
        text = f"worst class loses {planner['worst_loss']:.2f}%, the floor allows {allowed:.2f}%"
        found.append(Check(text, planner["worst_loss"] <= allowed + LOSS_POINTS))
    if results["planner"].get("hours", 0.0) >= LONG_HOURS:
        text = f"{planner['reversals']:.1f} reversals a day, goal {REVERSALS_A_DAY:g}"
        found.append(Check(text, planner["reversals"] <= REVERSALS_A_DAY))
    for kind, result in results.items():
        if "up_seconds" in result:
            times = [result["up_seconds"], result["down_seconds"]]
            text = f"settled after a step within {SETTLED_SECONDS:g} s: {' and '.join(map(_seconds, times))}"
            found.append(Check(text, all(time is not None and time <= SETTLED_SECONDS for time in times)))
        elif "hour_attainment" in result:
            lost = result["hour_attainment_without"] - result["hour_attainment"]
            text = f"{kind}: {max(0.0, lost):.2f} points less kept in its hour, goal {FAULT_POINTS:g}; none misrouted"
            found.append(Check(text, lost <= FAULT_POINTS and result["misrouted"] == 0))
        elif "overspend" in result:
            most = 0.0 if float(kind.removeprefix("ceiling-")) >= 1 else OVERSPEND_PERCENT
            text = f"{kind}: overspend {result['overspend']:.2f}%, denied {result['denied']:.2f}%"
            found.append(Check(text, result["overspend"] <= most + 1e-9))
    return found


def dominates(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """No dearer and keeps no less; at equal cost or equal attainment (to a thousandth) the other decides."""
    cheaper = one["usd_per_hour"] <= other["usd_per_hour"] * 1.001
    keeps = one["attainment"] >= other["attainment"] - 0.001
    return bool(cheaper and keeps)


_ONLINE = (
    ("baselines", "static split of the HPA", "static_peak"),
    ("baselines", "HPA 70%", "hpa_70"),
    ("baselines", "HPA 50%", "hpa_50"),
    ("bound", "replay", "clairvoyant_replay_burst_safe"),
)


def _agreement(results: Results, reference: Mapping[str, Any]) -> list[Check]:
    """Ours over the reference's."""
    pairs: list[tuple[str, float, float, bool]] = []
    for ours, theirs in (("bound", "lp_lower_1min_usd_h"), ("burst_safe", "burst_safe_lp_usd_h")):
        got = results.get("bound", {}).get(ours)
        if got is not None and reference.get(theirs):
            pairs.append((f"offline {ours}", got, reference[theirs], True))
    for kind, row, theirs in _ONLINE:
        got = results.get(kind, {}).get("rows", {}).get(row, {}).get("usd_per_hour")
        wanted = reference.get("online", {}).get(theirs, {}).get("usd_per_hour")
        if got is not None and wanted:
            pairs.append((row, got, wanted, kind == "bound"))
    rows = results.get("baselines", {}).get("rows", {})
    # In-cluster the reference takes its peak from another trace, of ten-minute means.
    if "all-large" in rows and reference.get("all_large_peak_usd_h"):
        pairs.append(("all-large", rows["all-large"]["usd_per_hour"], reference["all_large_peak_usd_h"], False))
    perfect = results.get("baselines", {}).get("all_large")
    if perfect and reference.get("all_large_auto_usd_h"):
        pairs.append(("all-large, perfect scaler", perfect, reference["all_large_auto_usd_h"], False))
    return [
        Check(f"{what} is {got / wanted:.4f} of the reference's", abs(got / wanted - 1) <= WITHIN, binding)
        for what, got, wanted, binding in pairs
    ]


def summary(results: Mapping[str, Results], references: Mapping[str, Mapping[str, Any]]) -> Sequence[str]:
    """Checks that do not hold and must."""
    return [
        f"{name}: {check.text}"
        for name, found in results.items()
        for check in checks(name, found, references.get(name, {}))
        if check.binding and not check.holds
    ]
