"""What Prometheus answered, as signals. Pure: rows in, typed values with their age or the reason for none out."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from tierwise.adapters import queries
from tierwise.adapters.queries import Targets
from tierwise.core import usage
from tierwise.core.signals import ClassKey, ClassSignals, Missing, Origin, Reading, Signal, TierKey, TierSignals

Row: TypeAlias = dict[str, Any]
Answers: TypeAlias = dict[str, list[Row]]

# Requests whose tokens a provider may bill: answered 2xx, or given up by the client (Envoy logs 0).
BILLABLE_CODES = ("2", "0")
# Labels that gateways set besides those that begin with `tierwise_`.
_COUNTED_BY = frozenset({"code", "reason"})
# The tier of requests that the gateway answered by itself.
NO_TIER = ("", "-")
# Outcomes that count against a tier: server errors (a lost upstream is a 503) and throttling.
FAILED_CODES = ("5", "429")


def number(row: Row) -> float | None:
    """The value of an instant-vector row; None when it is no finite number (they arrive as strings)."""
    try:
        value = float(row["value"][1])
    except (KeyError, IndexError, TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


def by_q(rows: list[Row]) -> dict[str, float]:
    """Values that a query told apart by the label `q`; what is no finite number is absent."""
    found = {str(row.get("metric", {}).get("q", "")): number(row) for row in rows}
    return {name: value for name, value in found.items() if value is not None}


def gateways_up(health: Mapping[str, float]) -> Signal:
    """Gateways whose scrape succeeded, and how old the oldest of their newest scrapes is."""
    if "up" not in health:
        return Missing("no gateway target is known to Prometheus")
    if "age" not in health:
        return Missing("no gateway target could be scraped")
    return Reading(health["up"], max(0.0, health["age"]))


def _signal(rows: Mapping[tuple[str, ...], float | None], key: tuple[str, ...], age: float | None, what: str) -> Signal:
    if key not in rows:
        return Missing(f"no {what} in Prometheus")
    value = rows[key]
    if value is None:
        return Missing(f"{what}: not a number (no observations in the window)")
    if age is None:
        return Missing(f"{what}: age unknown")
    return Reading(value, max(0.0, age))


def _index(rows: list[Row], *labels: str) -> dict[tuple[str, ...], float | None]:
    return {tuple(str(row.get("metric", {}).get(label, "")) for label in labels): number(row) for row in rows}


def _known(rows: Mapping[tuple[str, ...], float | None]) -> dict[tuple[str, ...], float]:
    return {key: value for key, value in rows.items() if value is not None}


_TIER_LABELS = ("namespace", "tierwise_tier")
_GATEWAY_TIER_LABELS = ("tierwise_namespace", "tierwise_tier")
_CLASS_LABELS = ("tierwise_namespace", "tierwise_policy", "tierwise_class", "tierwise_tier")
_ENGINE_FIELDS = (
    "running",
    "waiting",
    "kv_cache_usage",
    "prompt_token_rate",
    "generation_token_rate",
    "ttft_p95_seconds",
    "inter_token_p95_seconds",
    "inter_token_mean_seconds",
    "ready_replicas",
)


class _Gateway:
    """The gateway's answers, with what the absence of a series means."""

    def __init__(self, answers: Answers, health: Mapping[str, float], up: Signal) -> None:
        self.age = up.age_seconds if isinstance(up, Reading) and up.value > 0 else None
        self.blind = ""
        if isinstance(up, Missing):
            self.blind = up.reason
        elif up.value <= 0:
            self.blind = "no gateway target could be scraped"
        elif health.get("lost", 0.0) > 0:
            self.blind = f"{health['lost']:.0f} gateway(s) stopped answering scrapes within the window"
        self.by_code = _index(answers["requests"], *_CLASS_LABELS, "code")
        self.arrivals = _index(answers["arrivals"], *_CLASS_LABELS)
        self.peaks = _index(answers.get("peaks", []), *_CLASS_LABELS)
        self.taken_peaks = _index(answers.get("taken_peaks", []), *_CLASS_LABELS)
        self.taken = _known(_index(answers["taken"], *_CLASS_LABELS))
        self.rates = {
            name: _index(answers[name], *_CLASS_LABELS)
            for name in ("usage_requests", "prompt_tokens", "completion_tokens")
        }
        self.ttfb = _index(answers["class_ttfb_p95"], *_CLASS_LABELS)
        self.duration = _index(answers["class_duration_p95"], *_CLASS_LABELS)
        self.refused = _known(_index(answers["refused"], *_GATEWAY_TIER_LABELS))
        self.saturated = _known(_index(answers["saturated"], *_GATEWAY_TIER_LABELS))
        self.tier_ttfb = _index(answers["tier_ttfb_p95"], *_GATEWAY_TIER_LABELS)
        self.class_requests: dict[tuple[str, ...], float] = {}
        self.tier_requests: dict[tuple[str, str], float] = {}
        self.tier_failures: dict[tuple[str, str], float] = {}
        self.tier_answers: dict[tuple[str, str], float] = {}
        for (namespace, policy, name, tier, code), value in self.by_code.items():
            if value is None:
                continue
            full = (namespace, policy, name, tier)
            self.class_requests[full] = self.class_requests.get(full, 0.0) + value
            self.tier_requests[namespace, tier] = self.tier_requests.get((namespace, tier), 0.0) + value
            if code.startswith(FAILED_CODES):
                self.tier_failures[namespace, tier] = self.tier_failures.get((namespace, tier), 0.0) + value
            if code.startswith("2"):
                self.tier_answers[namespace, tier] = self.tier_answers.get((namespace, tier), 0.0) + value

        # Demand is what arrives; what ends lags by an answer's length, and stands in where nothing else was counted.
        self.class_arrivals = self.class_requests | _known(self.arrivals)

    def rate(self, rates: Mapping[Any, float], key: tuple[str, ...]) -> Signal:
        """Requests/s; a measured zero when every gateway was scraped and none has the series."""
        if self.blind or self.age is None:
            return Missing(self.blind or "gateway not scraped")
        return Reading(rates.get(key, 0.0), max(0.0, self.age))

    def mean(self, tokens: str, key: tuple[str, ...]) -> Signal:
        """Tokens per request that reported usage."""
        requests_rate = self.rates["usage_requests"].get(key)
        tokens_rate = self.rates[tokens].get(key)
        if self.age is None:
            return Missing(self.blind)
        if not requests_rate or tokens_rate is None:
            return Missing("no request with usage in the window")
        return Reading(tokens_rate / requests_rate, self.age)

    def milliseconds(self, rows: Mapping[tuple[str, ...], float | None], key: tuple[str, ...], what: str) -> Signal:
        """A percentile of the gateway, in seconds."""
        found = _signal(rows, key, self.age, what)
        return Reading(found.value / 1000.0, found.age_seconds) if isinstance(found, Reading) else found

    def class_signals(self, key: tuple[str, ...]) -> ClassSignals:
        """One class on one tier."""
        return ClassSignals(
            request_rate=self.rate(self.class_arrivals, key),
            peak_rate=_signal(self.peaks, key, self.age, "requests/s in the busiest ten seconds"),
            taken_rate=self.rate(self.taken, key),
            taken_peak_rate=_signal(self.taken_peaks, key, self.age, "requests/s taken in the busiest ten seconds"),
            prompt_tokens=self.mean("prompt_tokens", key),
            completion_tokens=self.mean("completion_tokens", key),
            ttfb_p95_seconds=self.milliseconds(self.ttfb, key, "time to first byte"),
            latency_p95_seconds=self.milliseconds(self.duration, key, "request duration"),
        )

    def error_rate(self, key: TierKey) -> Signal:
        """Share of failures among the tier's requests."""
        total = self.rate(self.tier_requests, key)
        if isinstance(total, Missing):
            return total
        if total.value <= 0:
            return Missing("no requests in the window")
        return Reading(min(1.0, self.tier_failures.get(key, 0.0) / total.value), total.age_seconds)

    def token_rate(self, tokens: str, key: TierKey) -> Signal:
        """Tokens/s of a tier over all classes, for tiers whose engine cannot be asked."""
        if self.tier_answers.get(key, 0.0) > 0 and not self._sum("usage_requests", key):
            return Missing("no answer in the window reported usage")
        return self.rate({key: self._sum(tokens, key)}, key)

    def _sum(self, name: str, key: TierKey) -> float:
        return sum(
            value
            for (namespace, _, _, tier), value in self.rates[name].items()
            if (namespace, tier) == key and value is not None
        )


