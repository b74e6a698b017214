"""One tier of engine replicas at event level: each request has its own latencies, from the closed form of short slots.

The closed form of `tierwise.sim.replica` gives latency at a steady load. Here the load is followed second by second: a
request's prefill counts when it arrives, its decoding is spread over the time that it runs, and what a slot can not
do (above `SATURATION` of the replicas' time) waits as backlog. Each request's time between tokens is the mean over the
slots in which it ran; its time to first token is that of the slot in which it arrived. All replicas of a tier share its
load evenly, as a least-request balancer nearly achieves. One step works on all requests of a planning round at once,
which is what makes a day of a million requests a matter of seconds.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tierwise.sim.replica import ReplicaParams

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

SLOT_SECONDS = 1.0
SATURATION = 0.98
"""Share of the replicas' time beyond which work waits, as in the benchmark's definition."""
LONGEST_SECONDS = 3600.0
"""A request's decoding is spread over at most so long."""
TTFT_SECONDS = 10.0
"""The load that delays a first token is the mean of so long."""
PASSES = 2
"""A request's running time depends on the load that it adds to: twice around is within a percent."""


@dataclass(frozen=True, slots=True)
class Arrivals:
    """Requests that go to one tier in one step, sorted by time.

    Attributes:
        t: seconds. prompt, output: tokens. kind: index of the class.
    """

    t: Floats
    prompt: Floats
    output: Floats
    kind: Ints

    @property
    def count(self) -> int:
        """How many."""
        return int(self.t.size)

    @classmethod
    def joined(cls, parts: "list[Arrivals]") -> "Arrivals":
        """Of several classes, in order of time."""
        if not parts:
            return cls(np.zeros(0), np.zeros(0), np.zeros(0), np.zeros(0, dtype=np.int64))
        t = np.concatenate([part.t for part in parts])
        order = np.argsort(t, kind="stable")
        return cls(
            t[order],
            np.concatenate([part.prompt for part in parts])[order],
            np.concatenate([part.output for part in parts])[order],
            np.concatenate([part.kind for part in parts])[order],
        )


@dataclass(frozen=True, slots=True)
class Served:
    """Requests that have ended, with their latencies in seconds; `gap` (mean between tokens) is NaN for one token."""

    t: Floats
    prompt: Floats
    output: Floats
    kind: Ints
    ttft: Floats
    gap: Floats

    @property
    def latency(self) -> Floats:
        """To the last token."""
        decoding = np.where(np.isnan(self.gap), 0.0, self.gap) * np.maximum(self.output - 1.0, 0.0)
        return np.asarray(self.ttft + decoding)


@dataclass(frozen=True, slots=True)
class StepView:
    """What a step shows of the tier, as its engines' metrics would.

    Attributes:
        running, waiting: mean requests over all replicas.
        ttft: seconds, of each request that arrived in the step.
        gaps, tokens: by slot: time between tokens in seconds, and tokens generated.
        utilisation: mean share of the replicas' time that depends on load, 0 to `SATURATION`.
        kv_tokens: mean tokens in all KV caches.
    """

    running: float
    waiting: float
    ttft: Floats
    gaps: Floats
    tokens: Floats
    utilisation: float
    kv_tokens: float


