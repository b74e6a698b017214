"""An external provider's timing: a time to first token drawn from its distribution, then a steady speed.

Both at any load of ours.
"""

import heapq
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from tierwise.sim.batching import Hooks, Sequence
from tierwise.sim.profiles import ProviderProfile

_P95 = 1.6448536269514722
"""Standard normal quantile at 0.95."""


@dataclass(slots=True)
class ProviderClock:
    """Same interface as `Batcher`, but requests do not slow each other down.

    Attributes:
        profile: latency figures.
        random_source: seeded; draws one time to first token per request.
        hooks: callbacks.
        slow: factor on all times, > 0.
    """

    profile: ProviderProfile
    random_source: random.Random
    hooks: Hooks = field(default_factory=Hooks)
    slow: float = 1.0
    running: int = 0
    _now: float = 0.0
    _serial: int = 0
    _heap: list[tuple[float, int, Sequence]] = field(default_factory=list)
    _gap: dict[Sequence, float] = field(default_factory=dict)

    @property
    def waiting(self) -> int:
        """A provider shows no queue."""
        return 0

    @property
    def outstanding(self) -> int:
        """Requests inside."""
        return self.running

    @property
    def kv_usage(self) -> float:
        """A provider shows no cache."""
        return 0.0

    @property
    def next_boundary_seconds(self) -> float | None:
        """Time of the next first or last token; None when idle."""
        return self._heap[0][0] if self._heap else None

    @property
    def prefill_pending(self) -> bool:
        """Whether the next boundary is worth waking for exactly: always."""
        return True

    def submit(self, sequence: Sequence) -> None:
        """Start a request at its arrival."""
        sigma = math.log(self.profile.ttft_p95_seconds / self.profile.ttft_median_seconds) / _P95
        ttft = self.slow * self.profile.ttft_median_seconds * math.exp(sigma * self.random_source.gauss(0.0, 1.0))
        sequence.admitted_seconds = sequence.arrival_seconds
        self._gap[sequence] = self.slow / self.profile.tokens_per_second
        self.running += 1
        self._push(sequence.arrival_seconds + ttft, sequence)

    def _push(self, at_seconds: float, sequence: Sequence) -> None:
        self._serial += 1
        heapq.heappush(self._heap, (at_seconds, self._serial, sequence))

    def emitted(self, sequence: Sequence) -> int:
        """Tokens of a request that are out at the time of the last `advance`."""
        if sequence.first_token_seconds is None:
            return 0
        if sequence.finished_seconds is not None:
            return sequence.output_tokens
        # One part in 1e9 of slack: a token due exactly now counts.
        gaps = (self._now - sequence.first_token_seconds) / self._gap[sequence] + 1e-9
        return min(sequence.output_tokens, 1 + int(gaps))

    def abort(self, sequence: Sequence) -> None:
        """Drop a request."""
        if sequence.aborted or sequence.finished_seconds is not None:
            return
        sequence.aborted = True
        self.running -= 1
        self._gap.pop(sequence, None)

    def advance(self, until_seconds: float) -> None:
        """Let all first and last tokens out that are due by `until_seconds`."""
        self._now = max(self._now, until_seconds)
        while self._heap and self._heap[0][0] <= until_seconds:
            at, _, sequence = heapq.heappop(self._heap)
            if sequence.aborted:
                continue
            if sequence.first_token_seconds is None:
                sequence.first_token_seconds = at
                _call(self.hooks.first_token, sequence)
                if self.hooks.iteration is not None:
                    self.hooks.iteration(sequence.prompt_tokens, 1)
                if sequence.output_tokens > 1:
                    self._push(at + self._gap[sequence] * (sequence.output_tokens - 1), sequence)
                    continue
            sequence.finished_seconds = at
            gap = self._gap.pop(sequence)
            self.running -= 1
            if sequence.output_tokens > 1:
                if self.hooks.tokens is not None:
                    self.hooks.tokens(gap, sequence.output_tokens - 1)
                if self.hooks.iteration is not None:
                    self.hooks.iteration(0, sequence.output_tokens - 1)
            _call(self.hooks.finished, sequence)


def _call(hook: Callable[[Sequence], None] | None, sequence: Sequence) -> None:
    if hook is not None:
        hook(sequence)
