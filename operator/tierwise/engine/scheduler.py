"""The replica model in real time: one timer steps it, and wakes the requests that have something to send.

A decode iteration takes 7 to 50 ms and a process has dozens of streams: waking for each would cost a core. The timer
wakes at most every `wake_seconds` (and exactly when a first token is due); what happened in between is replayed with
the model's own time stamps, so metrics are exact while the bytes come in small bursts.
"""

import asyncio
import random
from dataclasses import dataclass, field, replace

from tierwise.engine.faults import Faults
from tierwise.engine.metrics import EngineMetrics
from tierwise.engine.options import Options
from tierwise.sim.batching import Batcher, Hooks, Sequence
from tierwise.sim.profiles import Profile
from tierwise.sim.provider import ProviderClock
from tierwise.sim.replica import ReplicaParams

MAX_CATCH_UP_SECONDS = 5.0
"""A process that was stopped longer than this does not replay the gap at once; its streams are late instead."""


@dataclass(slots=True, eq=False)
class Ticket:
    """One request that waits for its tokens."""

    sequence: Sequence
    streaming: bool
    sent: int = 0
    _future: asyncio.Future[None] | None = field(default=None, repr=False)

    def wake(self) -> None:
        """Let the waiting handler run."""
        if self._future is not None and not self._future.done():
            self._future.set_result(None)

    async def wait(self) -> None:
        """Until the scheduler has something new."""
        self._future = asyncio.get_running_loop().create_future()
        try:
            await self._future
        finally:
            self._future = None


class Scheduler:
    """Steps a `Batcher` or `ProviderClock` along the event loop's clock. Use from one event loop only."""

    def __init__(self, options: Options, metrics: EngineMetrics) -> None:
        self._options = options
        self._metrics = metrics
        self._loop = asyncio.get_running_loop()
        self._tickets: set[Ticket] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._last_tick = 0.0
        self._skew = 0.0
        hooks = Hooks(
            first_token=self._first_token, finished=self._finished, tokens=self._gaps, iteration=self._iteration
        )
        self._core: Batcher | ProviderClock
        if isinstance(options.profile, Profile):
            self._core = Batcher(
                self._params(options.profile, 1.0), hooks=hooks, max_batched_tokens=options.max_batched_tokens
            )
        else:
            # Simulated latency, not a secret.
            self._core = ProviderClock(options.profile, random.Random(options.seed), hooks=hooks)  # noqa: S311

    def _params(self, profile: Profile, slow: float) -> ReplicaParams:
        sequences = min(self._options.max_num_seqs, profile.params.max_sequences)
        return replace(profile.params.scaled(slow), max_sequences=sequences)

    def apply(self, faults: Faults) -> None:
        """Take a changed speed into account."""
        if isinstance(self._core, Batcher):
            if isinstance(self._options.profile, Profile):
                self._core.params = self._params(self._options.profile, faults.slow)
        else:
            self._core.slow = faults.slow

    @property
    def active(self) -> int:
        """Requests inside."""
        return len(self._tickets)

    def refresh_gauges(self) -> None:
        """Bring the gauges up to date, for a scrape."""
        self._advance()
        self._metrics.running.set(self._core.running)
        self._metrics.waiting.set(self._core.waiting)
        self._metrics.kv_usage.set(self._core.kv_usage)

    def now(self) -> float:
        """The model's clock, in seconds: the event loop's, less what was skipped."""
        return self._loop.time() - self._skew

    def submit(self, prompt_tokens: int, output_tokens: int, *, streaming: bool) -> Ticket:
        """Queue a request and return what its handler waits on; `release` it in any case."""
        self._advance()
        sequence = Sequence(prompt_tokens=prompt_tokens, output_tokens=output_tokens, arrival_seconds=self.now())
        ticket = Ticket(sequence, streaming)
        sequence.payload = ticket
        self._tickets.add(ticket)
        self._core.submit(sequence)
        self._plan()
        return ticket

    def release(self, ticket: Ticket) -> None:
        """Forget a request; unfinished, it is an abort and leaves the batch."""
        self._tickets.discard(ticket)
        sequence = ticket.sequence
        if sequence.finished_seconds is None:
            self._core.abort(sequence)
            self._metrics.success["abort"].inc()

    def emitted(self, ticket: Ticket) -> int:
        """Tokens of a request that are out."""
        return self._core.emitted(ticket.sequence)

    def close(self) -> None:
        """Stop the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _advance(self) -> None:
        due = self._core.next_boundary_seconds
        if due is not None and self.now() - due > MAX_CATCH_UP_SECONDS:
            self._skew += self.now() - due
        self._core.advance(self.now())

    def _plan(self) -> None:
        """Set the timer for the next moment at which a request has something to do."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        boundary = self._core.next_boundary_seconds
        if boundary is None:
            return
        boundary += self._skew
        tick = self._last_tick + self._options.wake_seconds
        if isinstance(self._core, Batcher):
            # Nothing comes out before the iteration under way ends. (A provider's boundary is a first or last token.)
            tick = max(tick, boundary)
        at = min(tick, boundary) if self._core.prefill_pending else tick
        self._timer = self._loop.call_at(at, self._wake)

    def _wake(self) -> None:
        self._timer = None
        self._advance()
        if self._loop.time() >= self._last_tick + self._options.wake_seconds:
            self._last_tick = self._loop.time()
            for ticket in self._tickets:
                if (
                    ticket.streaming
                    and self._core.emitted(ticket.sequence) - ticket.sent >= self._options.tokens_per_chunk
                ):
                    ticket.wake()
        self._plan()

    def _first_token(self, sequence: Sequence) -> None:
        self._metrics.ttft.observe(sequence.ttft_seconds or 0.0)
        if sequence.admitted_seconds is not None:
            self._metrics.queue.observe(sequence.admitted_seconds - sequence.arrival_seconds)
        ticket = sequence.payload
        if isinstance(ticket, Ticket) and ticket.streaming:
            ticket.wake()

    def _finished(self, sequence: Sequence) -> None:
        if sequence.finished_seconds is not None:
            self._metrics.e2e.observe(sequence.finished_seconds - sequence.arrival_seconds)
        self._metrics.request_prompt.observe(sequence.prompt_tokens)
        self._metrics.request_generation.observe(sequence.output_tokens)
        if isinstance(sequence.payload, Ticket):
            sequence.payload.wake()

    def _gaps(self, seconds: float, count: int) -> None:
        self._metrics.inter_token.observe(seconds, count)
        self._metrics.time_per_output.observe(seconds, count)

    def _iteration(self, prompt_tokens: int, generated: int) -> None:
        self._metrics.iteration_tokens.observe(prompt_tokens + generated)
        if prompt_tokens:
            self._metrics.prompt_tokens.inc(prompt_tokens)
        self._metrics.generation_tokens.inc(generated)
