"""A scenario as arrays: what each class asks of each tier in each slot, in replicas or in money."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tierwise.economics.scenarios import Scenario
from tierwise.sim.replica import Mix, capacity
from tierwise.simulate.fluid import FluidTier, work_seconds
from tierwise.simulate.traces import BURST_SECONDS, Floats

Pair = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Loads:
    """One entry per slot in every array.

    Attributes:
        limits: replica tier -> largest utilisation at which every class that may use it keeps its objective.
        mean, burst: (class, replica tier) -> replicas that all of the class's requests would fill to the limit, at the
            slot's mean rate and in its busiest ten seconds.
        money: (class, provider) -> USD/h that all of the class's requests would cost.
        weight: class -> requests, as shares of the class's whole.
        slots, slot_seconds: of the scenario.
    """

    limits: Mapping[str, float]
    mean: Mapping[Pair, Floats]
    burst: Mapping[Pair, Floats]
    money: Mapping[Pair, Floats]
    weight: Mapping[str, Floats]
    slots: int
    slot_seconds: float


def limit_of(scenario: Scenario, tier: FluidTier) -> float:
    """Largest utilisation of a tier at which all of its classes keep their objective at their mean request."""
    if tier.params is None:
        return 1.0
    found = []
    for each in scenario.classes:
        trace = scenario.traces[each.name]
        count = float(trace.requests.sum())
        if tier.name not in each.quality:
            continue
        # A class without a request binds nothing, and has a limit all the same.
        prompt = float(trace.prompt_tokens.sum()) / count if count > 0 else 1.0
        output = float(trace.output_tokens.sum()) / count if count > 0 else 1.0
        output *= each.output_factor.get(tier.name, 1.0)
        known = capacity(tier.params, Mix.of(prompt, output), each.objective, max(prompt, each.p95_prompt))
        found.append(known.utilisation)
    return min(found, default=0.0)


def loads(scenario: Scenario) -> Loads:
    """The arrays of a scenario."""
    limits = {tier.name: limit_of(scenario, tier) for tier in scenario.tiers if tier.params is not None}
    mean: dict[Pair, Floats] = {}
    burst: dict[Pair, Floats] = {}
    money: dict[Pair, Floats] = {}
    weight: dict[str, Floats] = {}
    seconds = scenario.slot_seconds
    for each in scenario.classes:
        trace = scenario.traces[each.name]
        count = np.maximum(trace.requests, 1e-9)
        rate = trace.requests / seconds
        peak = np.maximum(trace.peak_requests / min(BURST_SECONDS, seconds), rate)
        prompt = trace.prompt_tokens / count
        weight[each.name] = trace.requests / max(float(trace.requests.sum()), 1e-9)
        for tier in scenario.tiers:
            if tier.name not in each.quality:
                continue
            output = trace.output_tokens / count * each.output_factor.get(tier.name, 1.0)
            pair = each.name, tier.name
            if tier.params is None:
                money[pair] = 3600 * rate * (prompt * tier.price_in + output * tier.price_out) / 1e6
                continue
            work = work_seconds(tier.params, prompt, output)
            limit = limits[tier.name]
            if limit > 0:
                mean[pair], burst[pair] = rate * work / limit, peak * work / limit
    return Loads(limits, mean, burst, money, weight, scenario.slots, seconds)
