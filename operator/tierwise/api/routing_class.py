"""One class of a RoutingPolicy: which requests it takes, what it promises them, and which tiers may answer."""

from decimal import Decimal
from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field

from tierwise.api.base import ApiModel, Rule
from tierwise.api.scalars import Duration, Int, LossPercent, Percent, Score, Sensitivity
from tierwise.api.shapes import ATOMIC, SET, HeaderName, HeaderValue, Label, ModelName, TierName, unique


class Complexity(StrEnum):
    """How hard a class's requests are, for people and reports."""

    SIMPLE = "Simple"
    MODERATE = "Moderate"
    COMPLEX = "Complex"


class FallbackReason(StrEnum):
    """What makes the gateway try the next tier."""

    CONNECT_FAILURE = "ConnectFailure"
    SERVER_ERROR = "ServerError"
    RATE_LIMITED = "RateLimited"
    TIMEOUT = "Timeout"
    LOW_CONFIDENCE = "LowConfidence"
    SATURATED = "Saturated"


class HeaderMatch(ApiModel):
    """One header of the request. All three ways of comparing are case-sensitive."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "[has(self.value), has(self.prefix), has(self.pattern)].filter(x, x).size() == 1",
            "exactly one of value, prefix and pattern must be set in a header match: keep one",
            lambda h: sum(x is not None for x in (h.value, h.prefix, h.pattern)) == 1,
        ),
        Rule(
            "!has(self.pattern) || ''.matches(self.pattern) || !''.matches(self.pattern)",
            "pattern must be a regular expression in RE2 syntax: correct it",
            lambda _: True,  # Python's expressions are another dialect: only the API server can tell
            "pattern",
        ),
    )

    name: HeaderName
    """Name of the header in lower case."""
    value: HeaderValue | None = None
    """The header's whole value."""
    prefix: HeaderValue | None = None
    """What the header's value starts with."""
    pattern: Annotated[str | None, Field(min_length=1, max_length=256)] = None
    """Regular expression (RE2) that the whole value matches."""


class PromptTokens(ApiModel):
    """Size of the prompt, estimated from the body's length."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "has(self.min) || has(self.max)",
            "promptTokens states nothing: set min, max or both, or remove promptTokens",
            lambda p: p.min is not None or p.max is not None,
        ),
        Rule(
            "!has(self.min) || !has(self.max) || self.min <= self.max",
            "promptTokens.min is above promptTokens.max: no request would match; lower min or raise max",
            lambda p: p.min is None or p.max is None or p.min <= p.max,
            "min",
        ),
    )

    min: Annotated[Int | None, Field(ge=1, le=100_000_000)] = None
    """Fewest tokens."""
    max: Annotated[Int | None, Field(ge=1, le=100_000_000)] = None
    """Most tokens."""


class ClassMatch(ApiModel):
    """Which requests the class takes: those that meet every criterion that is set."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "has(self.headers) || has(self.promptTokens) || has(self.consumers) || has(self.models)",
            "match states no criterion: set headers, promptTokens, consumers or models, or remove match so that the "
            "class takes every request",
            lambda m: bool(m.headers or m.prompt_tokens or m.consumers or m.models),
        ),
    )

    headers: Annotated[
        tuple[HeaderMatch, ...] | None,
        Field(min_length=1, max_length=8, json_schema_extra=ATOMIC),
    ] = None
    """Headers, all of which must match."""
    prompt_tokens: PromptTokens | None = None
    """Size of the prompt."""
    consumers: Annotated[
        tuple[Label, ...] | None,
        Field(min_length=1, max_length=64, json_schema_extra=SET),
    ] = None
    """Consumers of this namespace, one of which must be the caller. Where gateways ask nobody who calls, the class
    takes no request."""
    models: Annotated[
        tuple[ModelName, ...] | None,
        Field(min_length=1, max_length=32, json_schema_extra=SET),
    ] = None
    """Requested models, out of the policy's, one of which must be asked for."""


class Objective(ApiModel):
    """What the class's requests are promised. A replica is full at the load where one of these would fail."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "has(self.ttftP95) || has(self.interTokenP95) || has(self.latencyP95)",
            "objective states nothing: set ttftP95, interTokenP95 or latencyP95, or remove objective",
            lambda o: (o.ttft_p95 or o.inter_token_p95 or o.latency_p95) is not None,
        ),
    )

    ttft_p95: Duration | None = None
    """95th percentile of the time to first token, such as "800ms"."""
    inter_token_p95: Duration | None = None
    """95th percentile over requests of the mean time between a request's tokens, such as "60ms"."""
    latency_p95: Duration | None = None
    """95th percentile of the whole request's time, such as "30s"."""


