"""Signals from Prometheus: values with their age, or the reason why there is none.

The client library is synchronous: it runs in one thread of its own, with a time-out per request and one per round. A
round that hangs is abandoned; the next one reports that instead of queueing behind it.
"""

import asyncio
import concurrent.futures
import itertools
import math
import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import requests
from prometheus_api_client import PrometheusConnect
from prometheus_api_client.exceptions import PrometheusApiClientException
from requests.auth import AuthBase

from tierwise.adapters import queries
from tierwise.adapters.queries import Targets
from tierwise.core import signals as core_signals
from tierwise.core import usage
from tierwise.core.signals import ClassSignals, CounterReading, Missing, Reading, Signal, Signals, TierKey, TierSignals
from tierwise.errors import TierwiseError

Row: TypeAlias = dict[str, Any]
Answers: TypeAlias = dict[str, list[Row]]

# Requests whose tokens a provider may bill: answered 2xx, or given up by the client (Envoy logs 0).
BILLABLE_CODES = ("2", "0")
# The tier of requests that the gateway answered by itself.
NO_TIER = ("", "-")
# Outcomes that count against a tier: server errors (a lost upstream is a 503) and throttling.
FAILED_CODES = ("5", "429")
# A read of raw samples reaches this far back beyond the last one, to find the sample to count from.
LOOKBACK_SECONDS = 60
# One answer with raw samples spans at most this: after an outage the gap is read in slices.
SLICE_SECONDS = 300
# A ledger that lacks more than this is not filled from raw samples; what lies before stays unknown.
RECOVERY_SECONDS = 6 * 3600


class PrometheusError(TierwiseError):
    """Prometheus could not be asked, did not answer in time, or refused the query."""


class Connection(Protocol):
    """What is used of the client library."""

    def custom_query(self, query: str, params: Mapping[str, Any] | None = None) -> list[Row]:
        """Instant query."""
        ...


