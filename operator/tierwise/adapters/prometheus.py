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
from typing import Any, Protocol

import requests
from prometheus_api_client import PrometheusConnect
from prometheus_api_client.exceptions import PrometheusApiClientException
from requests.auth import AuthBase

from tierwise.adapters import answers, queries
from tierwise.adapters.answers import Answers, Row
from tierwise.adapters.queries import Targets
from tierwise.core import usage
from tierwise.core.signals import ClassSignals, CounterReading, Reading, Signal, Signals, TierKey, TierSignals
from tierwise.errors import TierwiseError

# A read of raw samples reaches this far back beyond the last one, to find the sample to count from.
LOOKBACK_SECONDS = 60
# One answer with raw samples spans at most this: after an outage the gap is read in slices, in several rounds where it
# is long, so that no round keeps the other signals waiting.
SLICE_SECONDS = 300
SLICES_PER_READ = 24
# A ledger that lacks more than this is not filled from raw samples; it charges a bound for what lies before.
RECOVERY_SECONDS = 24 * 3600
# How old the newest sample before a ledger's checkpoint may be: as long as Prometheus may have been gone by then.
BASELINE_SECONDS = 6 * 3600


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
        self._reached: float | None = None
        self._asked: float | None = None
        self._marks: list[float] = []
        self._deadline = 0.0

    def close(self) -> None:
        """Stop the thread; a request in flight ends by its own time-out."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def forget_usage(self) -> None:
        """Start counting usage anew: another replica was deciding meanwhile."""
        self._cursor = usage.Cursor()
        self._reached = self._asked = None

    async def read(self, targets: Targets, now: datetime) -> Signals:
        """All signals for the targets.

        Raises:
            PrometheusError: when any query fails; then nothing of this round is used, and usage is not moved on.
        """
        if targets.ledger_since:
            floor = now.timestamp() - RECOVERY_SECONDS
            since = {name: max(moments[0], floor) for name, moments in targets.ledger_since.items()}
            # Of several accounts of a namespace each goes on at its own moment.
            self._marks = sorted({moment for moments in targets.ledger_since.values() for moment in moments[1:]})
            self._cursor = replace(self._cursor, since=since)
        elif self._cursor.time is None and self._cursor.since:
            # On the way through a gap in which nobody scraped: what came into being meanwhile has no past there.
            begin = now.timestamp() if self._asked is None else self._asked
            new = {name: begin for name, _ in targets.tiers if name not in self._cursor.since}
            self._cursor = replace(self._cursor, since={**self._cursor.since, **new})
        self._asked = now.timestamp()
        found = await self._in_thread(self._ask, targets)
        health = answers.by_q(found["gateway_health"])
        gateways_up = answers.gateways_up(health)
        tiers, classes = answers.assemble(targets, found, health, gateways_up)
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
        """What came since the cursor, at most `SLICES_PER_READ` slices of it, and the next cursor.

        A slice that fails ends the read; what was read before it counts, unless it was the first.
        """
        end = now.timestamp()
        cursor = self._cursor
        starts = [*cursor.since.values(), *([cursor.time] if cursor.time is not None else [])]
        # Where nothing was scraped for hours, the next read goes on behind what was found empty.
        start = max(min(starts, default=end), end - RECOVERY_SECONDS, self._reached or 0.0)
        total: dict[TierKey, CounterReading] = {}
        edges = [start]
        marks = sorted({*self._marks, *targets.period_edges})
        while edges[-1] < end and len(edges) <= SLICES_PER_READ:
            following = [mark for mark in marks if mark > edges[-1]]
            edges.append(min(edges[-1] + SLICE_SECONDS, end, *following[:1]))
        slices = list(itertools.pairwise(edges)) or [(end, end)]
        if cursor.since and cursor.time is None:
            rows = await self._in_thread(self._query, queries.usage_before(self._selector, BASELINE_SECONDS), start)
            before = answers.parse_usage(rows)
            # A process shows all that it has counted: what it does not show was counted by the one before it.
            rows = await self._in_thread(self._query, queries.usage_samples(self._selector, SLICE_SECONDS), start)
            alive = answers.parse_usage(rows)
            shown = {one.identity for one in alive.series}
            kept = [one for one in before.series if one.identity in shown or one.instance not in alive.uptimes]
            cursor = usage.baseline(kept, before.uptimes, cursor)
        for begin, stop in slices:
            span = math.ceil(stop - begin) + LOOKBACK_SECONDS
            # The newest slice is asked at Prometheus' own "now": clocks may differ.
            moment = None if stop >= end else stop
            try:
                rows = await self._in_thread(self._query, queries.usage_samples(self._selector, span), moment)
            except PrometheusError:
                if not total:
                    raise
                break
            found = answers.parse_usage(rows)
            readings, cursor = usage.read(
                found.series, cursor, tiers=targets.tiers, instances=found.instances, uptimes=found.uptimes
            )
            for key, reading in readings.items():
                total[key] = usage.add(total[key], reading) if key in total else reading
            self._reached = stop if stop < end else None
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
