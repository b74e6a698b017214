"""Offline baselines on one trace: all-large, the best static split, and an HPA with fixed weights. All simulated.

What the baselines are given is generous: they know the whole trace and the replica model, and search for their best
weights and replicas on the very trace that they are judged on. Tierwise knows neither.
"""

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import product

from tierwise.sim.fleet import Decision, Fixed, Fleet, FleetError, ReplicaTier, Tier, TrafficClass
from tierwise.sim.hpa import HpaSpec
from tierwise.sim.outcome import percentile, summarise
from tierwise.sim.replica import Capacity, Mix, capacity
from tierwise.sim.simulate import simulate
from tierwise.sim.strategy import Comparison, SearchOptions, StrategyResult, Weights, assess, judged
from tierwise.sim.traces import TraceRequest


@dataclass(slots=True)
class Search:
    """Finds baselines for one fleet and trace; remembers what it simulated.

    Attributes:
        fleet: tiers and classes.
        trace: in order of time.
        options: of the search.
        horizon_seconds: time that is charged.
    """

    fleet: Fleet
    trace: Sequence[TraceRequest]
    options: SearchOptions = field(default_factory=SearchOptions)
    horizon_seconds: float = 0.0
    _needed: dict[tuple[str, tuple[float, ...]], int | None] = field(default_factory=dict)
    _draws: list[float] = field(default_factory=list)
    _long: dict[str, float] = field(default_factory=dict)
    _sums: dict[str, list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.horizon_seconds = self.horizon_seconds or (self.trace[-1].t_seconds if self.trace else 0.0)
        source = random.Random(f"search:{self.fleet.seed}")  # noqa: S311 - simulation
        self._draws = [source.random() for _ in self.trace]
        self._sums = {traffic.kind: [0.0] * 5 for traffic in self.fleet.classes}
        for request in self.trace:
            if request.kind not in self._sums:
                raise FleetError(f"no class of the fleet matches requests of class {request.kind!r}")
            prompt, output = request.prompt_tokens, request.output_tokens
            terms = (1, prompt, prompt * prompt, output, output * (prompt + output / 2))
            self._sums[request.kind] = [
                value + term for value, term in zip(self._sums[request.kind], terms, strict=True)
            ]

    # Fluid figures --------------------------------------------------------------------------------------------------

    def mix(self, tier: str, weights: Weights) -> tuple[Mix, float] | None:
        """Mean request on a tier, and its mean rate; None without any."""
        total = 0.0
        sums = [0.0] * 4
        for kind, (count, *parts) in self._sums.items():
            share = weights[kind].get(tier, 0.0)
            total += share * count
            for index, part in enumerate(parts):
                sums[index] += share * part
        if total <= 0:
            return None
        return Mix(*(value / total for value in sums)), total / self.horizon_seconds

    def capacity(self, tier: ReplicaTier, weights: Weights) -> Capacity | None:
        """What one replica of a tier carries of its mix, so that each class it serves keeps its own objective."""
        mix = self.mix(tier.name, weights)
        if mix is None:
            return None
        served = [traffic for traffic in self.fleet.classes if weights[traffic.kind].get(tier.name, 0.0) > 0]
        each = [capacity(tier.params, mix[0], traffic.objective, self._long_prompt(traffic.kind)) for traffic in served]
        return min(each, key=lambda held: held.requests_per_second)

    def _long_prompt(self, kind: str) -> float:
        """95th percentile prompt of a class."""
        if kind not in self._long:
            prompts = sorted(request.prompt_tokens for request in self.trace if request.kind == kind)
            self._long[kind] = percentile(prompts, 0.95) or 1.0
        return self._long[kind]

    def fluid_usd(self, weights: Weights) -> float:
        """Lower estimate of the cost: fractional replicas, always as many as the mean load needs."""
        total = 0.0
        for tier in self.fleet.tiers:
            mix = self.mix(tier.name, weights)
            if mix is None:
                continue
            if isinstance(tier, ReplicaTier):
                held = self.capacity(tier, weights)
                if held is None or held.requests_per_second <= 0:
                    return math.inf
                replicas = mix[1] / held.requests_per_second
                total += replicas * float(tier.usd_per_replica_hour) * self.horizon_seconds / 3600
            else:
                per_request = mix[0].prompt * float(tier.profile.usd_per_million_input)
                per_request += mix[0].output * float(tier.profile.usd_per_million_output)
                total += per_request / 1e6 * mix[1] * self.horizon_seconds
        return total

    def settings(self) -> list[Weights]:
        """Weight settings on the grid that keep every quality floor, best by the fluid estimate first."""
        per_class = [list(_grid(self.fleet, traffic, self.options.weight_step)) for traffic in self.fleet.classes]
        kinds = [traffic.kind for traffic in self.fleet.classes]
        every = [dict(zip(kinds, combination, strict=True)) for combination in product(*per_class)]
        priced = sorted(
            ((self.fluid_usd(weights), index) for index, weights in enumerate(every)),
        )
        return [every[index] for usd, index in priced[: self.options.combinations] if math.isfinite(usd)]

    # Strategies -----------------------------------------------------------------------------------------------------

    def all_on(self, tier: str) -> Weights:
        """Everything on one tier."""
        return {traffic.kind: {tier: 1.0} for traffic in self.fleet.classes}

    def all_large(self, tier: str) -> StrategyResult:
        """Everything on the reference tier, with the fixed replicas that its peak needs."""
        weights = self.all_on(tier)
        replicas = self._replicas(weights) or {tier: self.options.max_replicas}
        return self._fixed(f"all-{tier}", weights, replicas)

    def best_static(self) -> StrategyResult:
        """The cheapest weights with the fewest fixed replicas that attain; else what attains most."""
        priced: list[tuple[Decimal, int, Weights, Mapping[str, int]]] = []
        for index, weights in enumerate(self.settings()):
            replicas = self._replicas(weights)
            if replicas is not None:
                priced.append((self._static_usd(weights, replicas), index, weights, replicas))
        best: StrategyResult | None = None
        for _, _, weights, counts in sorted(priced, key=lambda item: item[:2]):
            result = self._fixed("best-static", weights, counts)
            if result.reached:
                return result
            if best is None or result.attainment > best.attainment:
                best = result
        return best or self.all_large(self.fleet.classes[0].tiers[-1])

    def hpa(self, share: float) -> StrategyResult:
        """HPAs at `share` of a replica's capacity in concurrent requests, with the best fixed weights."""
        return self._best_hpa(f"hpa-{share * 100:.0f}", share, self.settings())

    def hpa_on(self, tier: str, share: float) -> StrategyResult:
        """Everything on one tier, autoscaled."""
        return self._best_hpa(f"all-{tier}-hpa-{share * 100:.0f}", share, [self.all_on(tier)])

    def _best_hpa(self, name: str, share: float, settings: Sequence[Weights]) -> StrategyResult:
        results = [self._hpa(name, share, weights) for weights in settings]
        reached = [result for result in results if result.reached]
        if reached:
            return min(reached, key=lambda result: result.cost_usd)
        # None attains: the cheapest of those that come within a point of the best.
        best = max(min(result.class_attainment.values()) for result in results)
        near = [result for result in results if min(result.class_attainment.values()) >= best - 0.01]
        return min(near, key=lambda result: result.cost_usd)

    def _hpa(self, name: str, share: float, weights: Weights) -> StrategyResult:
        scaling: dict[str, HpaSpec] = {}
        bounds: dict[str, tuple[int, int]] = {}
        for tier in self.fleet.tiers:
            if not isinstance(tier, ReplicaTier):
                continue
            held, mix = self.capacity(tier, weights), self.mix(tier.name, weights)
            if held is None or mix is None or held.sequences <= 0:
                bounds[tier.name] = (0, 0)
                continue
            scaling[tier.name] = HpaSpec(
                target=max(share * held.sequences, 0.1),
                min_replicas=1,
                max_replicas=self.options.max_replicas,
                sync_seconds=self.options.sync_seconds,
                metric_window_seconds=self.options.metric_window_seconds,
                down_stabilisation_seconds=self.options.down_stabilisation_seconds,
            )
            bounds[tier.name] = (1, self.options.max_replicas)
        decision = Decision(weights, bounds)
        result = simulate(
            self.fleet,
            self.trace,
            _Warm(decision, self._first_replicas(weights, share)),
            scaling=scaling,
            horizon_seconds=self.horizon_seconds,
        )
        return judged(name, self.fleet, result, decision, self.options.attainment)

    def _first_replicas(self, weights: Weights, share: float) -> dict[str, int]:
        """What an autoscaler would long have had at the trace's first minute."""
        first = [request for request in self.trace if request.t_seconds < 60.0]
        replicas = {}
        for tier in self.fleet.tiers:
            held = self.capacity(tier, weights) if isinstance(tier, ReplicaTier) else None
            if held is not None and held.requests_per_second > 0:
                rate = sum(weights[request.kind].get(tier.name, 0.0) for request in first) / 60.0
                replicas[tier.name] = max(1, math.ceil(rate / (share * held.requests_per_second)))
        return replicas

    # Fixed replicas -------------------------------------------------------------------------------------------------

    def _fixed(self, name: str, weights: Weights, replicas: Mapping[str, int]) -> StrategyResult:
        decision = Decision(weights, {tier: (count, count) for tier, count in replicas.items()})
        return assess(
            name,
            self.fleet,
            self.trace,
            Fixed(decision),
            horizon_seconds=self.horizon_seconds,
            attainment=self.options.attainment,
            decision=decision,
        )

    def _static_usd(self, weights: Weights, replicas: Mapping[str, int]) -> Decimal:
        hours = Decimal(repr(self.horizon_seconds / 3600))
        total = Decimal(0)
        for tier in self.fleet.tiers:
            if isinstance(tier, ReplicaTier):
                total += replicas.get(tier.name, 0) * tier.usd_per_replica_hour * hours
            else:
                shares = {kind: Decimal(repr(by_tier.get(tier.name, 0.0))) for kind, by_tier in weights.items()}
                prompt = sum(shares[request.kind] * request.prompt_tokens for request in self.trace)
                output = sum(shares[request.kind] * request.output_tokens for request in self.trace)
                spent = prompt * tier.profile.usd_per_million_input + output * tier.profile.usd_per_million_output
                total += spent / 1_000_000
        return total

    def _replicas(self, weights: Weights) -> dict[str, int] | None:
        """Fewest fixed replicas of each tier at which its own requests attain; None when no number does."""
        replicas = {}
        for tier in self.fleet.tiers:
            if not isinstance(tier, ReplicaTier):
                continue
            shares = tuple(weights[traffic.kind].get(tier.name, 0.0) for traffic in self.fleet.classes)
            key = (tier.name, shares)
            if key not in self._needed:
                self._needed[key] = self._fewest(tier, dict(zip(weights, shares, strict=True)), weights)
            needed = self._needed[key]
            if needed is None:
                return None
            replicas[tier.name] = needed
        return replicas

    def _fewest(self, tier: ReplicaTier, shares: Mapping[str, float], weights: Weights) -> int | None:
        part = [request for request, draw in zip(self.trace, self._draws, strict=True) if draw < shares[request.kind]]
        if not part:
            return 0
        held = self.capacity(tier, weights)
        if held is None or held.requests_per_second <= 0:
            return None
        # What the mean load needs, half as much again for the peak, is near.
        count = min(
            self.options.max_replicas,
            math.ceil(1.5 * len(part) / self.horizon_seconds / held.requests_per_second),
        )
        low, high = 0, None
        while high is None or high - low > 1:
            if self._attains(tier, part, count):
                high = count
            elif count >= self.options.max_replicas:
                return None
            else:
                low = count
            count = (
                min(self.options.max_replicas, low + max(1, low // 2))
                if high is None
                else max(low + 1, (low + high) // 2)
            )
            if high is not None and high - low <= 3:
                count = high - 1
        return high

    def _attains(self, tier: ReplicaTier, part: Sequence[TraceRequest], count: int) -> bool:
        kinds = {request.kind for request in part}
        classes = tuple(
            TrafficClass(traffic.kind, (tier.name,), traffic.objective)
            for traffic in self.fleet.classes
            if traffic.kind in kinds
        )
        alone = Fleet((tier,), classes, self.fleet.seed)
        decision = Decision({kind: {tier.name: 1.0} for kind in kinds}, {tier.name: (count, count)})
        result = simulate(alone, part, Fixed(decision), horizon_seconds=self.horizon_seconds)
        summary = summarise(result.records, {traffic.kind: traffic.objective for traffic in classes})
        return summary.worst_attainment >= self.options.attainment


@dataclass(slots=True)
class _Warm:
    """Fixed weights; the first replicas are what the load at the start needs, from then on the autoscaler decides."""

    decision: Decision
    first: Mapping[str, int]
    interval_seconds: float = 1.0
    _begun: bool = False

    def decide(self, t_seconds: float, observation: object) -> Decision:  # noqa: ARG002 - the protocol's
        if self._begun:
            self.interval_seconds = 1e9
            return self.decision
        self._begun = True
        bounds = {
            tier: (max(least, self.first.get(tier, least)), most)
            for tier, (least, most) in self.decision.replicas.items()
        }
        return Decision(self.decision.weights, bounds)


def _grid(fleet: Fleet, traffic: TrafficClass, step: float) -> Iterator[dict[str, float]]:
    """Weights of one class on the grid that keep its quality floor."""
    parts = round(1 / step)
    tiers: list[Tier] = [fleet.tier(name) for name in traffic.tiers]
    for counts in product(range(parts + 1), repeat=len(tiers)):
        if sum(counts) != parts:
            continue
        weights = {tier.name: count / parts for tier, count in zip(tiers, counts, strict=True) if count}
        floor = traffic.quality_floor
        if floor is not None:
            scores = [tier.quality.get(traffic.kind) for tier in tiers if tier.name in weights]
            # Unknown quality does not satisfy a floor.
            if any(score is None for score in scores):
                continue
            quality = sum(weights.get(tier.name, 0.0) * (tier.quality.get(traffic.kind) or 0.0) for tier in tiers)
            if quality < floor - 1e-9:
                continue
        yield weights


def compare(
    fleet: Fleet,
    trace: Sequence[TraceRequest],
    reference_tier: str,
    options: SearchOptions | None = None,
    horizon_seconds: float | None = None,
) -> Comparison:
    """All baselines on one trace: all-large (static and autoscaled), best static split, HPA at 70 and 50 %."""
    options = options or SearchOptions()
    search = Search(fleet, trace, options, horizon_seconds or 0.0)
    strategies = [search.all_large(reference_tier)]
    if isinstance(fleet.tier(reference_tier), ReplicaTier):
        strategies.append(search.hpa_on(reference_tier, 0.7))
    strategies += [search.best_static(), search.hpa(0.7), search.hpa(0.5)]
    return Comparison(len(trace), search.horizon_seconds, options.attainment, strategies)