def assemble(
    targets: Targets, answers: Answers, health: Mapping[str, float], up: Signal
) -> tuple[dict[TierKey, TierSignals], dict[ClassKey, dict[str, ClassSignals]]]:
    """Signals of all tiers and classes."""
    gateway = _Gateway(answers, health, up)
    engines = {name: _index(answers.get(name, []), *_TIER_LABELS) for name in (*_ENGINE_FIELDS, "engine_age")}
    tiers: dict[TierKey, TierSignals] = {}
    for key in sorted(targets.in_cluster):
        age = engines["engine_age"].get(key)
        fields = {name: _signal(engines[name], key, age, name) for name in _ENGINE_FIELDS}
        tiers[key] = TierSignals(
            request_rate=gateway.rate(gateway.tier_requests, key),
            error_rate=gateway.error_rate(key),
            passed_rate=gateway.rate(gateway.saturated, key),
            **fields,
        )
    for key in sorted(targets.external):
        tiers[key] = TierSignals(
            request_rate=gateway.rate(gateway.tier_requests, key),
            error_rate=gateway.error_rate(key),
            answer_rate=gateway.rate(gateway.tier_answers, key),
            refused_rate=gateway.rate(gateway.refused, key),
            ttft_p95_seconds=gateway.milliseconds(gateway.tier_ttfb, key, "time to first byte"),
            prompt_token_rate=gateway.token_rate("prompt_tokens", key),
            generation_token_rate=gateway.token_rate("completion_tokens", key),
        )
    classes = {
        key: {tier: gateway.class_signals((*key, tier)) for tier in names}
        for key, names in sorted(targets.classes.items())
    }
    return tiers, classes