class _BearerFile(AuthBase):
    """A token out of a file, read for each request: projected tokens change every hour."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._file.read_text(encoding='utf-8').strip()}"
        return request


def connection(url: str, *, timeout_seconds: float = 3.0, token_file: Path | None = None) -> PrometheusConnect:
    """A client without retries (the library's own triple the time-out) that sends queries by POST."""
    auth = None if token_file is None else _BearerFile(token_file)
    return PrometheusConnect(url=url.rstrip("/"), auth=auth, retry=0, timeout=timeout_seconds, method="POST")


class Prometheus:
    """Asks one Prometheus for signals. Not safe for concurrent `read`s: the operator has one reader.

    Args:
        connection: the client.
        gateway_selector: label matchers that hold for the gateway's targets.
        window_seconds: range of rates and percentiles.
        round_timeout_seconds: for one read with all its queries.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        gateway_selector: str = queries.DEFAULT_GATEWAY_SELECTOR,
        window_seconds: int = 60,
        round_timeout_seconds: float = 10.0,
    ) -> None:
        self._connection = connection
        self._selector = gateway_selector
        self._window_seconds = window_seconds
        self._round_timeout_seconds = round_timeout_seconds
        self._thread = concurrent.futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix="prometheus")
        self._running: concurrent.futures.Future[Any] | None = None
        self._cursor = usage.Cursor()
        self._deadline = 0.0

    def close(self) -> None:
        """Stop the thread; a request in flight ends by its own time-out."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def forget_usage(self) -> None:
        """Start counting usage anew: another replica was deciding meanwhile."""
        self._cursor = usage.Cursor()

    async def read(self, targets: Targets, now: datetime) -> Signals:
        """All signals for the targets.

        Raises:
            PrometheusError: when any query fails; then nothing of this round is used, and usage is not moved on.
        """
        if targets.ledger_since:
            floor = now.timestamp() - RECOVERY_SECONDS
            since = {name: max(moment, floor) for name, moment in targets.ledger_since.items()}
            self._cursor = replace(self._cursor, since=since)
        answers = await self._in_thread(self._ask, targets)
        health = _by_q(answers["gateway_health"])
        gateways_up = _gateways_up(health)
        tiers, classes = _assemble(targets, answers, health, gateways_up)
        readings, cursor = await self._read_usage(targets, now)
        self._cursor = cursor
        return Signals(
            time=now,
            tiers=tiers,
            classes=classes,
            usage=readings,
            window_seconds=float(self._window_seconds),
            gateways_up=gateways_up,
        )

    async def _in_thread(self, function: Any, *arguments: Any) -> Any:  # noqa: ANN401 - passes through
        if self._running is not None and not self._running.done():
            raise PrometheusError("the previous query has not come back yet")
        self._deadline = time.monotonic() + self._round_timeout_seconds
        self._running = self._thread.submit(function, *arguments)
        try:
            async with asyncio.timeout(self._round_timeout_seconds):
                return await asyncio.wrap_future(self._running)
        except TimeoutError as error:
            raise PrometheusError(f"no answer within {self._round_timeout_seconds:g} s") from error

    def _query(self, query: str, moment: float | None = None) -> list[Row]:
        if time.monotonic() > self._deadline:
            raise PrometheusError("the round was abandoned")  # nobody waits any more: ask nothing further
        try:
            params = {"time": f"{moment:.3f}"} if moment is not None else None
            return list(self._connection.custom_query(query, params=params))
        except PrometheusApiClientException as error:
            raise PrometheusError(f"query refused: {error}"[:400]) from error
        except OSError as error:  # requests' own errors are such, and so is a token file that is gone
            raise PrometheusError(f"{type(error).__name__}: {error}"[:400]) from error
        except (KeyError, TypeError, ValueError) as error:
            raise PrometheusError(f"unexpected answer: {error!r}"[:400]) from error

    def _ask(self, targets: Targets) -> Answers:
        wanted = {"gateway_health": queries.gateway_health(self._selector, self._window_seconds)}
        wanted |= queries.gateway_queries(self._selector, self._window_seconds)
        wanted |= queries.engine_queries(targets.in_cluster.values(), self._window_seconds)
        return {name: self._query(query) for name, query in wanted.items()}

    async def _read_usage(self, targets: Targets, now: datetime) -> tuple[dict[TierKey, CounterReading], usage.Cursor]:
        end = now.timestamp()
        starts = [*self._cursor.since.values(), *([self._cursor.time] if self._cursor.time is not None else [])]
        start = max(min(starts, default=end), end - RECOVERY_SECONDS)
        cursor = self._cursor
        total: dict[TierKey, CounterReading] = {}
        edges = [start]
        while edges[-1] < end:
            edges.append(min(edges[-1] + SLICE_SECONDS, end))
        slices = list(itertools.pairwise(edges)) or [(end, end)]
        for begin, stop in slices:
            span = math.ceil(stop - begin) + LOOKBACK_SECONDS
            # The newest slice is asked at Prometheus' own "now": clocks may differ.
            rows = await self._in_thread(
                self._query,
                queries.usage_samples(self._selector, span),
                None if stop >= end else stop,
            )
            series, instances = parse_usage(rows)
            readings, cursor = usage.read(series, cursor, tiers=targets.tiers, instances=instances)
            for key, reading in readings.items():
                total[key] = usage.add(total[key], reading) if key in total else reading
        return total, cursor


def aged(previous: Signals, now: datetime, error: str) -> Signals:
    """The previous answer, now that Prometheus gives none: same values, older; usage is not repeated."""
    seconds = max(0.0, (now - previous.time).total_seconds())

    def age(signal: Signal) -> Signal:
        return Reading(signal.value, signal.age_seconds + seconds) if isinstance(signal, Reading) else signal

    tiers = {
        key: TierSignals(**{name: age(getattr(one, name)) for name in TierSignals.__slots__})
        for key, one in previous.tiers.items()
    }
    classes = {
        key: {
            tier: ClassSignals(**{name: age(getattr(one, name)) for name in ClassSignals.__slots__})
            for tier, one in by_tier.items()
        }
        for key, by_tier in previous.classes.items()
    }
    return replace(
        previous, time=now, tiers=tiers, classes=classes, usage={}, gateways_up=age(previous.gateways_up), error=error
    )


def number(row: Row) -> float | None:
    """The value of an instant-vector row; None when it is no finite number (they arrive as strings)."""
    try:
        value = float(row["value"][1])
    except (KeyError, IndexError, TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


def _by_q(rows: list[Row]) -> dict[str, float]:
    found = {str(row.get("metric", {}).get("q", "")): number(row) for row in rows}
    return {name: value for name, value in found.items() if value is not None}


def _gateways_up(health: Mapping[str, float]) -> Signal:
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
        self.rates = {
            name: _index(answers[name], *_CLASS_LABELS)
            for name in ("usage_requests", "prompt_tokens", "completion_tokens")
        }
        self.ttfb = _index(answers["class_ttfb_p95"], *_CLASS_LABELS)
        self.duration = _index(answers["class_duration_p95"], *_CLASS_LABELS)
        self.tier_ttfb = _index(answers["tier_ttfb_p95"], *_GATEWAY_TIER_LABELS)
        self.class_requests: dict[tuple[str, ...], float] = {}
        self.tier_requests: dict[tuple[str, str], float] = {}
        self.tier_failures: dict[tuple[str, str], float] = {}
        for (namespace, policy, name, tier, code), value in self.by_code.items():
            if value is None:
                continue
            full = (namespace, policy, name, tier)
            self.class_requests[full] = self.class_requests.get(full, 0.0) + value
            self.tier_requests[namespace, tier] = self.tier_requests.get((namespace, tier), 0.0) + value
            if code.startswith(FAILED_CODES):
                self.tier_failures[namespace, tier] = self.tier_failures.get((namespace, tier), 0.0) + value

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
            request_rate=self.rate(self.class_requests, key),
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
        rows = self.rates[tokens]
        found = [
            value for (namespace, _, _, tier), value in rows.items() if (namespace, tier) == key and value is not None
        ]
        return self.rate({key: sum(found)}, key)


def _assemble(
    targets: Targets, answers: Answers, health: Mapping[str, float], up: Signal
) -> tuple[dict[TierKey, TierSignals], dict[core_signals.ClassKey, dict[str, ClassSignals]]]:
    gateway = _Gateway(answers, health, up)
    engines = {name: _index(answers.get(name, []), *_TIER_LABELS) for name in (*_ENGINE_FIELDS, "engine_age")}
    tiers: dict[TierKey, TierSignals] = {}
    for key in sorted(targets.in_cluster):
        age = engines["engine_age"].get(key)
        fields = {name: _signal(engines[name], key, age, name) for name in _ENGINE_FIELDS}
        tiers[key] = TierSignals(
            request_rate=gateway.rate(gateway.tier_requests, key), error_rate=gateway.error_rate(key), **fields
        )
    for key in sorted(targets.external):
        tiers[key] = TierSignals(
            request_rate=gateway.rate(gateway.tier_requests, key),
            error_rate=gateway.error_rate(key),
            ttft_p95_seconds=gateway.milliseconds(gateway.tier_ttfb, key, "time to first byte"),
            prompt_token_rate=gateway.token_rate("prompt_tokens", key),
            generation_token_rate=gateway.token_rate("completion_tokens", key),
        )
    classes = {
        key: {tier: gateway.class_signals((*key, tier)) for tier in names}
        for key, names in sorted(targets.classes.items())
    }
    return tiers, classes


def parse_usage(rows: list[Row]) -> tuple[list[usage.CounterSeries], dict[str, tuple[float, float, float | None]]]:
    """Raw range-vector rows as counter series, and each gateway's first and newest sample and process start."""
    prefix = f"{queries.GATEWAY_PREFIX}_"
    series: list[usage.CounterSeries] = []
    seen: dict[str, tuple[float, float, float | None]] = {}
    for row in rows:
        metric = {str(name): str(value) for name, value in (row.get("metric") or {}).items()}
        samples = _samples(row)
        if not samples:
            continue
        name = metric.pop("__name__", "")
        instance = metric.get("instance", metric.get("pod", ""))
        first, newest, start = seen.get(instance, (samples[0][0], samples[-1][0], None))
        if name == queries.UPTIME:
            start = samples[-1][0] - samples[-1][1]
        seen[instance] = (min(first, samples[0][0]), max(newest, samples[-1][0]), start)
        quantity = queries.USAGE_COUNTERS.get(name.removeprefix(prefix)) if name.startswith(prefix) else None
        tier = metric.get("tierwise_tier", "")
        if quantity is None or tier in NO_TIER:
            continue
        if quantity == usage.REQUESTS and not metric.get("code", "").startswith(BILLABLE_CODES):
            continue
        identity = f"{name}{{{','.join(f'{key}={metric[key]}' for key in sorted(metric))}}}"
        series.append(
            usage.CounterSeries(quantity, metric.get("tierwise_namespace", ""), tier, identity, instance, samples)
        )
    return series, seen


def _samples(row: Row) -> list[usage.Sample]:
    found: list[usage.Sample] = []
    for pair in row.get("values") or ():
        try:
            time, value = float(pair[0]), float(pair[1])
        except (IndexError, TypeError, ValueError):
            continue
        if math.isfinite(value):
            found.append((time, value))
    return found
