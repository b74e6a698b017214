"""What Prometheus would answer, were its clock the injected one: raw samples as scraped from real gateways.

It stands in for `prometheus_api_client`, below the operator's own adapter: that one asks its own PromQL, and what it
asks is answered from the samples. Only the queries that the operator sends are known; any other is an error.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import aiohttp
from month_cluster import Pods
from month_wire import Tokens

from tierwise.adapters import queries
from tierwise.core.world import Key

LINE = re.compile(r"^(envoy_tierwise_[a-z_]+|envoy_server_uptime)\{([^}]*)\} ([0-9.e+]+)$", re.MULTILINE)
LABEL = re.compile(r'(\w+)="([^"]*)"')
Series: TypeAlias = tuple[str, tuple[tuple[str, str], ...]]
FIELDS = {"prompt_tokens": "prompt", "cached_prompt_tokens": "cached", "completion_tokens": "completion"}
TAKEN = {"arrivals": 1, "retries": 1, "saturated": -1}
SKIPPED = ("_bucket", "_sum", "_count")
WINDOW = re.compile(r"\[(\d+)s\]$")
KEPT_SECONDS = 7 * 3600
"""Samples that are older go; the operator reads at most six hours back."""


@dataclass(slots=True)
class Store:
    """Samples of gateways, and engines as they are now.

    Attributes:
        window_seconds: of rates.
        engines: in-cluster tiers, with the names of their engines' metrics.
        doubled: a defect: each gateway is there twice.
    """

    window_seconds: int
    engines: Mapping[Key, Pods]
    engine_queries: Mapping[str, str] = field(default_factory=dict)
    now: float = 0.0
    doubled: bool = False
    series: dict[Series, list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))
    scraped: dict[str, float] = field(default_factory=dict)

    async def scrape(self, http: aiohttp.ClientSession, instance: str, port: int, age_seconds: float) -> None:
        """One gateway, now. Its uptime is told in the injected clock, everything else is as the gateway says."""
        for where, value in (await _exposed(http, instance, port)).items():
            number = age_seconds if where[0] == queries.UPTIME else value
            samples = self.series[where]
            samples.append((self.now, number))
            if samples[0][0] < self.now - 2 * KEPT_SECONDS:
                del samples[: sum(at < self.now - KEPT_SECONDS for at, _ in samples)]
        self.scraped[instance] = self.now

    async def unseen(self, http: aiohttp.ClientSession, instance: str, port: int) -> dict[str, Tokens]:
        """What a gateway has counted since its last scrape, by tier; nobody is told but the bench."""
        found: dict[str, Tokens] = defaultdict(Tokens)
        for where, value in (await _exposed(http, instance, port)).items():
            name = FIELDS.get(where[0].removeprefix(f"{queries.GATEWAY_PREFIX}_"))
            if name is not None:
                before = self.series[where][-1][1] if where in self.series else 0.0
                tokens = found[dict(where[1])["tierwise_tier"]]
                setattr(tokens, name, getattr(tokens, name) + round(value - before))
        return found

    # What the operator's adapter uses of its client library ----------------------------------------------------------

    def custom_query(self, query: str, params: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        """Instant query."""
        moment = float(params["time"]) if params else self.now
        if query.startswith("{__name__=~"):
            return self._raw(query, moment)
        if query.startswith("last_over_time("):
            last = self._raw(query.removesuffix(")"), moment)
            return [{"metric": row["metric"], "value": [moment, row["values"][-1][1]]} for row in last]
        if query == queries.gateway_health(queries.DEFAULT_GATEWAY_SELECTOR, self.window_seconds):
            return self._health()
        for name, asked in queries.gateway_queries(queries.DEFAULT_GATEWAY_SELECTOR, self.window_seconds).items():
            if query == asked:
                return [] if name.endswith("_p95") else self._rates(name)
        for name, asked in self.engine_queries.items():
            if query == asked:
                return self._engine(name)
        raise AssertionError(f"not a query that is known: {query}")

    def _raw(self, query: str, moment: float) -> list[dict[str, Any]]:
        found = WINDOW.search(query)
        assert found is not None
        since = moment - int(found[1])
        names = query.split('"', 2)[1].split("|")
        rows = []
        for (name, labels), samples in self.series.items():
            values = [[at, str(value)] for at, value in samples if since < at <= moment]
            if name in names and values:
                rows.append({"metric": {"__name__": name, **dict(labels)}, "values": values})
        if self.doubled:
            rows += [{**row, "metric": {**row["metric"], "instance": f"{row['metric']['instance']}-b"}} for row in rows]
        return rows

    def _health(self) -> list[dict[str, Any]]:
        up = [at for at in self.scraped.values() if at == self.now]
        lost = [at for at in self.scraped.values() if self.now - self.window_seconds < at < self.now]
        rows = {"up": float(len(up)), "age": 0.0}
        if lost:
            rows["lost"] = float(len(lost))
        return [{"metric": {"q": name}, "value": [self.now, str(value)]} for name, value in rows.items()]

    def _rates(self, name: str) -> list[dict[str, Any]]:
        labels = ["tierwise_namespace", "tierwise_tier"]
        if name not in {"refused", "saturated"}:
            labels += ["tierwise_policy", "tierwise_class"]
        if name == "requests":
            labels += ["code"]
        signs = TAKEN if name == "taken" else {name: 1}
        sums: dict[tuple[tuple[str, str], ...], float] = defaultdict(float)
        for (full, known), samples in self.series.items():
            sign = signs.get(full.removeprefix(f"{queries.GATEWAY_PREFIX}_"))
            if sign is not None:
                by = tuple((label, value) for label, value in known if label in labels)
                sums[by] += sign * _increase(samples, self.now - self.window_seconds) / self.window_seconds
        return [{"metric": dict(by), "value": [self.now, str(value)]} for by, value in sums.items()]

    def _engine(self, name: str) -> list[dict[str, Any]]:
        say: dict[str, Callable[[Pods], float | None]] = {
            "running": lambda pods: pods.running,
            "waiting": lambda pods: pods.waiting,
            "prompt_token_rate": lambda pods: pods.prompts,
            "generation_token_rate": lambda pods: pods.outputs,
            "inter_token_mean_seconds": lambda pods: pods.gap if pods.outputs else None,
            "ready_replicas": lambda pods: float(pods.ready),
            "engine_age": lambda _: 1.0,
        }
        rows = []
        for key, pods in self.engines.items():
            value = say[name](pods) if name in say and pods.ready else None
            if value is not None:
                metric = {"namespace": key.namespace, "tierwise_tier": key.name}
                rows.append({"metric": metric, "value": [self.now, str(value)]})
        return rows


async def _exposed(http: aiohttp.ClientSession, instance: str, port: int) -> dict[Series, float]:
    """A gateway's counters, with the labels that scraping adds."""
    async with http.get(f"http://127.0.0.1:{port}/stats/prometheus") as response:
        text = await response.text()
    found = {}
    for name, labels, value in LINE.findall(text):
        if not name.endswith(SKIPPED):
            known = {**dict(LABEL.findall(labels)), "instance": instance, "tierwise_component": "gateway"}
            found[name, tuple(sorted(known.items()))] = float(value)
    return found


def _increase(samples: list[tuple[float, float]], since: float) -> float:
    """Since the last sample at or before `since`; a counter that fell was started anew. A new series started at 0."""
    before, total = 0.0, 0.0
    for at, value in samples:
        if at > since:
            total += value - before if value >= before else value
        before = value
    return total
