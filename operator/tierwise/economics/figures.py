"""What a simulation came to, in figures. Every one of them is simulated; the document says by which model."""

import itertools
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, TypeAlias
from zoneinfo import ZoneInfo

from tierwise.api.namespace_budget import NamespaceBudget, Period
from tierwise.core.world import Key
from tierwise.economics import baselines, bound
from tierwise.economics.bound import BoundError
from tierwise.economics.loads import loads
from tierwise.economics.metrics import REVERSAL_SECONDS
from tierwise.economics.simulation import Run, Speed, strictest
from tierwise.economics.steps import Step, steps
from tierwise.simulate.driver import START

Document: TypeAlias = dict[str, Any]
HPA_TARGET = 0.7

MODELS: Mapping[Speed, str] = {
    Speed.EXACT: "continuous batching iteration by iteration, every request on its own (docs/simulator.md)",
    Speed.FAST: "the replica model in closed form, second by second, every request on its own (docs/simulator.md)",
    Speed.FLUID: "the replica model in closed form, minute by minute as a fluid (docs/simulator.md)",
}


def document(run: Run, *, optimum: bool = False) -> Document:
    """All figures.

    Args:
        run: that has been performed.
        optimum: add the offline bound, which takes longer than the simulation for a week.
    """
    hours = run.hours or 1.0
    cost = _cost(run)
    large = _all_large(run)
    return {
        "provenance": "simulated",
        "model": MODELS[run.speed],
        "inputs": _inputs(run),
        "currency": run.setting.currency,
        "hours": _round(run.hours),
        "requests": {"total": round(sum(_sums(run).values())), "classes": {n: round(v) for n, v in _sums(run).items()}},
        "cost": {
            "total": _money(sum(cost.values())),
            "perHour": _money(sum(cost.values()) / hours),
            "tiers": {name: _money(value) for name, value in cost.items()},
        },
        "allLarge": large,
        "savingFactor": {
            name: _round(float(entry["perHour"]) / (sum(cost.values()) / hours), 3) if sum(cost.values()) > 0 else None
            for name, entry in large.items()
            if isinstance(entry, dict) and entry.get("perHour") is not None
        },
        "attainment": _attainment(run),
        "quality": _quality(run),
        "deniedRequests": _denied(run),
        "failedRequests": dict(run.failed),
        "fallbackRequests": dict(run.short),
        "changes": _changes(run),
        "convergence": _convergence(run),
        "budgets": [_budget(run, key, budget) for key, budget in run.setting.budgets.items()],
        **({"optimum": _optimum(run, sum(cost.values()) / hours)} if optimum else {}),
        "decisions": [{"seconds": _round(d.seconds), "what": d.what, "why": d.why} for d in run.decisions],
    }


def _round(value: float, digits: int = 4) -> float:
    return round(value, digits)


def _money(value: float) -> str:
    return f"{value:.4f}"


def _inputs(run: Run) -> Document:
    return {
        "namespace": run.setting.namespace,
        "policies": [key.name for key in run.setting.policies],
        "traces": {
            name: {
                "file": each.path.name,
                "form": "per request" if each.single is not None else "per minute",
                "scale": run.options.scale.get(name, 1.0),
            }
            for name, each in run.given.items()
        },
        "engines": dict(run.setting.models),
        "startupSeconds": {tier.name: tier.startup_seconds for tier in run.scenario.tiers if tier.params is not None},
        "speed": str(run.speed),
        "roundSeconds": run.round_seconds,
        "warmUpSeconds": run.warm_seconds,
        "seed": run.options.seed,
        "prompt95th": {each.name: round(each.p95_prompt) for each in run.scenario.classes},
    }


def _sums(run: Run) -> dict[str, float]:
    return {name: sum(each.demand[name].requests for each in run.rounds) for name in run.setting.classes}


def _cost(run: Run) -> dict[str, float]:
    return {tier.name: sum(each.slot.tiers[tier.name].cost for each in run.rounds) for tier in run.scenario.tiers}


def _denied(run: Run) -> dict[str, int]:
    """Class -> requests that a budget kept from being answered; they are in no attainment."""
    counts = {
        name: round(sum(each.asked[name].requests - each.demand[name].requests for each in run.rounds))
        for name in run.setting.classes
    }
    return {name: count for name, count in counts.items() if count}


def kept(run: Run, name: str) -> list[float]:
    """Per round, requests of a class within their objective."""
    return [sum(flow.kept for (mine, _), flow in each.slot.flows.items() if mine == name) for each in run.rounds]


