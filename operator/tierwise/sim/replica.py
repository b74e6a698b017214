"""The replica model: how fast one engine replica answers at a given load. Pure.

One replica with B sequences running at mean context `ctx` tokens needs `a + b*B + g*B*ctx/1000` ms per token; a prefill
of n thousand prompt tokens takes `p0 + p1*n + p2*n^2` ms and blocks decoding. The same parameters give two forms:

- iteration level (`decode_ms`, `prefill_ms`), which `tierwise.sim.batching` steps through;
- closed form (`work_seconds`, `inter_token_seconds`, `time_to_first_token_seconds`, `capacity`): with P prompt and D
  output tokens per request and L requests/s on one replica, a replica spends
  `w = (p1*P/1e3 + p2*P^2/1e6 + D*(b + g*(P + D/2)/1e3)) / 1e3` seconds of its time on a request, its utilisation is
  `rho = L*w`, and `ITL = a/(1 - rho)`, because the tokens in flight are `L*D*ITL` (Little's law).

The closed form leaves out p0 (as if prefills were batched without end; `prompts_per_prefill=1` adds it in full, and the
iteration level lies between the two) and the queue in front of prefill, so it is for load below saturation.
"""

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from tierwise.errors import TierwiseError

if TYPE_CHECKING:  # the engine, which runs once for each replica, needs no numpy
    import numpy as np
    from numpy.typing import NDArray

FloatsT = TypeVar("FloatsT", float, "NDArray[np.float64]")
"""One figure, or one of each request."""

MAX_UTILISATION = 0.9
"""Above this the closed form is not used for planning: its queue term is missing."""

MAX_BATCHED_TOKENS = 8192
"""Prompt tokens prefilled together in one iteration; vLLM's default `max_num_batched_tokens` for a server."""


class ReplicaModelError(TierwiseError):
    """A parameter or load that the replica model has no answer for."""


@dataclass(frozen=True, slots=True)
class ReplicaParams:
    """Latency parameters and limits of one engine replica.

    Attributes:
        a_ms: decode iteration with no sequence, ms.
        b_ms: added per running sequence, ms.
        g_ms: added per running sequence and thousand tokens of its context, ms.
        p0_ms: prefill iteration with no token, ms.
        p1_ms: added per thousand prompt tokens, ms.
        p2_ms: added per squared thousand prompt tokens of one sequence, ms.
        kv_tokens: tokens that the KV cache holds.
        max_sequences: sequences that run at once; vLLM's default `max_num_seqs` is 256.
    """

    a_ms: float
    b_ms: float
    g_ms: float
    p0_ms: float
    p1_ms: float
    p2_ms: float
    kv_tokens: int
    max_sequences: int = 256

    def __post_init__(self) -> None:
        times = (self.a_ms, self.b_ms, self.g_ms, self.p0_ms, self.p1_ms, self.p2_ms)
        if self.a_ms <= 0 or any(value < 0 or not math.isfinite(value) for value in times):
            raise ReplicaModelError(f"times of a replica must be finite, a > 0 and the others >= 0, not {times}")
        if self.kv_tokens < 1 or self.max_sequences < 1:
            raise ReplicaModelError("a replica needs room for at least one KV token and one sequence")

    def scaled(self, factor: float) -> "ReplicaParams":
        """The same replica with all times multiplied, such as a slower machine (factor > 1)."""
        return replace(
            self,
            a_ms=self.a_ms * factor,
            b_ms=self.b_ms * factor,
            g_ms=self.g_ms * factor,
            p0_ms=self.p0_ms * factor,
            p1_ms=self.p1_ms * factor,
            p2_ms=self.p2_ms * factor,
        )

    def decode_ms(self, sequences: int, context_tokens: int) -> float:
        """One decode iteration of a batch whose contexts sum to `context_tokens`, ms."""
        return self.a_ms + self.b_ms * sequences + self.g_ms * context_tokens / 1e3

    def prompt_ms(self, tokens: FloatsT) -> FloatsT:
        """What one prompt adds to a prefill, ms; of each prompt, of an array."""
        return self.p1_ms * tokens / 1e3 + self.p2_ms * tokens * tokens / 1e6

    def prefill_ms(self, *prompt_tokens: int) -> float:
        """One prefill iteration of several prompts, ms: attention is quadratic within each, the rest linear."""
        total = sum(prompt_tokens)
        squares = sum(tokens * tokens for tokens in prompt_tokens)
        return self.p0_ms + self.p1_ms * total / 1e3 + self.p2_ms * squares / 1e6


@dataclass(frozen=True, slots=True)
class Objective:
    """Latency that a request must not exceed; absent means no such limit.

    Attributes:
        ttft_seconds: time to the first token.
        inter_token_seconds: mean time between tokens of one request.
        latency_seconds: time to the last token.
    """

    ttft_seconds: float | None = None
    inter_token_seconds: float | None = None
    latency_seconds: float | None = None

    def met(self, ttft_seconds: float, inter_token_seconds: float | None, latency_seconds: float) -> bool:
        """Whether one served request met it; a request of one token has no time between tokens."""
        return (
            (self.ttft_seconds is None or ttft_seconds <= self.ttft_seconds)
            and (
                self.inter_token_seconds is None
                or inter_token_seconds is None
                or inter_token_seconds <= self.inter_token_seconds
            )
            and (self.latency_seconds is None or latency_seconds <= self.latency_seconds)
        )