@dataclass(slots=True)
class TierLoad:
    """The load of one tier, in order of time.

    Attributes:
        params: of each replica.
        now: seconds up to which the load is known.
        backlog: work that waits, replica-seconds.
        gap: time between tokens in the last slot, seconds.
    """

    params: ReplicaParams
    now: float = 0.0
    backlog: float = 0.0
    gap: float = 0.0
    # Work and running requests that earlier steps have laid into slots from `now` on: (within the slot, change after).
    _work: Floats = field(default_factory=lambda: np.zeros((2, 0)))
    _count: Floats = field(default_factory=lambda: np.zeros((2, 0)))
    # Tokens that a stream has had by each slot's edge since the start; requests under way wait for theirs.
    _edges: list[float] = field(default_factory=list)
    _tokens: list[float] = field(default_factory=lambda: [0.0])
    _open: list[Floats] = field(default_factory=list)
    _recent: Floats = field(default_factory=lambda: np.zeros(0))
    _context: float = 0.0

    def __post_init__(self) -> None:
        self.gap = self.params.a_ms / 1e3
        self._edges = [self.now]

    def step(self, arrivals: Arrivals, replicas: Floats) -> tuple[Served, StepView]:
        """Advance by one slot of `SLOT_SECONDS` per entry of `replicas` (ready ones in that slot).

        Args:
            arrivals: within these slots.
            replicas: by slot; 0 where none is ready: then nothing may arrive, and what runs is finished by replicas
                that drain.

        Returns:
            Requests that ended, and what the tier shows.
        """
        slots = replicas.size
        ready = np.maximum(replicas, 1.0 if self._open or arrivals.count else 0.0)
        place = np.minimum(((arrivals.t - self.now) / SLOT_SECONDS).astype(np.int64), slots - 1)
        own = self.params.prompt_ms(arrivals.prompt) / 1e3
        prefill = self.params.p0_ms / 1e3 + own
        decode = (
            arrivals.output
            * (self.params.b_ms + self.params.g_ms * (arrivals.prompt + arrivals.output / 2.0) / 1e3)
            / 1e3
        )
        gaps = np.full(slots, self.gap)
        fit, context = self._fit(arrivals)
        # With all the sequences that fit, an iteration takes so long, and prefills come between: no gap is longer.
        blocked = np.bincount(place, weights=own, minlength=slots) / np.maximum(ready * SLOT_SECONDS, 1e-9)
        full = self.params.a_ms + fit * (self.params.b_ms + self.params.g_ms * context / 1e3)
        most = full / 1e3 / (1.0 - np.minimum(blocked, 0.9))
        work, count = self._work, self._count
        rho = waits = running = np.zeros(slots)
        left = self.backlog
        for _ in range(PASSES if arrivals.count else 1):
            lasts = self._lasts(arrivals, gaps)
            work = _spread(self._work, arrivals.t - self.now, lasts, decode, slots)
            count = _spread(self._count, arrivals.t - self.now, lasts, lasts, slots)
            running = _levels(count)[:slots] / SLOT_SECONDS
            asked = _levels(work)[:slots] + np.bincount(place, weights=own, minlength=slots)
            # Prefills go first, so a backlog delays no first token before no further sequence fits into a replica;
            # until then it stretches decoding, of which half is still to do.
            spare = np.maximum(ready * fit - running, 0.0) * (float(decode.mean()) if decode.size else 1e9) / 2.0
            rho, waits, left = self._serve(asked, ready, spare)
            gaps = np.minimum(self.params.a_ms / 1e3 / (1.0 - rho), most)
        self.backlog = left
        self._work, self._count = _after(work, slots), _after(count, slots)
        # Prefills go first: one busy second hardly delays them, which is why their load is a mean of ten, as the slots
        # that the closed form was checked in.
        calm = self._trailing(rho)
        ttft = prefill / (1.0 - calm[place]) + gaps[place] + waits[place]
        room = ready * fit
        queue = np.maximum(running - room, 0.0) + waits * ready / max(
            float(decode.mean()) if decode.size else 1.0, 1e-6
        )
        inside = np.minimum(running, room)
        view = StepView(
            running=float(inside.mean()),
            waiting=float(queue.mean()),
            ttft=ttft,
            gaps=gaps,
            tokens=inside * SLOT_SECONDS / gaps,
            utilisation=float(rho.mean()),
            kv_tokens=float(inside.mean()) * context,
        )
        return self._finish(arrivals, ttft, gaps, slots), view

    def _lasts(self, arrivals: Arrivals, gaps: Floats) -> Floats:
        """How long each request decodes, at the speeds of these slots, and at their mean speed after them."""
        edges = SLOT_SECONDS * np.arange(gaps.size + 1)
        tokens = np.concatenate(([0.0], np.cumsum(SLOT_SECONDS / gaps)))
        speed = tokens[-1] / edges[-1]
        start = arrivals.t - self.now
        wanted = np.interp(start, edges, tokens) + arrivals.output
        ends = np.interp(wanted, tokens, edges) + np.maximum(wanted - tokens[-1], 0.0) / speed
        return np.asarray(np.clip(ends - start, 1e-3, LONGEST_SECONDS))

    def _trailing(self, rho: Floats) -> Floats:
        """Mean utilisation of the `TTFT_SECONDS` up to each slot."""
        width = round(TTFT_SECONDS / SLOT_SECONDS)
        known = np.concatenate((self._recent, rho))
        self._recent = known[-(width - 1) :]
        sums = np.concatenate(([0.0], np.cumsum(known)))
        last = np.arange(known.size - rho.size, known.size) + 1
        first = np.maximum(last - width, 0)
        return np.asarray((sums[last] - sums[first]) / (last - first))

    def _fit(self, arrivals: Arrivals) -> tuple[float, float]:
        """Sequences that a replica holds, and their mean context in tokens."""
        if arrivals.count:
            self._context = float((arrivals.prompt + arrivals.output / 2.0).mean())
        return min(float(self.params.max_sequences), self.params.kv_tokens / max(self._context, 1.0)), self._context

    def _serve(self, asked: Floats, ready: Floats, elastic: Floats) -> tuple[Floats, Floats, float]:
        """By slot: utilisation and seconds that a newcomer waits; and the backlog at the end."""
        if self.backlog <= 0 and bool(np.all(asked <= SATURATION * ready * SLOT_SECONDS)):
            return asked / np.maximum(ready * SLOT_SECONDS, 1e-9), np.zeros(asked.size), 0.0
        rho, waits = np.zeros(asked.size), np.zeros(asked.size)
        left = self.backlog
        for slot, (work, count, spare) in enumerate(zip(asked.tolist(), ready.tolist(), elastic.tolist(), strict=True)):
            room = SATURATION * max(count, 1e-9) * SLOT_SECONDS
            waits[slot] = max(left - spare, 0.0) / max(count, 1e-9)
            done = min(room, work + left)
            left = left + work - done
            rho[slot] = done / max(count * SLOT_SECONDS, 1e-9)
        return np.minimum(rho, SATURATION), waits, left

    def _finish(self, arrivals: Arrivals, ttft: Floats, gaps: Floats, slots: int) -> Served:
        edges = self.now + SLOT_SECONDS * np.arange(1, slots + 1)
        tokens = self._tokens[-1] + np.cumsum(SLOT_SECONDS / gaps)
        # A first token that comes later than this step counts from the speed at its end.
        first = arrivals.t + ttft
        grid_t, grid_v = np.append(self._edges[-1], edges), np.append(self._tokens[-1], tokens)
        begins = np.interp(first, grid_t, grid_v) + np.maximum(first - grid_t[-1], 0.0) / gaps[-1]
        rows = np.vstack(
            (arrivals.t, arrivals.prompt, arrivals.output, arrivals.kind, ttft, begins, begins + arrivals.output - 1.0)
        )
        self._edges += edges.tolist()
        self._tokens += tokens.tolist()
        self.now = float(edges[-1]) if slots else self.now
        self.gap = float(gaps[-1]) if slots else self.gap
        held = np.hstack((*self._open, rows)) if self._open else rows
        ended = held[6] <= self._tokens[-1]
        done, rest = held[:, ended], held[:, ~ended]
        self._open = [rest] if rest.size else []
        return self._close(done)

    def _close(self, done: Floats) -> Served:
        t, prompt, output, kind, ttft, begins, ends = done
        spent = np.interp(ends, self._tokens, self._edges) - np.interp(begins, self._tokens, self._edges)
        gap = np.where(output > 1.0, spent / np.maximum(output - 1.0, 1.0), np.nan)
        self._forget()
        return Served(t, prompt, output, kind.astype(np.int64), ttft, gap)

    def _forget(self) -> None:
        """History is kept as far back as the oldest request under way needs it."""
        oldest = float(self._open[0][5].min()) if self._open else self._tokens[-1]
        first = int(np.searchsorted(self._tokens, oldest, side="right")) - 1
        if first > 0:
            del self._edges[:first], self._tokens[:first]

    def drain(self) -> Served:
        """All that still runs, at the speed of the last slot: the end of a simulation."""
        if not self._open:
            return self._close(np.zeros((7, 0)))
        held = np.hstack(self._open)
        self._open = []
        more = float(held[6].max()) - self._tokens[-1]
        if more > 0:
            self._edges.append(self._edges[-1] + more * self.gap)
            self._tokens.append(self._tokens[-1] + more)
        return self._close(held)


