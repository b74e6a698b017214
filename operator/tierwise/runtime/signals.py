"""Reads signals on its own cadence, so that neither planning nor the gateways ever wait for Prometheus."""

import asyncio
import random
from collections.abc import Callable
from datetime import datetime
from typing import Protocol

import structlog

from tierwise.adapters.prometheus import PrometheusError, aged
from tierwise.adapters.queries import Targets
from tierwise.core.signals import Missing, Signals
from tierwise.runtime.faults import FAULTS
from tierwise.runtime.store import Store
from tierwise.runtime.targets import targets_of
from tierwise.runtime.telemetry import Metrics

log = structlog.get_logger(__name__)


class Source(Protocol):
    """Where signals come from: `adapters.prometheus.Prometheus`."""

    async def read(self, targets: Targets, now: datetime) -> Signals:
        """All signals for the targets; raises PrometheusError."""
        ...

    def forget_usage(self) -> None:
        """Start counting usage anew."""
        ...


class SignalReader:
    """Keeps the store's signals current while this replica decides.

    Args:
        source: Prometheus; None: none is set, signals stay unknown.
        store, metrics: where to.
        poke: wakes the planner after each read.
        now: aware UTC clock.
        interval_seconds: between two reads.
    """

    def __init__(
        self,
        source: Source | None,
        store: Store,
        metrics: Metrics,
        *,
        poke: Callable[[], None],
        now: Callable[[], datetime],
        interval_seconds: float,
    ) -> None:
        self._source = source
        self._store = store
        self._metrics = metrics
        self._poke = poke
        self._now = now
        self._interval_seconds = interval_seconds
        self._last: Signals | None = None
        self._answered: datetime | None = None
        self._failing = False
        self._recover = True

    def start_over(self) -> None:
        """Another replica has decided meanwhile: count usage from the ledgers' checkpoints."""
        self._last = None
        self._recover = True
        self._store.forget_usage()
        if self._source is not None:
            self._source.forget_usage()

    async def run(self) -> None:
        """Read again and again, until cancelled."""
        if self._source is None:
            log.warning("no Prometheus is set: weights stay as they are, and budgets are estimated")
            return
        while True:
            await self.once()
            await asyncio.sleep(self._interval_seconds * (0.9 + 0.2 * random.random()))  # noqa: S311 - jitter

    async def once(self) -> None:
        """One read. A failure ages what is known; it never makes it zero."""
        if self._source is None:
            return
        now = self._now()
        try:
            targets = targets_of(self._store.snapshot(now), recover=self._recover)
            signals = await self._source.read(targets, now)
        except FAULTS as error:
            if not isinstance(error, PrometheusError):
                log.exception("signals could not be read")
            self._metrics.signal_reads.labels(outcome="error").inc()
            self._metrics.errors.labels(where="prometheus", error=type(error).__name__).inc()
            if not self._failing:
                log.warning("Prometheus gives no signals", error=str(error))
            self._failing = True
            unknown = Signals(time=now, gateways_up=Missing(str(error)), error=str(error))
            signals = aged(self._last, now, str(error)) if self._last is not None else unknown
        else:
            self._metrics.signal_reads.labels(outcome="ok").inc()
            if self._failing:
                log.info("Prometheus gives signals again")
            self._failing = False
            self._recover = False
            self._answered = now
        self._last = signals
        self._store.put_signals(signals)
        self._poke()

    def age_seconds(self) -> float | None:
        """Since Prometheus last answered; None: never."""
        return None if self._answered is None else (self._now() - self._answered).total_seconds()
