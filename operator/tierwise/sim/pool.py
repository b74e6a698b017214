"""The replicas of one tier in simulated time: they start, serve, drain, and are charged for all of it."""

import random
from collections import deque
from dataclasses import dataclass, field

from tierwise.sim.batching import Batcher, Hooks, Sequence
from tierwise.sim.fleet import ProviderTier, ReplicaTier, Tier
from tierwise.sim.hpa import Hpa, HpaSpec
from tierwise.sim.outcome import Record
from tierwise.sim.provider import ProviderClock


@dataclass(slots=True, eq=False)
class Replica:
    """One replica, or the one stand-in for a provider. Times in seconds of the simulation."""

    core: Batcher | ProviderClock
    created: float
    ready_at: float
    drain_at: float | None = None
    last_finish: float = 0.0


@dataclass(slots=True)
class Window:
    """What is counted for one tier between two decisions."""

    ttft: list[float] = field(default_factory=list)
    gap_seconds: float = 0.0
    gaps: int = 0
    requests: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0


@dataclass(slots=True)
class Placed:
    """Which request of the trace a sequence is."""

    index: int
    kind: str
    tier: str


class Pool:
    """The replicas of one tier."""

    def __init__(self, tier: Tier, scaling: HpaSpec | None, source: random.Random, records: dict[int, Record]) -> None:
        self.tier = tier
        self.hpa = None if scaling is None else Hpa(scaling)
        self.replicas: list[Replica] = []
        self.gone: list[Replica] = []
        self.samples: deque[tuple[float, float, float, int]] = deque()
        self.window = Window()
        self._source = source
        self._records = records
        if isinstance(tier, ProviderTier):
            self.replicas.append(self._made(0.0, 0.0))

    def _made(self, created: float, ready_at: float) -> Replica:
        core: Batcher | ProviderClock
        if isinstance(self.tier, ProviderTier):
            core = ProviderClock(self.tier.profile, random.Random(self._source.random()))  # noqa: S311 - simulation
        else:
            core = Batcher(self.tier.params)
        replica = Replica(core, created, ready_at)

        def finished(sequence: Sequence) -> None:
            self._finished(replica, sequence)

        # What an engine's own counters show: tokens when they are computed, not when their request arrives or ends.
        core.hooks = Hooks(finished=finished, tokens=self._tokens, iteration=self._iteration)
        return replica

    def _tokens(self, gap: float, count: int) -> None:
        self.window.gap_seconds += gap * count
        self.window.gaps += count

    def _iteration(self, prompt_tokens: int, generated: int) -> None:
        self.window.prompt_tokens += prompt_tokens
        self.window.output_tokens += generated

    def _finished(self, replica: Replica, sequence: Sequence) -> None:
        request, end = sequence.payload, sequence.finished_seconds
        if not isinstance(request, Placed) or end is None:
            return
        replica.last_finish = end
        gap = sequence.inter_token_seconds
        self._records[request.index] = Record(
            index=request.index,
            kind=request.kind,
            planned_seconds=sequence.arrival_seconds,
            sent_seconds=sequence.arrival_seconds,
            status=200,
            tier=request.tier,
            ttft_seconds=sequence.ttft_seconds,
            inter_token_seconds=gap,
            latency_seconds=end - sequence.arrival_seconds,
            prompt_tokens=sequence.prompt_tokens,
            completion_tokens=sequence.output_tokens,
        )
        if sequence.ttft_seconds is not None:
            self.window.ttft.append(sequence.ttft_seconds)

    def scale(self, now: float, wanted: int, *, ready_at_once: bool = False) -> None:
        """Create replicas, or drain the youngest that start and then the least loaded."""
        if not isinstance(self.tier, ReplicaTier):
            return
        for _ in range(wanted - len(self.replicas)):
            self.replicas.append(self._made(now, now if ready_at_once else now + self.tier.startup_seconds))
        surplus = len(self.replicas) - wanted
        if surplus > 0:
            order = sorted(self.replicas, key=lambda replica: (replica.ready_at <= now, replica.core.outstanding))
            for replica in order[:surplus]:
                replica.drain_at = now
                self.replicas.remove(replica)
                self.gone.append(replica)

    def choose(self, now: float) -> Replica | None:
        """The less loaded of two random ready replicas."""
        ready = [replica for replica in self.replicas if replica.ready_at <= now]
        if not ready:
            return None
        pair = [ready[int(self._source.random() * len(ready))] for _ in range(2)]
        for replica in pair:
            replica.core.advance(now)
        return min(pair, key=lambda replica: replica.core.outstanding)

    def advance(self, now: float) -> None:
        """Bring all replicas to `now`."""
        for replica in (*self.replicas, *self.gone):
            replica.core.advance(now)

    def sample(self, now: float, keep_seconds: float) -> None:
        """Note the load."""
        ready = [replica for replica in self.replicas if replica.ready_at <= now]
        running = float(sum(replica.core.running for replica in ready))
        waiting = float(sum(replica.core.waiting for replica in ready))
        self.samples.append((now, running, waiting, len(ready)))
        while self.samples and self.samples[0][0] < now - keep_seconds:
            self.samples.popleft()

    def autoscale(self, now: float) -> None:
        """One look of the autoscaler: mean requests inside each ready replica."""
        if self.hpa is None:
            return
        since = now - self.hpa.spec.metric_window_seconds
        loads = [(running + waiting) / ready for at, running, waiting, ready in self.samples if at > since and ready]
        average = sum(loads) / len(loads) if loads else None
        ready = sum(replica.ready_at <= now for replica in self.replicas)
        self.scale(now, self.hpa.desired(now, len(self.replicas), ready, average))

    def seconds(self, horizon: float) -> float:
        """Replica-seconds to be charged."""
        total = sum(horizon - replica.created for replica in self.replicas)
        for replica in self.gone:
            end = max(replica.drain_at or 0.0, replica.last_finish)
            total += min(horizon, end) - replica.created
        return total
