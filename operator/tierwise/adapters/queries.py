"""What is asked of Prometheus: one query per quantity over all namespaces, never one per tier.

Gateway metrics come from the access-log statistics that `render.envoy` configures; engine metrics have the engine's own
names, and their Pods carry the labels `namespace` and `tierwise_tier` (the chart's scrape rules set them).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from tierwise.core.signals import ClassKey, TierKey

GATEWAY_PREFIX = "envoy_tierwise"
DEFAULT_GATEWAY_SELECTOR = 'tierwise_component="gateway"'

# Counters that the ledger reads raw: exposition name (after the prefix) -> quantity of core.usage.
USAGE_COUNTERS: dict[str, str] = {
    "requests": "requests",
    "usage_requests": "requests_with_usage",
    "prompt_tokens": "input_tokens",
    "cached_prompt_tokens": "cached_input_tokens",
    "completion_tokens": "output_tokens",
    "estimated_attempts": "estimated_attempts",
    "estimated_prompt_tokens": "estimated_input_tokens",
    "estimated_completion_tokens": "estimated_output_tokens",
    "unbounded_attempts": "unbounded_attempts",
}
# Copies of requests are no demand, and no part of what a policy's answers cost, but the shadow tier has to be paid.
USAGE_COUNTERS |= {f"shadow_{name}": quantity for name, quantity in USAGE_COUNTERS.items()}
UPTIME = "envoy_server_uptime"

_BY_TIER = "namespace, tierwise_tier"
_BY_CLASS = "tierwise_namespace, tierwise_policy, tierwise_class, tierwise_tier"
_BY_GATEWAY_TIER = "tierwise_namespace, tierwise_tier"


@dataclass(frozen=True, slots=True)
class EngineMetrics:
    """Names of an engine's metrics as Prometheus has them; the first of several that has data counts, none is unknown.

    Attributes:
        running, waiting: gauges, requests.
        kv_cache_usage: gauge, 0 to 1.
        prompt_tokens, generation_tokens: counters.
        ttft, inter_token: histograms in seconds, without `_bucket`.
    """

    running: tuple[str, ...] = ()
    waiting: tuple[str, ...] = ()
    kv_cache_usage: tuple[str, ...] = ()
    prompt_tokens: tuple[str, ...] = ()
    generation_tokens: tuple[str, ...] = ()
    ttft: tuple[str, ...] = ()
    inter_token: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Targets:
    """Whose signals are wanted.

    Attributes:
        in_cluster: tiers that Tierwise runs, with their engine's metric names.
        external: tiers of providers.
        classes: (namespace, policy, class) -> its tiers.
        ledger_since: namespace -> from when its ledgers lack usage, Unix seconds, ascending: each of these moments
            parts two readings. Only after a start, else absent.
        period_edges: where budgets' periods begin and end, Unix seconds: what is counted on each side is told apart.
    """

    in_cluster: Mapping[TierKey, EngineMetrics] = field(default_factory=dict)
    external: frozenset[TierKey] = frozenset()
    classes: Mapping[ClassKey, tuple[str, ...]] = field(default_factory=dict)
    ledger_since: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    period_edges: frozenset[float] = frozenset()

    @property
    def tiers(self) -> frozenset[TierKey]:
        """All tiers."""
        return self.external | frozenset(self.in_cluster)


def _names(engines: Iterable[EngineMetrics], quantity: str) -> list[str]:
    """All names of a quantity in the fleet, preferred ones first, each once."""
    found: dict[str, None] = {}
    for engine in sorted(engines, key=repr):
        for name in getattr(engine, quantity):
            found.setdefault(name, None)
    return list(found)


def _first_of(names: Iterable[str], template: str) -> str:
    """One expression per name joined by `or`: per tier, the first name that has data.

    A regular expression over names would count an engine twice that exposes an old and a new name, and `rate()` refuses
    it.
    """
    return " or ".join(template.replace("$", name) for name in names)


def engine_queries(engines: Iterable[EngineMetrics], window_seconds: int) -> dict[str, str]:
    """Field of TierSignals -> PromQL; `engine_age` is the age in seconds of the oldest sample that counts."""
    engines = list(engines)
    window = f"{window_seconds}s"
    own = 'tierwise_tier!=""'
    templates = {
        "running": ("running", f"sum by ({_BY_TIER}) (${{{own}}})"),
        "waiting": ("waiting", f"sum by ({_BY_TIER}) (${{{own}}})"),
        "kv_cache_usage": ("kv_cache_usage", f"avg by ({_BY_TIER}) (${{{own}}})"),
        "prompt_token_rate": ("prompt_tokens", f"sum by ({_BY_TIER}) (rate(${{{own}}}[{window}]))"),
        "generation_token_rate": ("generation_tokens", f"sum by ({_BY_TIER}) (rate(${{{own}}}[{window}]))"),
        "ttft_p95_seconds": (
            "ttft",
            f"histogram_quantile(0.95, sum by ({_BY_TIER}, le) (rate($_bucket{{{own}}}[{window}])))",
        ),
        "inter_token_p95_seconds": (
            "inter_token",
            f"histogram_quantile(0.95, sum by ({_BY_TIER}, le) (rate($_bucket{{{own}}}[{window}])))",
        ),
        "inter_token_mean_seconds": (
            "inter_token",
            (
                f"sum by ({_BY_TIER}) (rate($_sum{{{own}}}[{window}])) / "
                f"sum by ({_BY_TIER}) (rate($_count{{{own}}}[{window}]))"
            ),
        ),
        "ready_replicas": ("running", f"count by ({_BY_TIER}) (${{{own}}})"),
        "engine_age": ("running", f"time() - min by ({_BY_TIER}) (timestamp(${{{own}}}))"),
    }
    queries: dict[str, str] = {}
    for quantity, (source, template) in templates.items():
        names = _names(engines, source)
        if names:
            queries[quantity] = _first_of(names, template)
    return queries


def gateway_queries(selector: str, window_seconds: int) -> dict[str, str]:
    """Name -> PromQL over the gateway's counters and histograms (milliseconds)."""
    window = f"{window_seconds}s"

    def rate(metric: str, by: str) -> str:
        return f"sum by ({by}) (rate({GATEWAY_PREFIX}_{metric}{{{selector}}}[{window}]))"

    def peak(metric: str, by: str) -> str:
        return f"sum by ({by}) (rate({GATEWAY_PREFIX}_{metric}{{{selector}}}[10s]))"

    def taken(span: str) -> str:
        """Attempts/s that a tier took: those that went to it, less those that it passed on. Any may have no series."""
        signs = {"arrivals": "", "retries": "", "saturated": "-"}
        # Told apart by a label, for `or` keeps one of two that have the same.
        parts = (
            f'label_replace({sign}rate({GATEWAY_PREFIX}_{metric}{{{selector}}}[{span}]), "counter", "{metric}", "", "")'
            for metric, sign in signs.items()
        )
        return f"sum by ({_BY_CLASS}) ({' or '.join(parts)})"

    def p95(metric: str, by: str) -> str:
        return f"histogram_quantile(0.95, {rate(f'{metric}_bucket', f'{by}, le')})"

    return {
        "arrivals": rate("arrivals", _BY_CLASS),
        # Where gateways are scraped more seldom than every five seconds it has no answer: then nothing is known of it.
        "peaks": f"max_over_time({peak('arrivals', _BY_CLASS)}[{window}:5s])",
        "taken": taken(window),
        "taken_peaks": f"max_over_time({taken('10s')}[{window}:5s])",
        "refused": rate("refused", _BY_GATEWAY_TIER),
        "saturated": rate("saturated", _BY_GATEWAY_TIER),
        "requests": rate("requests", f"{_BY_CLASS}, code"),
        "usage_requests": rate("usage_requests", _BY_CLASS),
        "prompt_tokens": rate("prompt_tokens", _BY_CLASS),
        "completion_tokens": rate("completion_tokens", _BY_CLASS),
        "class_ttfb_p95": p95("ttfb", _BY_CLASS),
        "class_duration_p95": p95("duration", _BY_CLASS),
        "tier_ttfb_p95": p95("ttfb", _BY_GATEWAY_TIER),
    }