@dataclass(frozen=True, slots=True)
class UsageRows:
    """Raw samples of the gateways' counters.

    Attributes:
        series: counters that the ledger reads.
        instances: gateway -> its first and newest sample and the start of its process, Unix seconds.
        uptimes: gateway -> samples of its uptime, seconds.
    """

    series: list[usage.CounterSeries]
    instances: dict[str, tuple[float, float, float | None]]
    uptimes: dict[str, list[usage.Sample]]


def parse_usage(rows: list[Row]) -> UsageRows:
    """Raw range-vector rows as counter series, each once however many scrape jobs found its gateway."""
    prefix = f"{queries.GATEWAY_PREFIX}_"
    series: dict[str, usage.CounterSeries] = {}
    seen: dict[str, tuple[float, float, float | None]] = {}
    uptimes: dict[str, list[usage.Sample]] = {}
    for row in rows:
        metric = {str(name): str(value) for name, value in (row.get("metric") or {}).items()}
        samples = _samples(row)
        if not samples:
            continue
        name = metric.pop("__name__", "")
        instance = "/".join(metric[label] for label in ("pod", "instance") if label in metric)
        first, newest, start = seen.get(instance, (samples[0][0], samples[-1][0], None))
        if name == queries.UPTIME:
            uptimes[instance] = sorted({*uptimes.get(instance, []), *samples})
            start = uptimes[instance][-1][0] - uptimes[instance][-1][1]
        seen[instance] = (min(first, samples[0][0]), max(newest, samples[-1][0]), start)
        quantity = queries.USAGE_COUNTERS.get(name.removeprefix(prefix)) if name.startswith(prefix) else None
        tier = metric.get("tierwise_tier", "")
        if quantity is None or tier in NO_TIER:
            continue
        if quantity == usage.REQUESTS and not metric.get("code", "").startswith(BILLABLE_CODES):
            continue
        told = {key: value for key, value in metric.items() if key.startswith("tierwise_") or key in _COUNTED_BY}
        identity = f"{name}{{{','.join(f'{key}={told[key]}' for key in sorted(told))}}}@{instance}"
        if identity in series:
            samples = sorted({*series[identity].samples, *samples})
        origin = _origin(metric, shadow=name.startswith(f"{prefix}shadow_"))
        namespace = metric.get("tierwise_namespace", "")
        series[identity] = usage.CounterSeries(quantity, namespace, tier, identity, instance, samples, origin)
    return UsageRows(list(series.values()), seen, uptimes)


def _origin(metric: Mapping[str, str], *, shadow: bool) -> Origin:
    def label(name: str) -> str:
        value = metric.get(f"tierwise_{name}", "")
        return "" if value == "-" else value

    return Origin(label("policy"), label("class"), label("consumer"), "shadow" if shadow else "")


def _samples(row: Row) -> list[usage.Sample]:
    """Of a range vector, or the one of an instant vector."""
    found: list[usage.Sample] = []
    pairs = row.get("values") or ([row["value"]] if row.get("value") else [])
    for pair in pairs:
        try:
            time, value = float(pair[0]), float(pair[1])
        except (IndexError, TypeError, ValueError):
            continue
        if math.isfinite(value):
            found.append((time, value))
    return found
