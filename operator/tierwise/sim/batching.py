"""Continuous batching, iteration by iteration, on the replica model. Pure: the caller owns the clock.

Between two calls of `advance` nothing happens; whoever submits gives the time. The engine simulator passes real time,
the offline simulator simulated time: one implementation for both.

Rules, each a simplification of vLLM that is stated in docs/simulator.md: waiting requests are admitted in order, at an
iteration's end, as long as the running limit, the KV cache and the token budget of one prefill allow; a prefill blocks
decoding and yields each admitted request's first token; a request reserves its prompt and output in the KV cache when
admitted, so nothing is ever preempted.
"""

from bisect import bisect_right
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from tierwise.sim.replica import MAX_BATCHED_TOKENS, ReplicaParams


@dataclass(slots=True, eq=False)
class Sequence:
    """One request inside a replica. Times are seconds on the caller's clock; None while unknown.

    Attributes:
        prompt_tokens: at least 1.
        output_tokens: tokens that it will generate, at least 1.
        arrival_seconds: when it was submitted.
        admitted_seconds: start of its prefill.
        first_token_seconds: end of its prefill.
        finished_seconds: end of the iteration with its last token.
        start_step: decode step count when its first token came out.
        aborted: the client went away.
        payload: the caller's own.
    """

    prompt_tokens: int
    output_tokens: int
    arrival_seconds: float
    admitted_seconds: float | None = None
    first_token_seconds: float | None = None
    finished_seconds: float | None = None
    start_step: int = 0
    aborted: bool = False
    payload: object = None

    @property
    def ttft_seconds(self) -> float | None:
        """Time to first token."""
        return None if self.first_token_seconds is None else self.first_token_seconds - self.arrival_seconds

    @property
    def inter_token_seconds(self) -> float | None:
        """Mean time between tokens; None before the end and for one token."""
        if self.finished_seconds is None or self.first_token_seconds is None or self.output_tokens < 2:
            return None
        return (self.finished_seconds - self.first_token_seconds) / (self.output_tokens - 1)


@dataclass(slots=True)
class Hooks:
    """Callbacks of a batcher; each may be left out. Called within `advance`, in order of simulated time."""

    first_token: Callable[[Sequence], None] | None = None
    finished: Callable[[Sequence], None] | None = None
    tokens: Callable[[float, int], None] | None = None
    """(seconds since the previous token, number of tokens that had this gap)."""
    iteration: Callable[[int, int], None] | None = None
    """(prompt tokens, generated tokens) of one iteration."""


