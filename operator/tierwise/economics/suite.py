"""All runs of the benchmark as tasks that processes can share: each takes names, and returns plain figures."""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from tierwise.economics import baselines, bench, bound, ceilings, metrics, scenarios, variants
from tierwise.economics.bench import Options
from tierwise.economics.bound import BoundError
from tierwise.economics.loads import loads
from tierwise.economics.metrics import Score
from tierwise.economics.scenarios import Scenario
from tierwise.simulate.run import Record

NOISE = 0.08
MISFITS = (0.7, 1.4)
DAY = (24.0, 48.0)
"""Hours of a long scenario on which variants are run."""

PLAIN = ("bound", "baselines", "planner")
CEILINGS = (1.10, 0.85)
VARIANTS = ("day", "noise", *(f"misfit-{factor:g}" for factor in MISFITS), "step")
CAPPED = tuple(f"ceiling-{factor:.2f}" for factor in CEILINGS)


@dataclass(frozen=True, slots=True)
class Source:
    """Where scenarios are: file, data, hours; and the planner's options."""

    path: Path
    data: Path
    hours: tuple[float, float] | None = None
    options: Options = field(default_factory=Options)


@dataclass(frozen=True, slots=True)
class Task:
    """One run: of which scenario, and what."""

    scenario: str
    kind: str


@lru_cache(maxsize=4)
def _scenario(source: Source, name: str) -> Scenario:
    return scenarios.load(source.path, source.data, (name,), source.hours)[0]


@lru_cache(maxsize=4)
def _base(source: Source, name: str) -> tuple[Score, Record]:
    """The planner on the variants' day, without any of them."""
    return bench.planner_run(day_of(_scenario(source, name)), source.options)


def day_of(scenario: Scenario) -> Scenario:
    """The day of a long scenario, the whole of a shorter one."""
    if scenario.hours >= DAY[1]:
        return variants.part(scenario, *DAY)
    return variants.part(scenario, 0, DAY[1] - DAY[0])


def perform(source: Source, task: Task) -> dict[str, Any]:
    """One task's figures: `rows` (name -> row) and, where there are some, further keys."""
    began = time.perf_counter()
    try:
        made = _made(source, task)
    except BoundError as why:
        made = {"note": str(why)}
    return {**made, "scenario": task.scenario, "kind": task.kind, "seconds": time.perf_counter() - began}


def _made(source: Source, task: Task) -> dict[str, Any]:
    scenario = _scenario(source, task.scenario)
    made: dict[str, Any]
    if scenario.slots == 0:
        made = {"note": "no slot of demand"}
    elif task.kind == "bound":
        made = _bound(scenario)
    elif task.kind == "baselines":
        made = _baselines(scenario)
    elif task.kind == "planner":
        made = {
            "rows": {"planner": row(bench.planner_run(scenario, source.options)[0])},
            "floor_loss": _floor_loss(scenario),
            "hours": scenario.hours,
        }
    elif task.kind == "step":
        made = _step(scenario, source.options)
    elif task.kind in CAPPED:
        made = _capped(source, task)
    elif task.kind in variants.FAULTS:
        made = _fault(source, task)
    else:
        made = _variant(source, task)
    return made


def _floor_loss(scenario: Scenario) -> float:
    """Percent that the floors allow the worst class to lose."""
    lost = [
        1 - scenario.floors[each.name] / each.quality[scenario.reference]
        for each in scenario.classes
        if each.quality[scenario.reference] > 0
    ]
    return 100 * max(lost, default=0.0)


def row(score: Score) -> dict[str, Any]:
    """A score as a row."""
    return asdict(score)


def _bound(scenario: Scenario) -> dict[str, Any]:
    have = loads(scenario)
    mean = bound.schedule(scenario, known=have)
    burst = bound.schedule(scenario, known=have, burst=True)
    replay = row(bench.replay_run(scenario, burst)) | {"usd_per_hour": bound.replay_cost(scenario, burst)}
    return {
        "rows": {"replay": replay},
        "bound": mean.usd_per_hour,
        "burst_safe": burst.usd_per_hour,
        "replay": replay["usd_per_hour"],
        "replay_each_slot": bound.replay_cost(
            scenario, bound.schedule(scenario, known=have, burst=True, each_slot=True)
        ),
        "limits": dict(have.limits),
    }