def _attainment(run: Run) -> Document:
    counts = _sums(run)
    met = {name: sum(kept(run, name)) for name in counts}
    total = sum(counts.values())
    classes = {name: _round(met[name] / count) for name, count in counts.items() if count}
    return {
        "overall": _round(sum(met.values()) / total) if total else None,
        "worst": min(classes.values(), default=None),
        "classes": classes,
        "counts": "requests within every latency objective of their class, of all that arrived",
    }


def _quality(run: Run) -> Document:
    """Mean declared score of what was served, by class; what is not declared is absent."""
    found: dict[str, Document] = {}
    for name in run.setting.classes:
        served: dict[str, float] = {}
        for each in run.rounds:
            for (mine, tier), flow in each.slot.flows.items():
                if mine == name:
                    served[tier] = served.get(tier, 0.0) + flow.requests
        total, scores = sum(served.values()), run.setting.quality(name)
        entry: Document = {
            "shares": {tier: _round(count / total) for tier, count in sorted(served.items())} if total else {}
        }
        if total and all(tier in scores for tier in served):
            entry["expected"] = _round(sum(count * scores[tier] for tier, count in served.items()) / total)
        reference = run.setting.references.get(name)
        if reference in scores:
            entry["allLarge"] = _round(scores[reference])
        if "expected" in entry and entry.get("allLarge"):
            entry["lossPoints"] = _round(100 * (entry["allLarge"] - entry["expected"]), 3)
            entry["lossPercent"] = _round(100 * (1 - entry["expected"] / entry["allLarge"]), 3)
        if name in run.setting.floors:
            entry["floor"] = _round(run.setting.floors[name])
        found[name] = entry
    counts = _sums(run)
    known = [name for name, entry in found.items() if "lossPercent" in entry]
    weight = sum(counts[name] for name in known)
    overall = sum(found[name]["lossPercent"] * counts[name] for name in known) / weight if weight else None
    return {
        "provenance": "simulated shares of declared scores",
        "lossPercent": None if overall is None else _round(overall, 3),
        "worstLossPercent": max((found[name]["lossPercent"] for name in known), default=None),
        "classes": found,
    }


def _all_large(run: Run) -> Document:
    """Everything on the policies' reference tier: what it would cost with replicas for its peak, and autoscaled."""
    references = run.setting.references
    if not references:
        return {"reference": None, "why": "no policy names a referenceTier"}
    have = loads(run.scenario)
    weights = {name: {tier: 1.0} for name, tier in references.items()}
    out: Document = {"reference": sorted(set(references.values()))}
    unknown = [tier for tier in set(references.values()) if have.limits.get(tier, 1.0) <= 0]
    if unknown or set(references) != set(run.setting.classes):
        return {**out, "why": "not every class has a reference tier that can keep its objective"}
    split = baselines.split_of(have, weights)
    if not any(split.peaks.values()):
        return {**out, "perToken": {"perHour": _money(split.tokens_usd_per_hour), "attainment": 1.0}}
    fixed, _ = baselines.fixed(run.scenario, split)
    scaled, _ = baselines.autoscaled(run.scenario, have, split, HPA_TARGET)
    used = {name: count for name, count in split.peaks.items() if count}
    return {
        **out,
        "fixedForPeak": {
            "perHour": _money(fixed.usd_per_hour),
            "attainment": _round(fixed.attainment / 100),
            "replicas": used,
        },
        "autoscaled": {
            "perHour": _money(scaled.usd_per_hour),
            "attainment": _round(scaled.attainment / 100),
            "target": f"HPA at {HPA_TARGET:.0%} of what a replica carries within the objective",
        },
        "perfectlyAutoscaled": {
            "perHour": _money(baselines.perfect(run.scenario, have, weights)),
            "target": "fractional replicas that follow every minute at once, with no start-up",
        },
    }


def _changes(run: Run) -> Document:
    hours = run.hours or 1.0
    weights = [each.wanted.weights for each in run.rounds]
    moved = {
        name: sum(a.get(name) != b.get(name) for a, b in itertools.pairwise(weights)) for name in run.setting.classes
    }
    replicas = {
        name: [each.wanted.replicas[name] for each in run.rounds]
        for name in (run.rounds[0].wanted.replicas if run.rounds else ())
    }
    changed = {name: _changed(values) for name, values in replicas.items()}
    back = sum(_reversals(changes, run.round_seconds) for changes in changed.values())
    return {
        "weights": moved,
        "replicas": {name: len(changes) for name, changes in changed.items()},
        "weightsPerHour": _round(sum(moved.values()) / hours, 3),
        "replicasPerHour": _round(sum(len(changes) for changes in changed.values()) / hours, 3),
        "reversals": back,
        "reversalsPerDay": _round(24 * back / hours, 3),
        "reversalSeconds": REVERSAL_SECONDS,
    }


