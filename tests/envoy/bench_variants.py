"""The variants of the gateway that `bench_dataplane` measures, taken from what the operator renders."""

import copy
import dataclasses
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from envoy_lab import consumer, external, in_cluster, policy, world
from test_consumers_live import ISSUER, jwks, token

from tierwise.core.world import World
from tierwise.render.envoy.bundle import GatewayConfig
from tierwise.render.envoy.fields import LISTENER_NAME
from tierwise.render.envoy.options import Authentication, GatewayOptions, JwtIssuer
from tierwise.render.envoy.protos import LISTENER
from tierwise.render.envoy.upstream import HTTP_OPTIONS

NAMESPACE = "bench"
ROUTER = "envoy.filters.http.router"
PLAIN, WHOLE = "plain Envoy", "whole chain"
_STATS = "envoy.extensions.access_loggers.stats."


@dataclass(frozen=True, slots=True)
class Variant:
    """The gateway with some of its parts.

    Attributes:
        name: of the part that it has and the one before it lacks.
        world: what is rendered.
        change: takes the other parts out of the rendered configuration.
        proof: with which callers prove who they are.
    """

    name: str
    world: World
    change: Callable[[GatewayConfig], GatewayConfig]
    proof: str


@dataclass(frozen=True, slots=True)
class Parts:
    """How much of the chain there is.

    Attributes:
        options: all settings of the connection manager but those below.
        filters: how many of its HTTP filters, from the first; the router is always there.
        routes: scopes, matcher tree and priority groups in place of one route for everything.
        upstream: how many of the clusters' filters, from the first; the codec is always there.
        logs: how many of the loggers; those that only count are one, as the router's own are part of them.
    """

    options: bool = False
    filters: int = 0
    routes: bool = False
    upstream: int = 0
    logs: int = 0


SUBJECT = {"issuer": ISSUER, "subject": "bench"}
AUTHENTICATION = Authentication((JwtIssuer(name="login", issuer=ISSUER, audiences=("tierwise",), jwks=jwks()),))
OPTIONS = GatewayOptions(authentication=AUTHENTICATION)
API_KEY = "tw-bench-" + "0123456789" * 3


def worlds(port: int) -> tuple[World, World]:
    """Two tiers of one replica each, half of the requests each; and a provider with a credential.

    One consumer calls, by API key or by token.
    """
    of_caller = {f"{NAMESPACE}/caller": {"token": API_KEY}}
    caller = consumer("caller", NAMESPACE, apiKeys=[{"name": "caller"}], jwt=[SUBJECT])
    refs = [{"name": "small", "weight": 50}, {"name": "large", "weight": 50}]
    tiers = [in_cluster(name, NAMESPACE) for name in ("small", "large")]
    classes = [{"name": "all", "tiers": refs}]
    own = world(
        tiers,
        [policy("chat", NAMESPACE, models=["chat"], classes=classes)],
        {f"{NAMESPACE}/{tier.metadata.name}": [port] for tier in tiers},
        of_caller,
        [caller],
    )
    provider = external(
        f"http://127.0.0.1:{port}/v1",
        "frontier",
        NAMESPACE,
        allowPlaintext=True,
        credentialsRef={"name": "key"},
    )
    classes = [{"name": "all", "tiers": [{"name": "frontier"}]}]
    outside = world(
        [provider],
        [policy("chat", NAMESPACE, models=["chat"], classes=classes)],
        secrets=of_caller | {f"{NAMESPACE}/key": {"token": "sk-bench"}},
        consumers=[caller],
    )
    return own, outside


def manager_of(config: GatewayConfig) -> dict[str, Any]:
    """The listener's connection manager."""
    listener = config.shared[LISTENER][LISTENER_NAME]
    return listener["filter_chains"][0]["filters"][0]["typed_config"]


def upstream_filters(config: GatewayConfig) -> list[dict[str, Any]]:
    """What an attempt passes on its way to a tier, but for the codec."""
    cluster = next(iter(config.namespaces[NAMESPACE].clusters.values()))
    return cluster["typed_extension_protocol_options"][HTTP_OPTIONS]["http_filters"][:-1]


def _is_counting(log: Mapping[str, Any]) -> bool:
    return _STATS in log["typed_config"]["@type"]