def _baselines(scenario: Scenario) -> dict[str, Any]:
    have = loads(scenario)
    rows: dict[str, dict[str, Any]] = {}
    large = baselines.split_of(have, baselines.all_large(scenario))
    inside = scenario.reference in have.limits
    rows["all-large, peak" if inside else "all-large"] = row(baselines.fixed(scenario, _only(large))[0])
    if inside:
        rows["all-large, HPA 70%"] = row(baselines.autoscaled(scenario, have, large, 0.7)[0])
    best = baselines.best_split(scenario, have)
    elastic = baselines.best_split(scenario, have, 0.7)
    rows["best static split"] = row(baselines.fixed(scenario, best)[0])
    rows["static split of the HPA"] = row(baselines.fixed(scenario, elastic)[0])
    rows["HPA 70%"] = row(baselines.autoscaled(scenario, have, elastic, 0.7)[0])
    rows["HPA 50%"] = row(baselines.autoscaled(scenario, have, elastic, 0.5)[0])
    return {
        "rows": rows,
        "all_large": baselines.perfect(scenario, have, large.weights) if inside else None,
        "weights": {"best static split": best.weights, "HPA": elastic.weights},
    }


def _only(split: baselines.Split) -> baselines.Split:
    """No replicas of tiers that nothing goes to."""
    used = {tier for shares in split.weights.values() for tier, share in shares.items() if share > 0}
    return replace(split, peaks={name: count if name in used else 0 for name, count in split.peaks.items()})


def _variant(source: Source, task: Task) -> dict[str, Any]:
    day, options, kind = day_of(_scenario(source, task.scenario)), source.options, task.kind
    if kind == "noise":
        options = replace(options, noise=NOISE)
    elif kind.startswith("misfit-"):
        day = variants.misfit(day, float(kind.removeprefix("misfit-")))
    score = _base(source, task.scenario)[0] if kind == "day" else bench.planner_run(day, options)[0]
    burst = bound.schedule(day, burst=True)
    return {"rows": {kind: row(score)}, "replay": bound.replay_cost(day, burst)}


def _fault(source: Source, task: Task) -> dict[str, Any]:
    day, kind = day_of(_scenario(source, task.scenario)), task.kind
    _, base = _base(source, task.scenario)
    try:
        made = variants.FAULTS[kind](day, base)
    except variants.NotApplicableError as why:
        return {"note": str(why)}
    score, record = bench.planner_run(made.scenario, source.options, made.events)
    at = variants.at_fault(day)
    hour = at, min(day.slots, at + round(3600 / day.slot_seconds))
    return {
        "rows": {kind: row(score)},
        "hour_attainment": metrics.attainment(record, *hour),
        "hour_attainment_without": metrics.attainment(base, *hour),
        "attainment_without": metrics.attainment(base, 0, day.slots),
        "usd_per_hour_without": sum(base.cost) / base.hours,
        "misrouted": metrics.misrouted(made.scenario, record),
    }


def _capped(source: Source, task: Task) -> dict[str, Any]:
    day, kind = day_of(_scenario(source, task.scenario)), task.kind
    if day.hours > ceilings.MOST_HOURS:
        return {"note": f"{day.hours:.0f} hours are no day: name a part of them"}
    without, base = _base(source, task.scenario)
    found = ceilings.capped_run(day, sum(base.cost) * float(kind.removeprefix("ceiling-")), source.options)
    return {
        "rows": {kind: row(found.score)},
        "overspend": found.overspend,
        "spent_share": 100 * found.spent / found.ceiling,
        "counted_share": 100 * found.counted / found.ceiling,
        "denied": found.denied,
        "least_loss": found.least_loss,
        "worst_loss_without": without.worst_loss,
        "actions": found.actions,
    }


def _step(scenario: Scenario, options: Options) -> dict[str, Any]:
    stepped, ends = variants.stepped(scenario)
    _, record = bench.planner_run(stepped, options)
    return {
        "up_seconds": variants.converged(record, ends[0], ends[1]),
        "down_seconds": variants.converged(record, ends[1], ends[2]),
    }


def run_all(source: Source, tasks: Sequence[Task], processes: int) -> Iterator[dict[str, Any]]:
    """Results as they come, in any order."""
    if processes < 2:
        for task in tasks:
            yield perform(source, task)
        return
    with ProcessPoolExecutor(max_workers=processes) as pool:
        waiting = [pool.submit(perform, source, task) for task in tasks]
        for done in as_completed(waiting):
            yield done.result()