class FloorHolds(StrEnum):
    """Of what a quality floor is the mean."""

    ALWAYS = "Always"
    ON_AVERAGE = "OnAverage"


class QualityFloor(ApiModel):
    """The least quality that the class's mix of tiers may have, in the class's task."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "has(self.minScore) != has(self.maxLossPercent)",
            "exactly one of minScore and maxLossPercent must be set in quality: minScore for an absolute floor, "
            "maxLossPercent for a loss against "
            "spec.referenceTier; keep one",
            lambda q: (q.min_score is None) != (q.max_loss_percent is None),
        ),
    )

    min_score: Score | None = None
    """Least mean score of the mix, as a quoted decimal number from 0 to 1, such as "0.90"."""
    max_loss_percent: LossPercent | None = None
    """Most that the mix's mean score may lie below that of spec.referenceTier, in percentage points, such as "1"."""
    holds: FloorHolds = FloorHolds.ALWAYS
    """Always: every mix keeps the floor. OnAverage: all requests together keep it. Mixes are better while quality is
    cheap, and worse while it is dear, by no more than was earned before."""


class TierRef(ApiModel):
    """A tier that may answer the class's requests."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "(has(self.minWeight) ? self.minWeight : 0) <= (has(self.maxWeight) ? self.maxWeight : 100)",
            "minWeight is above maxWeight: lower minWeight or raise maxWeight",
            lambda t: t.min_weight <= t.max_weight,
            "minWeight",
        ),
        Rule(
            "!has(self.weight) || ((!has(self.minWeight) || self.minWeight <= self.weight) && "
            "(!has(self.maxWeight) || self.weight <= self.maxWeight))",
            "weight is outside minWeight..maxWeight: move it into the range or widen the range",
            lambda t: t.weight is None or t.min_weight <= t.weight <= t.max_weight,
            "weight",
        ),
    )

    name: TierName
    """Name of a ModelTier in this namespace."""
    weight: Percent | None = None
    """Percent of the class's requests to start from; with mode Manual, to stay at. Set for all tiers of the class or
    for none."""
    min_weight: Percent = 0
    """Least percent that the tier may get, such as a trickle that keeps its figures measured."""
    max_weight: Percent = 100
    """Most percent that the tier may get."""


ALL_FALLBACK_DEFAULTS = (FallbackReason.CONNECT_FAILURE, FallbackReason.SERVER_ERROR, FallbackReason.RATE_LIMITED)


class Fallback(ApiModel):
    """When and where the gateway tries again: before the first byte of an answer, on tiers cleared for the request."""

    when: Annotated[
        tuple[FallbackReason, ...],
        Field(min_length=1, max_length=6, json_schema_extra=SET),
        unique("fallback.when lists a reason twice: keep one"),
    ] = ALL_FALLBACK_DEFAULTS
    """What makes the gateway try the next tier: ConnectFailure (resets included), ServerError (5xx), RateLimited
    (429), Timeout, LowConfidence (the answer carries x-low-confidence: true), and Saturated (an in-cluster tier has as
    many requests in flight as its ready replicas carry within the objective, status.capacity.concurrentRequests each:
    another tier answers at once, instead of a queue; where a floor holds, only one that is no worse, and where it holds
    on average what it allows). Saturated includes ConnectFailure, ServerError and RateLimited: what is passed on must
    not fail where it could have waited."""
    order: Annotated[
        tuple[TierName, ...] | None,
        Field(min_length=1, max_length=8, json_schema_extra=ATOMIC),
    ] = None
    """Tiers to try, in order, out of the class's. When absent: the class's tiers, in their order; where `when` lists
    Saturated, those first that may take the requests of a saturated one."""
    attempts: Annotated[Int, Field(ge=1, le=5)] = 2
    """Tiers tried in all, the first one included. 1 switches fallback off. A saturated tier that passes a request on
    does not count; should the others fail, the request waits there."""
    timeout: Duration = Field(default="60s", validate_default=True)
    """Longest wait for the response's headers of one attempt, where `when` lists Timeout."""