def variants(config: GatewayConfig, own: World, outside: World) -> list[Variant]:
    """All variants, from none of the parts to all of them; then the whole chain to a provider, and called by token.

    Args:
        config: what is rendered for `own`.
        own: the world with tiers in the cluster.
        outside: the world with a provider.
    """
    manager = manager_of(config)
    *found, router = manager["http_filters"]
    assert router["name"] == ROUTER
    logs = [log["name"] for log in manager["access_log"] if not _is_counting(log)]
    steps = [(PLAIN, Parts()), ("+ options: paths, internal headers, errors", Parts(options=True))]

    def add(name: str, **more: Any) -> None:
        steps.append((name, dataclasses.replace(steps[-1][1], **more)))

    for number, each in enumerate(found, start=1):
        add(f"+ {_title(each)}", filters=number)
    add("+ routes: scopes, matcher tree, priority groups", routes=True)
    for number, each in enumerate(upstream_filters(config), start=1):
        add(f"+ upstream {_title(each)}", upstream=number)
    add("+ counters and histograms", logs=1)
    for number, name in enumerate(logs, start=2):
        add(f"+ access log ({name})", logs=number)
    made = [Variant(name, own, lambda config, parts=parts: cut(config, parts), API_KEY) for name, parts in steps]
    # Nothing is taken out of the last one: what was cut before must add up to the real thing.
    made[-1] = whole = dataclasses.replace(
        made[-1], name=f"{WHOLE} (+ {steps[-1][0][2:]})", change=lambda config: config
    )
    return [
        *made,
        dataclasses.replace(whole, name=f"{WHOLE}, provider with credential", world=outside),
        dataclasses.replace(whole, name=f"{WHOLE}, called by token", proof=token(SUBJECT["subject"])),
    ]


def _title(http_filter: Mapping[str, Any]) -> str:
    kind = http_filter.get("typed_config", {}).get("@type", "discovered").rpartition("/")[2].split(".")
    what = next((word for before, word in itertools.pairwise(kind) if before == "http"), kind[-1])
    return f"{http_filter['name'].removeprefix('tierwise.')} ({what})"


def cut(config: GatewayConfig, parts: Parts) -> GatewayConfig:
    """The configuration with these parts only."""
    shared = {kind: dict(resources) for kind, resources in config.shared.items()}
    listener = copy.deepcopy(shared[LISTENER][LISTENER_NAME])
    chain = listener["filter_chains"][0]["filters"][0]
    chain["typed_config"] = _cut_manager(chain["typed_config"], parts)
    shared[LISTENER][LISTENER_NAME] = listener
    bundle = config.namespaces[NAMESPACE]
    clusters = copy.deepcopy(dict(bundle.clusters))
    for cluster in clusters.values():
        options = cluster["typed_extension_protocol_options"][HTTP_OPTIONS]
        *found, codec = options["http_filters"]
        options["http_filters"] = [*found[: parts.upstream], codec]
    made = dataclasses.replace(bundle, clusters=clusters, hash=f"{parts}")
    return dataclasses.replace(config, shared=shared, namespaces={NAMESPACE: made})


def _cut_manager(manager: dict[str, Any], parts: Parts) -> dict[str, Any]:
    *found, router = manager["http_filters"]
    counting = [log for log in manager["access_log"] if _is_counting(log)]
    others = [log for log in manager["access_log"] if not _is_counting(log)]
    if not parts.logs:
        router["typed_config"] = {"@type": router["typed_config"]["@type"]}
    own = {
        "http_filters": [*found[: parts.filters], router],
        "access_log": [*counting, *others[: parts.logs - 1]] if parts.logs else [],
    }
    kept = manager if parts.options else {key: manager[key] for key in ("@type", "stat_prefix")}
    kept = {key: value for key, value in kept.items() if key != "scoped_routes"} | own
    if parts.routes:
        return kept | {"scoped_routes": manager["scoped_routes"]}
    route = {"match": {"prefix": "/"}, "route": {"cluster": f"{NAMESPACE}/small", "timeout": "0s"}}
    return kept | {
        "route_config": {
            "name": "bench",
            "validate_clusters": False,
            "virtual_hosts": [{"name": "bench", "domains": ["*"], "routes": [route]}],
        }
    }