@dataclass(frozen=True, slots=True)
class Mix:
    """Mean request of a load: the moments that the closed form needs.

    Attributes:
        prompt: mean prompt tokens.
        prompt_squared: mean of their squares.
        output: mean output tokens.
        output_context: mean over requests of output * (prompt + output/2): token positions read while decoding.
    """

    prompt: float
    prompt_squared: float
    output: float
    output_context: float

    @classmethod
    def of(cls, prompt: float, output: float) -> "Mix":
        """All requests alike."""
        return cls(prompt, prompt * prompt, output, output * (prompt + output / 2))


def work_seconds(params: ReplicaParams, mix: Mix, prompts_per_prefill: float = math.inf) -> float:
    """Replica-seconds that one mean request takes; `prompts_per_prefill` share the fixed part of a prefill."""
    prefill = (
        params.p0_ms / prompts_per_prefill + params.p1_ms * mix.prompt / 1e3 + params.p2_ms * mix.prompt_squared / 1e6
    )
    decode = mix.output * params.b_ms + params.g_ms * mix.output_context / 1e3
    return (prefill + decode) / 1e3


def utilisation(
    params: ReplicaParams, mix: Mix, rate_per_replica: float, prompts_per_prefill: float = math.inf
) -> float:
    """Share of a replica's time that depends on load, at `rate_per_replica` requests/s; 1 is saturation."""
    return rate_per_replica * work_seconds(params, mix, prompts_per_prefill)


def inter_token_seconds(params: ReplicaParams, rho: float) -> float:
    """Mean time between tokens at utilisation `rho`.

    Raises:
        ReplicaModelError: at `rho >= 1`: the queue grows without end.
    """
    if not 0 <= rho < 1:
        raise ReplicaModelError(f"no steady state at utilisation {rho:.3f}; it must be at least 0 and below 1")
    return params.a_ms / 1e3 / (1 - rho)


def time_to_first_token_seconds(
    params: ReplicaParams, rho: float, prompt_tokens: float, backlog_seconds: float = 0.0
) -> float:
    """Time to first token of a request with `prompt_tokens` at utilisation `rho`.

    Args:
        params: the replica.
        rho: utilisation.
        prompt_tokens: of this request; pass the class's 95th percentile for a 95th percentile.
        backlog_seconds: work that waits in front of it, in seconds of one replica.
    """
    prefill = params.p0_ms + params.prompt_ms(prompt_tokens)
    return prefill / 1e3 / (1 - rho) + inter_token_seconds(params, rho) + backlog_seconds


def running_sequences(params: ReplicaParams, mix: Mix, rate_per_replica: float) -> float:
    """Mean sequences that run on a replica, by Little's law."""
    rho = utilisation(params, mix, rate_per_replica)
    return rate_per_replica * mix.output * inter_token_seconds(params, rho)


@dataclass(frozen=True, slots=True)
class Capacity:
    """What one replica carries within an objective.

    Attributes:
        requests_per_second: largest steady rate; 0 when even an idle replica misses the objective.
        utilisation: rho at that rate.
        sequences: mean running sequences at that rate.
        binds: what limits: `inter_token`, `ttft`, `latency`, `sequences`, `kv_cache`, `utilisation` or `idle`.
    """

    requests_per_second: float
    utilisation: float
    sequences: float
    binds: str


def capacity(params: ReplicaParams, mix: Mix, objective: Objective, ttft_prompt_tokens: float) -> Capacity:
    """The largest load of one replica at which the objective still holds.

    Args:
        params: the replica.
        mix: the load's mean request.
        objective: latency limits.
        ttft_prompt_tokens: prompt at which time to first token must hold, usually the class's 95th percentile.
    """
    work = work_seconds(params, mix)
    base = params.a_ms / 1e3
    limits = {"utilisation": MAX_UTILISATION}
    if objective.inter_token_seconds is not None:
        limits["inter_token"] = 1 - base / objective.inter_token_seconds
    prefill = (params.p0_ms + params.prompt_ms(ttft_prompt_tokens)) / 1e3
    if objective.ttft_seconds is not None:
        limits["ttft"] = 1 - (prefill + base) / objective.ttft_seconds
    if objective.latency_seconds is not None:
        limits["latency"] = 1 - (prefill + base * max(1.0, mix.output)) / objective.latency_seconds
    if mix.output > 0 and work > 0:
        # rho/w * D * base/(1 - rho) <= sequences, solved for rho; both sides grow with rho.
        for name, sequences in (
            ("sequences", float(params.max_sequences)),
            ("kv_cache", params.kv_tokens / (mix.output_context / mix.output)),
        ):
            limits[name] = sequences * work / (mix.output * base + sequences * work)
    binds, rho = min(limits.items(), key=lambda item: item[1])
    if rho <= 0 or work <= 0:
        return Capacity(0.0, 0.0, 0.0, binds="idle")
    rate = rho / work
    return Capacity(rate, rho, rate * mix.output * base / (1 - rho), binds)