@dataclass(slots=True)
class Batcher:
    """The scheduler of one replica.

    Attributes:
        params: the replica model.
        hooks: callbacks.
        max_batched_tokens: prompt tokens of one prefill iteration; a longer prompt goes alone.
        steps: decode iterations so far.
        context_tokens: tokens now in the KV cache.
    """

    params: ReplicaParams
    hooks: Hooks = field(default_factory=Hooks)
    max_batched_tokens: int = MAX_BATCHED_TOKENS
    steps: int = 0
    context_tokens: int = 0
    _waiting: deque[Sequence] = field(default_factory=deque)
    _prefilling: list[Sequence] = field(default_factory=list)
    _running: int = 0
    _reserved: int = 0
    # By decode step: sequences that end with it. By time of prefill: how many joined since the last decode iteration.
    _ends: dict[int, list[Sequence]] = field(default_factory=dict)
    _fresh: dict[float, int] = field(default_factory=dict)
    _boundary: float = 0.0
    _last_decode: float = 0.0
    _iteration_end: float | None = None

    @property
    def running(self) -> int:
        """Sequences in a batch: prefilling or decoding."""
        return self._running + len(self._prefilling)

    @property
    def waiting(self) -> int:
        """Sequences not yet admitted."""
        return len(self._waiting)

    @property
    def outstanding(self) -> int:
        """Sequences inside, in any state."""
        return self.running + self.waiting

    @property
    def kv_usage(self) -> float:
        """Share of the KV cache that holds tokens, 0 to 1."""
        return min(1.0, self.context_tokens / self.params.kv_tokens)

    @property
    def next_boundary_seconds(self) -> float | None:
        """End of the iteration under way; None when idle."""
        return self._iteration_end

    @property
    def prefill_pending(self) -> bool:
        """Whether a first token is due at the next boundary or is waiting for admission."""
        return bool(self._prefilling or self._waiting)

    def submit(self, sequence: Sequence) -> None:
        """Queue a sequence; `arrival_seconds` must not lie before the last `advance`."""
        self._waiting.append(sequence)
        if self._iteration_end is None:
            self._boundary = max(self._boundary, sequence.arrival_seconds)
            self._start_iteration()

    def emitted(self, sequence: Sequence) -> int:
        """Tokens of a sequence that are out."""
        if sequence.first_token_seconds is None:
            return 0
        if sequence.finished_seconds is not None:
            return sequence.output_tokens
        return min(sequence.output_tokens, 1 + self.steps - sequence.start_step)

    def abort(self, sequence: Sequence) -> None:
        """Drop a sequence; its place is free from the next iteration. Finished ones are left alone."""
        if sequence.aborted or sequence.finished_seconds is not None:
            return
        sequence.aborted = True
        if sequence.admitted_seconds is None:
            self._waiting.remove(sequence)
        elif sequence.first_token_seconds is not None:
            end = sequence.start_step + sequence.output_tokens - 1
            self._ends[end].remove(sequence)
            if not self._ends[end]:
                del self._ends[end]
            if sequence.start_step == self.steps:
                self._fresh[sequence.first_token_seconds] -= 1
            self._leave(sequence, sequence.prompt_tokens + self.emitted(sequence))
        # A sequence in the prefill under way leaves when that ends.

    def advance(self, until_seconds: float) -> None:
        """Run all iterations that end by `until_seconds`."""
        plain = self.hooks.tokens is None and self.hooks.iteration is None
        while self._iteration_end is not None and self._iteration_end <= until_seconds:
            if plain and not self._prefilling and not self._waiting:
                self._coast(until_seconds)
                if self._iteration_end > until_seconds:
                    return
            self._boundary = self._iteration_end
            if self._prefilling:
                self._end_prefill()
            else:
                self._end_decode()
            self._start_iteration()

    def _coast(self, until_seconds: float) -> None:
        """Skip decode iterations in which nothing joins or ends: the sum of their durations has a closed form."""
        if not self._running or self._iteration_end is None:
            return
        free = min(self._ends) - self.steps - 1
        if free < 1:
            return
        first = self.params.decode_ms(self._running, self.context_tokens) / 1e3
        growth = self.params.g_ms * self._running / 1e6
        end = self._iteration_end

        def ended(iterations: int) -> float:
            """Time at which so many iterations from now are over, the one under way included."""
            return end + (iterations - 1) * (first + growth * iterations / 2)

        done = free if ended(free) <= until_seconds else bisect_right(range(1, free + 1), until_seconds, key=ended)
        if done < 1:
            return
        self.steps += done
        self.context_tokens += done * self._running
        self._boundary = self._last_decode = ended(done)
        self._fresh.clear()
        self._start_iteration()

    def _start_iteration(self) -> None:
        self._admit()
        if self._prefilling:
            duration = self.params.prefill_ms(*(sequence.prompt_tokens for sequence in self._prefilling))
        elif self._running:
            duration = self.params.decode_ms(self._running, self.context_tokens)
        else:
            self._iteration_end = None
            return
        self._iteration_end = self._boundary + duration / 1e3

    def _admit(self) -> None:
        budget = self.max_batched_tokens
        while self._waiting and self._running + len(self._prefilling) < self.params.max_sequences:
            head = self._waiting[0]
            reservation = head.prompt_tokens + head.output_tokens
            alone = not self._running and not self._prefilling
            if (self._prefilling and head.prompt_tokens > budget) or (
                self._reserved + reservation > self.params.kv_tokens and not alone
            ):
                return
            self._waiting.popleft()
            head.admitted_seconds = self._boundary
            self._reserved += reservation
            budget -= head.prompt_tokens
            self._prefilling.append(head)

    def _end_prefill(self) -> None:
        batch, self._prefilling = self._prefilling, []
        if not self._running:
            self._last_decode = self._boundary
        generated = 0
        for sequence in batch:
            if sequence.aborted:
                self._reserved -= sequence.prompt_tokens + sequence.output_tokens
                continue
            generated += 1
            sequence.first_token_seconds = self._boundary
            sequence.start_step = self.steps
            self._running += 1
            self.context_tokens += sequence.prompt_tokens + 1
            if self.hooks.first_token is not None:
                self.hooks.first_token(sequence)
            if sequence.output_tokens == 1:
                self._finish(sequence)
                continue
            self._ends.setdefault(self.steps + sequence.output_tokens - 1, []).append(sequence)
            self._fresh[self._boundary] = self._fresh.get(self._boundary, 0) + 1
        if self.hooks.iteration is not None:
            self.hooks.iteration(sum(sequence.prompt_tokens for sequence in batch), generated)

    def _end_decode(self) -> None:
        self.steps += 1
        self.context_tokens += self._running
        if self.hooks.tokens is not None:
            old = self._running
            for since, count in self._fresh.items():
                if count:
                    self.hooks.tokens(self._boundary - since, count)
                    old -= count
            if old:
                self.hooks.tokens(self._boundary - self._last_decode, old)
        if self.hooks.iteration is not None:
            self.hooks.iteration(0, self._running)
        self._fresh.clear()
        self._last_decode = self._boundary
        for sequence in self._ends.pop(self.steps, ()):
            self._finish(sequence)

    def _finish(self, sequence: Sequence) -> None:
        sequence.finished_seconds = self._boundary
        self._leave(sequence, sequence.prompt_tokens + sequence.output_tokens)
        if self.hooks.finished is not None:
            self.hooks.finished(sequence)

    def _leave(self, sequence: Sequence, context: int) -> None:
        self._running -= 1
        self.context_tokens -= context
        self._reserved -= sequence.prompt_tokens + sequence.output_tokens