def _spread(held: Floats, starts: Floats, lasts: Floats, amount: Floats, slots: int) -> Floats:
    """Lay `amount`, evenly over [start, start + lasts), into slots: row 0 within a slot, row 1 a level from then on.

    Two bincounts instead of a loop: a level that begins at a start and ends at an end, with what the first and last
    slot lack.
    """
    ends = starts + lasts
    most = max(slots + 1, held.shape[1], int(ends.max() / SLOT_SECONDS) + 2 if ends.size else 0)
    out = np.zeros((2, most))
    out[:, : held.shape[1]] = held
    if not starts.size:
        return out
    rate = amount / lasts * SLOT_SECONDS
    for moments, sign in ((starts, 1.0), (ends, -1.0)):
        at = moments / SLOT_SECONDS
        slot = np.floor(at).astype(np.int64)
        part = slot + 1.0 - at
        out[0] += np.bincount(slot, weights=sign * rate * part, minlength=most)[:most]
        out[1] += np.bincount(slot + 1, weights=sign * rate, minlength=most)[:most]
    return out


def _levels(laid: Floats) -> Floats:
    return np.asarray(np.maximum(laid[0] + np.cumsum(laid[1]), 0.0))


def _after(laid: Floats, slots: int) -> Floats:
    """The same, seen from `slots` later."""
    rest = laid[:, slots:].copy()
    if rest.shape[1]:
        rest[1, 0] += laid[1, :slots].sum()
    return rest
