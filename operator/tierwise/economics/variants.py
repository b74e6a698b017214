"""What may go wrong: a model that is not the declared one, noise, faults, and a step of demand."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tierwise.api.model_tier import ModelTier
from tierwise.core.world import Key
from tierwise.economics.scenarios import NAMESPACE, Scenario
from tierwise.simulate.driver import PlannerLoop
from tierwise.simulate.fluid import Fluid
from tierwise.simulate.run import Event, Record, Runner
from tierwise.simulate.traces import SlotTrace

FAULT_SHARE = 0.4
"""Faults begin at this share of a run."""
OUTAGE_SECONDS = 600.0
SILENCE_SECONDS = 300.0
STEP = 2.0
STEP_PHASES_SECONDS = (1800.0, 5400.0, 5400.0)
"""Constant demand at its mean, `STEP` times that, and the mean again."""


class NotApplicableError(Exception):
    """A fault that a scenario can not have: there is nothing that could fail so."""


@dataclass(frozen=True, slots=True)
class Faulted:
    """A scenario with a fault: as it truly is, and what happens when."""

    scenario: Scenario
    events: tuple[Event, ...]


def misfit(scenario: Scenario, factor: float) -> Scenario:
    """Engines whose decode is `factor` times as slow as declared (a, b and g)."""
    tiers = []
    for tier in scenario.tiers:
        p = tier.params
        if p is not None:
            p = replace(p, a_ms=p.a_ms * factor, b_ms=p.b_ms * factor, g_ms=p.g_ms * factor)
        tiers.append(replace(tier, params=p))
    return replace(scenario, tiers=tuple(tiers))


def slow_start(scenario: Scenario, factor: float = 3.0) -> Scenario:
    """Replicas that take `factor` times as long to start as declared."""
    tiers = tuple(
        replace(tier, startup_seconds=tier.startup_seconds * factor) if tier.params is not None else tier
        for tier in scenario.tiers
    )
    if not any(tier.params is not None for tier in tiers):
        raise NotApplicableError("no tier has replicas")
    return replace(scenario, tiers=tiers)


def part(scenario: Scenario, first_hour: float, last_hour: float) -> Scenario:
    """Some hours of a scenario."""
    first, last = (
        max(0, min(scenario.slots, round(3600 * hour / scenario.slot_seconds))) for hour in (first_hour, last_hour)
    )
    return replace(scenario, traces={name: trace.part(first, last) for name, trace in scenario.traces.items()})


def stepped(scenario: Scenario) -> tuple[Scenario, tuple[int, ...]]:
    """Constant demand with a step up and one down again, and the slots at which a phase ends."""
    ends = tuple(np.cumsum([round(length / scenario.slot_seconds) for length in STEP_PHASES_SECONDS]).tolist())
    factors = np.ones(ends[-1])
    factors[ends[0] : ends[1]] = STEP
    traces = {}
    for name, trace in scenario.traces.items():
        calm = float((trace.peak_requests / np.maximum(trace.requests, 1e-9)).mean())
        requests = float(trace.requests.mean()) * factors
        traces[name] = SlotTrace(
            trace.slot_seconds,
            requests,
            float(trace.prompt_tokens.mean()) * factors,
            float(trace.output_tokens.mean()) * factors,
            np.minimum(requests, max(calm, 10 / trace.slot_seconds) * requests),
        )
    return replace(scenario, traces=traces), ends


def converged(record: Record, first: int, last: int) -> float | None:
    """Seconds from slot `first` until, to the end of the phase, cost stays within 10% of its plateau and 99% are kept.

    The plateau is the mean of the phase's last twenty minutes. None: not before the end.
    """
    cost = np.array(record.cost[first:last])
    requests = np.array([values[first:last] for values in record.requests.values()]).sum(axis=0)
    kept = np.array([values[first:last] for values in record.kept.values()]).sum(axis=0)
    plateau = cost[-max(1, round(1200 / record.seconds)) :].mean()
    good = (np.abs(cost / plateau - 1) <= 0.1) & (kept >= 0.99 * requests - 1e-9)
    if not good[-1]:
        return None
    bad = np.flatnonzero(~good)
    return float((bad[-1] + 1 if len(bad) else 0) * record.seconds)


def at_fault(scenario: Scenario) -> int:
    """The slot in which a fault begins."""
    return int(scenario.slots * FAULT_SHARE)


def _most_used(scenario: Scenario, base: Record, names: Sequence[str]) -> str:
    """Of these tiers the one that served most requests just before the fault."""
    at = max(0, at_fault(scenario) - 1)
    served = dict.fromkeys(names, 0.0)
    for name, shares in base.weights[at].items():
        total = sum(shares.values()) or 1.0
        for tier in names:
            served[tier] += base.requests[name][at] * shares.get(tier, 0.0) / total
    return max(names, key=lambda tier: served[tier])


def outage(scenario: Scenario, base: Record) -> Faulted:
    """The most used provider answers nobody for ten minutes."""
    providers = [tier.name for tier in scenario.tiers if tier.params is None]
    if not providers:
        raise NotApplicableError("no tier is a provider")
    name, at = _most_used(scenario, base, providers), at_fault(scenario)

    def fail(runner: Runner) -> None:
        runner.fluid.down.add(name)

    def recover(runner: Runner) -> None:
        runner.fluid.down.discard(name)

    end = at + round(OUTAGE_SECONDS / scenario.slot_seconds)
    return Faulted(scenario, (Event(at, fail), Event(end, recover)))


def lost_replica(scenario: Scenario, base: Record) -> Faulted:
    """One replica of the most used tier dies; its Deployment starts another."""
    inside = [tier.name for tier in scenario.tiers if tier.params is not None]
    if not inside:
        raise NotApplicableError("no tier has replicas")
    name = _most_used(scenario, base, inside)
    return Faulted(scenario, (Event(at_fault(scenario), lambda runner: _engine(runner).lose(name)),))


def dearer(scenario: Scenario, base: Record, factor: float = 2.0) -> Faulted:
    """The most used provider's prices double, and its ModelTier says so."""
    providers = [tier.name for tier in scenario.tiers if tier.params is None]
    if not providers:
        raise NotApplicableError("no tier is a provider")
    name = _most_used(scenario, base, providers)

    def happen(runner: Runner) -> None:
        fluid = _engine(runner)
        fluid.tiers = tuple(
            replace(tier, price_in=tier.price_in * factor, price_out=tier.price_out * factor)
            if tier.name == name
            else tier
            for tier in fluid.tiers
        )

        def price(spec: dict[str, Any]) -> None:
            shown = spec["external"]["price"]
            for field in ("inputPerMillionTokens", "outputPerMillionTokens"):
                shown[field] = f"{float(shown[field]) * factor:.6f}"

        _edit(runner, name, price)

    return Faulted(scenario, (Event(at_fault(scenario), happen),))