def _changed(values: Sequence[int]) -> list[tuple[int, int]]:
    pairs = enumerate(itertools.pairwise(values), start=1)
    return [(at, after - before) for at, (before, after) in pairs if after != before]


def _reversals(changes: Sequence[tuple[int, int]], seconds: float) -> int:
    return sum(
        one * other < 0 and (after - before) * seconds <= REVERSAL_SECONDS
        for (before, one), (after, other) in itertools.pairwise(changes)
    )


def _convergence(run: Run) -> Document:
    names = list(run.setting.classes)
    met = [kept(run, name) for name in names]
    asked = [[each.demand[name].requests for name in names] for each in run.rounds]
    attained = [
        sum(series[at] for series in met) / total if (total := sum(counts)) else 1.0 for at, counts in enumerate(asked)
    ]
    # Work, not requests: a class of long answers weighs more.
    load = [
        sum(each.demand[name].requests * (0.3 * each.demand[name].prompt + each.demand[name].output) for name in names)
        for each in run.rounds
    ]
    found = steps(load, [each.slot.cost for each in run.rounds], attained, run.round_seconds)
    known = [step.seconds for step in found if step.seconds is not None]
    return {
        "definition": Step.__doc__.splitlines()[0] if Step.__doc__ else "",
        "steps": [
            {"atSeconds": step.at_seconds, "demandFactor": _round(step.factor, 2), "seconds": step.seconds}
            for step in found
        ],
        "longestSeconds": max(known, default=None),
        "notConverged": sum(step.seconds is None for step in found),
    }


def spending(run: Run, budget: NamespaceBudget) -> list[tuple[float, float]]:
    """By round: what a budget's period has spent at its end (it starts at 0 with each period), and the ceiling."""
    zone, ceiling = ZoneInfo(budget.spec.time_zone), float(budget.spec.ceiling)
    out: list[tuple[float, float]] = []
    spent, period = 0.0, None
    for each in run.rounds:
        local = (START + timedelta(seconds=each.seconds)).astimezone(zone)
        now = _period(budget.spec.period, local)
        spent = (0.0 if now != period else spent) + each.slot.cost
        period = now
        out.append((spent, ceiling))
    return out


def _period(period: Period, local: datetime) -> tuple[int, int]:
    if period is Period.DAY:
        return local.year, local.timetuple().tm_yday
    if period is Period.WEEK:
        year, week, _ = local.isocalendar()
        return year, week
    return local.year, local.month


def _budget(run: Run, key: Key, budget: NamespaceBudget) -> Document:
    known = spending(run, budget)
    most = max((spent for spent, _ in known), default=0.0)
    ceiling = float(budget.spec.ceiling)
    return {
        "name": key.name,
        "ceiling": str(budget.spec.ceiling),
        "period": str(budget.spec.period.value),
        "spentInTheDearestPeriod": _money(most),
        "overspendPercent": _round(max(0.0, 100 * (most / ceiling - 1)), 3),
        "ladder": _ladder(run, budget),
    }


def _ladder(run: Run, budget: NamespaceBudget) -> Document:
    """Share of the rounds in which each action held."""
    chosen = strictest(run.setting)
    if chosen is None or chosen.metadata.name != budget.metadata.name:
        return {"carriedOut": False, "why": "another budget is stricter; this one is only counted"}
    counts = {action: run.actions.count(action) for action in sorted(set(run.actions))}
    total = max(1, len(run.actions))
    return {"carriedOut": True, "shareOfTime": {action: _round(count / total) for action, count in counts.items()}}


def _optimum(run: Run, per_hour: float) -> Document:
    """The offline bound and its integer replay, with perfect knowledge of the trace."""
    try:
        found = bound.schedule(run.scenario)
        safe = bound.schedule(run.scenario, burst=True)
    except BoundError as error:
        return {"why": str(error)}
    replay = bound.replay_cost(run.scenario, safe)
    return {
        "boundPerHour": _money(found.usd_per_hour),
        "replayPerHour": _money(replay),
        "costOverBound": _round(per_hour / found.usd_per_hour, 3) if found.usd_per_hour else None,
        "costOverReplay": _round(per_hour / replay, 3) if replay else None,
        "meaning": "bound: linear programme with perfect knowledge and fractional replicas; "
        "replay: whole replicas that keep every objective in every busiest ten seconds",
    }