class PrefixAffinity(ApiModel):
    """Requests that start alike go to the same replica, whose KV cache then holds that start."""

    characters: Annotated[Int, Field(ge=64, le=65_536)] = 1024
    """How many characters of the prompt make up the key at most. In a chat they end with the first message of a user,
    so that a conversation keeps its replica."""


class Affinity(ApiModel):
    """Which requests should reach the same tier and the same replica of it."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "has(self.header) != has(self.prefix)",
            "exactly one of header and prefix must be set in affinity: keep one",
            lambda a: (a.header is None) != (a.prefix is None),
        ),
    )

    header: HeaderName | None = None
    """Requests with the same value of this header, such as x-session-id."""
    prefix: PrefixAffinity | None = None
    """Requests whose prompts start alike."""


class Shadow(ApiModel):
    """Copies of requests to another tier, whose answers are measured and thrown away. They cost what they cost."""

    tier: TierName
    """Name of a ModelTier in this namespace; it needs the clearance that answering would need."""
    percent: Annotated[Int, Field(ge=1, le=100)]
    """Percent of the class's requests that are copied."""


class RequestLimits(ApiModel):
    """What one request of the class may ask for. More is refused, in words that name the limit."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "has(self.maxPromptTokens) || has(self.maxOutputTokens) || has(self.timeout)",
            "limits states nothing: set maxPromptTokens, maxOutputTokens or timeout, or remove limits",
            lambda r: (r.max_prompt_tokens or r.max_output_tokens or r.timeout) is not None,
        ),
    )

    max_prompt_tokens: Annotated[Int | None, Field(ge=1, le=100_000_000)] = None
    """Most tokens of the prompt, estimated from the body's length as in match.promptTokens. A longer one is refused
    with 400, `context_length_exceeded`."""
    max_output_tokens: Annotated[Int | None, Field(ge=1, le=100_000_000)] = None
    """Most tokens of an answer, of each choice where a request asks for several (`n`). A request that asks for more is
    refused with 400; one that states no number gets this one."""
    timeout: Duration | None = None
    """Longest time from the end of the request to the end of the answer, over all attempts, such as "2m". Then 504, or,
    in the midst of an answer or stream, its end. When absent: no request ends because it lasts long."""


def _prompts_fit(routing_class: "RoutingClass") -> bool:
    limits, match = routing_class.limits, routing_class.match
    most = limits.max_prompt_tokens if limits is not None else None
    least = match.prompt_tokens.min if match is not None and match.prompt_tokens is not None else None
    return most is None or least is None or least <= most


def _weights_complete(routing_class: "RoutingClass") -> bool:
    weights = [t.weight for t in routing_class.tiers if t.weight is not None]
    return not weights or (len(weights) == len(routing_class.tiers) and sum(weights) == 100)


class RoutingClass(ApiModel):
    """Requests of one kind, with what they are promised and the tiers that may answer them."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "self.tiers.all(t, self.tiers.exists_one(o, o.name == t.name))",
            "tiers lists a tier twice: keep one entry per tier",
            lambda c: len({t.name for t in c.tiers}) == len(c.tiers),
            "tiers",
        ),
        Rule(
            "!self.tiers.exists(t, has(t.weight)) || (self.tiers.all(t, has(t.weight)) && self.tiers.map(t, "
            "t.weight).sum() == 100)",
            "the weights of tiers must be set for all tiers and sum to 100, or for none: correct them or remove them "
            "all",
            _weights_complete,
            "tiers",
        ),
        Rule(
            "self.tiers.map(t, has(t.minWeight) ? t.minWeight : 0).sum() <= 100",
            "the minWeights of tiers sum to more than 100: lower them",
            lambda c: sum(t.min_weight for t in c.tiers) <= 100,
            "tiers",
        ),
        Rule(
            "self.tiers.map(t, has(t.maxWeight) ? t.maxWeight : 100).sum() >= 100",
            "the maxWeights of tiers sum to less than 100, so some requests would have no tier: raise them",
            lambda c: sum(t.max_weight for t in c.tiers) >= 100,
            "tiers",
        ),
        Rule(
            "!has(self.quality) || has(self.task)",
            "quality needs task: write the task whose scores the floor is about, as in quality[].task of the tiers",
            lambda c: c.quality is None or c.task is not None,
            "task",
        ),
        Rule(
            "!has(self.affinity) || !has(self.fallback) || !has(self.fallback.when) || "
            "!self.fallback.when.exists(w, w == 'Saturated')",
            "fallback.when lists Saturated and affinity is set: a session that must stay where its cache is can not go "
            "elsewhere; remove one of them",
            lambda c: c.affinity is None or FallbackReason.SATURATED not in c.fallback.when,
            "affinity",
        ),
        Rule(
            "!has(self.fallback) || !has(self.fallback.when) || !self.fallback.when.exists(w, w == 'Saturated') || "
            "!self.fallback.when.exists(w, w == 'LowConfidence')",
            "fallback.when lists Saturated and LowConfidence: a cascade goes from the weaker to the better tier, and a "
            "saturated one to any other; remove one of them",
            lambda c: not {FallbackReason.SATURATED, FallbackReason.LOW_CONFIDENCE} <= {*c.fallback.when},
            "fallback",
        ),
        Rule(
            "!has(self.fallback) || !has(self.fallback.order) || "
            "self.fallback.order.all(n, self.tiers.exists(t, t.name == n))",
            "fallback.order names a tier that the class does not list: add it to tiers or remove it from order",
            lambda c: not c.fallback.order or {*c.fallback.order} <= {t.name for t in c.tiers},
            "fallback",
        ),
        Rule(
            "!has(self.fallback) || !has(self.fallback.order) || "
            "self.fallback.order.all(n, self.fallback.order.exists_one(o, o == n))",
            "fallback.order names a tier twice: keep one",
            lambda c: not c.fallback.order or len({*c.fallback.order}) == len(c.fallback.order),
            "fallback",
        ),
        Rule(
            "!has(self.limits) || !has(self.limits.maxPromptTokens) || !has(self.match) || "
            "!has(self.match.promptTokens) || !has(self.match.promptTokens.min) || "
            "self.match.promptTokens.min <= self.limits.maxPromptTokens",
            "limits.maxPromptTokens is below match.promptTokens.min, so that every request would be refused: raise "
            "maxPromptTokens or lower min",
            _prompts_fit,
            "limits",
        ),
    )

    name: Label
    """Name of the class, unique in the policy; shows in metrics, status and budgets."""
    match: ClassMatch | None = None
    """Which requests the class takes. Only the last class may leave it out: it then takes what no other class took."""
    sensitivity: Sensitivity | None = None
    """Sensitivity of the class's requests, at least the policy's: Public, Internal, Confidential or Restricted. When
    absent: the policy's. The request's header may raise it, nothing lowers it."""
    complexity: Complexity | None = None
    """How hard the requests are: Simple, Moderate or Complex. For reports; decisions rest on task and quality."""
    task: Label | None = None
    """The task whose quality scores count, by the name that tiers use in `quality[].task`. Required with `quality`."""
    objective: Objective | None = None
    """Latency that the requests are promised."""
    quality: QualityFloor | None = None
    """The least quality of the mix of tiers. Tiers of unknown quality can not satisfy a floor."""
    tiers: Annotated[tuple[TierRef, ...], Field(min_length=1, max_length=8, json_schema_extra=ATOMIC)]
    """Tiers that may answer, in order of preference for fallback."""
    fallback: Fallback = Fallback()
    """When and where the gateway tries again."""
    limits: RequestLimits | None = None
    """What one request may ask for: size of the prompt, tokens of the answer, time."""
    affinity: Affinity | None = None
    """Which requests should reach the same tier, and the same replica of it. When absent: a tier by weight, and its
    least busy replica. When weights move, about as many percent of the sessions do."""
    shadow: Shadow | None = None
    """Copies of requests to another tier, for measurement: clients never see its answers. What it costs counts in
    budgets. When the tier does not exist or is not cleared, nothing is copied (condition ShadowInactive)."""

    def tier(self, name: str) -> TierRef | None:
        """The reference to a tier, None when the class does not list it."""
        return next((t for t in self.tiers if t.name == name), None)

    def starting_weights(self) -> dict[str, Decimal]:
        """Percent of each tier to start from: as written, or as the bounds allow, preferring the first listed."""
        if all(t.weight is not None for t in self.tiers):
            return {t.name: Decimal(t.weight or 0) for t in self.tiers}
        weights = {t.name: t.min_weight for t in self.tiers}
        for ref in self.tiers:
            weights[ref.name] += min(ref.max_weight - ref.min_weight, 100 - sum(weights.values()))
        return {name: Decimal(weight) for name, weight in weights.items()}