def silent(scenario: Scenario, _base: Record) -> Faulted:
    """Prometheus answers nothing for five minutes."""

    def fail(runner: Runner) -> None:
        runner.silent = True

    def recover(runner: Runner) -> None:
        runner.silent = False

    at = at_fault(scenario)
    end = at + round(SILENCE_SECONDS / scenario.slot_seconds)
    return Faulted(scenario, (Event(at, fail), Event(end, recover)))


def worse(scenario: Scenario, base: Record, points: float = 10.0) -> Faulted:
    """The most used tier but the reference loses ten points of quality in every class, and its ModelTier says so."""
    others = [tier.name for tier in scenario.tiers if tier.name != scenario.reference]
    if not others:
        raise NotApplicableError("there is no tier but the reference")
    name = _most_used(scenario, base, others)

    def happen(runner: Runner) -> None:
        fluid = _engine(runner)
        fluid.classes = tuple(replace(each, quality=_lower(each.quality, name, points)) for each in fluid.classes)

        def scores(spec: dict[str, Any]) -> None:
            for entry in spec["quality"]:
                entry["score"] = f"{max(0.0, float(entry['score']) - points / 100):.6f}"

        _edit(runner, name, scores)

    return Faulted(scenario, (Event(at_fault(scenario), happen),))


def _engine(runner: Runner) -> Fluid:
    """The engine that a fault changes."""
    if not isinstance(runner.fluid, Fluid):
        raise NotApplicableError("the engine is not the fluid one")
    return runner.fluid


def _lower(quality: Mapping[str, float], name: str, points: float) -> dict[str, float]:
    return {tier: max(0.0, score - points) if tier == name else score for tier, score in quality.items()}


def _edit(runner: Runner, name: str, change: Callable[[dict[str, Any]], None]) -> None:
    """What a user does: edit a ModelTier's spec."""
    loop = runner.controller
    if not isinstance(loop, PlannerLoop):
        return
    key = Key(NAMESPACE, name)
    body = loop.tiers[key].manifest()
    change(body["spec"])
    loop.tiers = {**loop.tiers, key: ModelTier.parse(body)}


def slow(scenario: Scenario, _base: Record) -> Faulted:
    """Replicas take three times as long to start as declared, all the time."""
    return Faulted(slow_start(scenario), ())


def confidential(scenario: Scenario, _base: Record) -> Faulted:
    """The first class may not leave the cluster, and all replicas of all tiers die at once: it has to wait for them."""
    if not any(tier.params is None for tier in scenario.tiers):
        raise NotApplicableError("no tier is a provider: nothing can leave the cluster")
    inside = [tier.name for tier in scenario.tiers if tier.params is not None]
    first = scenario.classes[0]
    if not any(name in first.quality for name in inside):
        raise NotApplicableError(f"{first.name} has no tier in the cluster")

    def happen(runner: Runner) -> None:
        fluid = _engine(runner)
        for name in inside:
            for _ in range(fluid.state[name].ready):
                fluid.lose(name)

    return Faulted(replace(scenario, sensitive=frozenset({first.name})), (Event(at_fault(scenario), happen),))


FAULTS: Mapping[str, Callable[[Scenario, Record], Faulted]] = {
    "provider-outage": outage,
    "replica-lost": lost_replica,
    "price-doubled": dearer,
    "metrics-gone": silent,
    "cold-start-x3": slow,
    "quality-10": worse,
    "confidential": confidential,
}
