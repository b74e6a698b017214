"""What Prometheus would say of one slot: rates, token means, queues, latencies; never a simulator's parameter."""

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from tierwise.core.signals import (
    ClassKey,
    ClassSignals,
    CounterReading,
    Missing,
    Reading,
    Signal,
    Signals,
    TierKey,
    TierSignals,
)
from tierwise.simulate.engine import Engine
from tierwise.simulate.fluid import Demand, Flow, Slot
from tierwise.simulate.traces import BURST_SECONDS

AGE_SECONDS = 5.0
"""Age of the newest sample: one scrape."""

IDLE = Missing("no sample in the window")
PERCENTILE = 0.95


@dataclass(slots=True)
class Observer:
    """Makes signals of slots.

    Attributes:
        namespace, policy: of the keys.
        noise: standard deviation of the relative error of every value; 0 for none.
        seed: of the noise.
        keys: class of the engine -> (namespace, policy, class), where they are of several policies.
    """

    namespace: str
    policy: str
    noise: float = 0.0
    seed: int = 0
    keys: Mapping[str, ClassKey] = field(default_factory=dict)
    _source: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self._source = random.Random(f"tierwise-noise:{self.seed}")  # noqa: S311 - repeatable error, no secret

    def signals(self, now: datetime, fluid: Engine, slot: Slot, demand: Mapping[str, Demand]) -> Signals:
        """All of one slot, asked for at its end."""
        tiers: dict[TierKey, TierSignals] = {
            (self.namespace, tier.name): (
                self._engine(fluid, slot, tier.name)
                if tier.params is not None
                else self._provider(slot, tier.name, down=tier.name in fluid.down)
            )
            for tier in fluid.tiers
        }
        classes: dict[ClassKey, dict[str, ClassSignals]] = {}
        for each in fluid.classes:
            flows = {tier: flow for (name, tier), flow in slot.flows.items() if name == each.name}
            # A tier that passed everything on took nothing, but that is where requests arrived.
            flows |= {tier: Flow() for name, tier, _ in slot.passed if name == each.name and tier not in flows}
            shown = {tier: self._class(slot, each.name, tier, flow, demand) for tier, flow in flows.items()}
            classes[self.keys.get(each.name, (self.namespace, self.policy, each.name))] = shown
        return Signals(
            time=now,
            tiers=tiers,
            classes=classes,
            usage={
                (self.namespace, tier.name): _usage(slot, tier.name, now, down=tier.name in fluid.down)
                for tier in fluid.tiers
                if tier.params is None
            },
            window_seconds=slot.seconds,
            gateways_up=Reading(2.0, AGE_SECONDS),
        )

    def _class(self, slot: Slot, name: str, tier: str, flow: Flow, demand: Mapping[str, Demand]) -> ClassSignals:
        """One class on one tier: requests arrive where they are for first, whoever takes them."""
        asked, burst = demand[name], min(BURST_SECONDS, slot.seconds)
        passed = sum(count for (mine, saturated, _), count in slot.passed.items() if (mine, saturated) == (name, tier))
        relieved = sum(count for (mine, _, other), count in slot.passed.items() if (mine, other) == (name, tier))
        # The difference of what was added up: less than a millionth of a request is none.
        arrived = flow.requests + passed - relieved
        arrived = arrived if arrived > 1e-6 else 0.0
        rate = self._reading(arrived / slot.seconds)
        seen = ClassSignals(
            request_rate=rate,
            prompt_tokens=self._reading(flow.prompt if flow.requests else None),
            completion_tokens=self._reading(flow.output if flow.requests else None),
            ttfb_p95_seconds=self._reading(percentile(flow.ttft)),
            peak_rate=self._reading(asked.peak * arrived / asked.requests / burst),
        )
        most = slot.peaks.get((name, tier))
        if most is None:
            return replace(seen, taken_rate=rate, taken_peak_rate=seen.peak_rate)
        taken = self._reading(flow.requests / slot.seconds)
        return replace(seen, taken_rate=taken, taken_peak_rate=self._reading(most / burst))

    def _passed(self, slot: Slot, name: str) -> Signal:
        passed = sum(count for (_, tier, _), count in slot.passed.items() if tier == name)
        return self._reading(passed / slot.seconds) if passed else Reading(0.0, AGE_SECONDS)

    def _reading(self, value: float | None) -> Signal:
        if value is None or not math.isfinite(value):
            return IDLE
        if self.noise > 0:
            value *= math.exp(self.noise * self._source.gauss(0.0, 1.0))
        return Reading(value, AGE_SECONDS)

    def _engine(self, fluid: Engine, slot: Slot, name: str) -> TierSignals:
        seen = slot.tiers[name]
        flows = [flow for (_, tier), flow in slot.flows.items() if tier == name]
        params = next(tier.params for tier in fluid.tiers if tier.name == name)
        rate = sum(flow.requests for flow in flows) / slot.seconds
        if seen.ready == 0 or params is None:
            return TierSignals(
                request_rate=self._reading(rate),
                error_rate=Reading(0.0, AGE_SECONDS),
                passed_rate=self._passed(slot, name),
            )
        tokens = sum(weight for weight, _ in seen.itl)
        mean = sum(weight * value for weight, value in seen.itl) / tokens if tokens > 0 else None
        return TierSignals(
            request_rate=self._reading(rate),
            error_rate=Reading(0.0, AGE_SECONDS),
            running=self._reading(seen.running),
            waiting=self._reading(seen.waiting),
            kv_cache_usage=self._reading(min(1.0, seen.kv_tokens / (seen.ready * params.kv_tokens))),
            ttft_p95_seconds=self._reading(percentile(seen.ttft)),
            inter_token_p95_seconds=self._reading(percentile(seen.itl)),
            prompt_token_rate=self._reading(sum(flow.requests * flow.prompt for flow in flows) / slot.seconds),
            generation_token_rate=self._reading(sum(flow.requests * flow.output for flow in flows) / slot.seconds),
            ready_replicas=Reading(float(seen.ready), AGE_SECONDS),
            inter_token_mean_seconds=self._reading(mean),
            passed_rate=self._passed(slot, name),
        )

    def _provider(self, slot: Slot, name: str, *, down: bool) -> TierSignals:
        flows = [flow for (_, tier), flow in slot.flows.items() if tier == name]
        rate = sum(flow.requests for flow in flows) / slot.seconds
        counted = [] if down else flows
        return TierSignals(
            request_rate=self._reading(rate),
            prompt_token_rate=self._reading(sum(flow.requests * flow.prompt for flow in counted) / slot.seconds),
            generation_token_rate=self._reading(sum(flow.requests * flow.output for flow in counted) / slot.seconds),
            error_rate=Reading(1.0 if down and rate > 0 else 0.0, AGE_SECONDS),
            answer_rate=self._reading(0.0 if down else rate),
            refused_rate=Reading(0.0, AGE_SECONDS),
        )


def _usage(slot: Slot, name: str, now: datetime, *, down: bool) -> CounterReading:
    """Tokens that a provider charged for in a slot, as gateways counted them."""
    flows = [] if down else [flow for (_, tier), flow in slot.flows.items() if tier == name]
    requests = sum(flow.requests for flow in flows)
    return CounterReading(
        requests=requests,
        requests_with_usage=requests,
        input_tokens=sum(flow.requests * flow.prompt for flow in flows),
        cached_input_tokens=0.0,
        output_tokens=sum(flow.requests * flow.output for flow in flows),
        since=now - timedelta(seconds=slot.seconds),
        until=now,
    )


def percentile(pairs: Sequence[tuple[float, float]] | Iterable[tuple[float, float]]) -> float | None:
    """95th percentile of values with weights; None without weight."""
    ordered = sorted((value, weight) for weight, value in pairs if weight > 0)
    left = PERCENTILE * sum(weight for _, weight in ordered)
    for value, weight in ordered:
        left -= weight
        if left <= 1e-9:
            return value
    return None