def gateway_health(selector: str, window_seconds: int) -> str:
    """Three values told apart by the label `q`.

    `up`: targets scraped; `lost`: targets scraped in the window but not now (their share of the traffic is missing from
    every rate); `age`: seconds since the oldest of the newest scrapes.
    """
    up = f"up{{{selector}}}"
    parts = {
        "up": f"sum({up})",
        "lost": f"count({up} == 0 and max_over_time({up}[{window_seconds}s]) == 1)",
        "age": f"time() - min(timestamp({up}) and ({up} == 1))",
    }
    return " or ".join(f'label_replace({query}, "q", "{name}", "", "")' for name, query in parts.items())


def usage_samples(selector: str, range_seconds: int) -> str:
    """Raw samples of the counters that the ledger sums, and of each gateway's uptime."""
    names = "|".join(f"{GATEWAY_PREFIX}_{name}" for name in USAGE_COUNTERS)
    return f'{{__name__=~"{names}|{UPTIME}",{selector}}}[{range_seconds}s]'


def usage_before(selector: str, range_seconds: int) -> str:
    """What the same counters were, however long before the query's time they were scraped last."""
    names = "|".join(f"{GATEWAY_PREFIX}_{name}" for name in USAGE_COUNTERS)
    return f'last_over_time({{__name__=~"{names}|{UPTIME}",{selector}}}[{range_seconds}s])'
