"""One tier of engine replicas, iteration by iteration: what `tierload` is held to, at a hundredth of its speed.

Each replica is a `sim.batching.Batcher`; the less loaded of two random ready ones takes a request, as Envoy's
least-request balancer does.
"""

import random
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from tierwise.sim.batching import Batcher, Hooks, Sequence
from tierwise.sim.replica import ReplicaParams
from tierwise.simulate.tierload import SLOT_SECONDS, Arrivals, Floats, Served, StepView

DRAIN_SECONDS = 3600.0


@dataclass(slots=True)
class TierBatches:
    """The replicas of one tier, in order of time. Same interface as `tierload.TierLoad`."""

    params: ReplicaParams
    now: float = 0.0
    source: random.Random = field(default_factory=lambda: random.Random(0))  # noqa: S311 - simulation
    _replicas: list[Batcher] = field(default_factory=list)
    _done: list[tuple[float, float, float, float, float, float]] = field(default_factory=list)
    _gaps: list[tuple[float, int]] = field(default_factory=list)

    def step(self, arrivals: Arrivals, replicas: Floats) -> tuple[Served, StepView]:
        """Advance by one second per entry of `replicas`, the ready ones in it."""
        submitted: list[Sequence] = []
        running = waiting = kept = 0.0
        slots = replicas.size
        edges = np.searchsorted(arrivals.t, self.now + SLOT_SECONDS * np.arange(slots + 1)).tolist()
        edges[-1] = arrivals.count
        gaps, tokens = np.zeros(slots), np.zeros(slots)
        for slot, (first, last) in enumerate(pairwise(edges)):
            ready = self._ready(int(replicas[slot]))
            submitted += [self._submit(ready, arrivals, at) for at in range(first, last)]
            end = self.now + SLOT_SECONDS * (slot + 1)
            self._gaps.clear()
            for replica in self._replicas:
                replica.advance(end)
            running += sum(replica.running for replica in self._replicas) / slots
            waiting += sum(replica.waiting for replica in self._replicas) / slots
            kept += sum(replica.context_tokens for replica in self._replicas) / slots
            tokens[slot] = sum(count for _, count in self._gaps)
            gaps[slot] = sum(gap * count for gap, count in self._gaps) / max(1.0, tokens[slot])
        self.now += slots * SLOT_SECONDS
        seen = [
            each.ttft_seconds if each.ttft_seconds is not None else self.now - each.arrival_seconds
            for each in submitted
        ]
        busy = np.where(gaps > 0, 1.0 - self.params.a_ms / 1e3 / np.maximum(gaps, 1e-9), 0.0)
        view = StepView(running, waiting, np.array(seen), gaps, tokens, float(np.maximum(busy, 0.0).mean()), kept)
        return self._served(), view

    def drain(self) -> Served:
        """All that still runs, to its end."""
        for replica in self._replicas:
            replica.advance(self.now + DRAIN_SECONDS)
        return self._served()

    def _ready(self, count: int) -> list[Batcher]:
        """The replicas that take requests; one more than that drains when there are fewer than before."""
        while len(self._replicas) < count:
            self._replicas.append(self._made())
        idle = [each for each in self._replicas[count:] if each.outstanding]
        self._replicas[count:] = idle
        return self._replicas[:count]

    def _made(self) -> Batcher:
        def finished(each: Sequence) -> None:
            gap = each.inter_token_seconds
            ttft = each.ttft_seconds
            self._done.append(
                (
                    each.arrival_seconds,
                    float(each.prompt_tokens),
                    float(each.output_tokens),
                    float(str(each.payload)),
                    np.nan if ttft is None else ttft,
                    np.nan if gap is None else gap,
                )
            )

        def tokens(gap: float, count: int) -> None:
            self._gaps.append((gap, count))

        return Batcher(self.params, Hooks(finished=finished, tokens=tokens))

    def _submit(self, ready: list[Batcher], arrivals: Arrivals, at: int) -> Sequence:
        t = float(arrivals.t[at])
        pair = [ready[int(self.source.random() * len(ready))] for _ in range(2)]
        for replica in pair:
            replica.advance(t)
        sequence = Sequence(max(1, round(float(arrivals.prompt[at]))), max(1, round(float(arrivals.output[at]))), t)
        sequence.payload = int(arrivals.kind[at])
        min(pair, key=lambda replica: replica.outstanding).submit(sequence)
        return sequence

    def _served(self) -> Served:
        rows = np.array(self._done).reshape(-1, 6).T
        self._done.clear()
        return Served(rows[0], rows[1], rows[2], rows[3].astype(np.int64), rows[4], rows[5])
