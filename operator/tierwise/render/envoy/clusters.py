"""One cluster per tier: how an attempt reaches it."""

import ipaddress
import json
from typing import Any
from urllib.parse import urlsplit

from tierwise.api.external import External, StreamUsage
from tierwise.api.in_cluster import EndpointPicker
from tierwise.api.model_tier import ModelTier
from tierwise.core.world import Key
from tierwise.render.envoy import endpoints, guard, picker, relay, upstream
from tierwise.render.envoy.bundle import Resource
from tierwise.render.envoy.fields import ADS, GUARD_LISTENER, PICKER_LISTENER, extension, metadata, seconds
from tierwise.render.envoy.options import GatewayOptions
from tierwise.render.envoy.protos import CLUSTER

_CONNECT_TIMEOUT_SECONDS = 2.0
_MANY = 1_000_000


def host_of(key: Key) -> str:
    """Name under which requests reach an in-cluster tier."""
    return f"{key.name}.{key.namespace}.svc"


def output_key(host: str) -> str:
    """Key by which a provider's chat endpoint is told how long an answer may be.

    OpenAI's own newer models refuse `max_tokens`; many other providers know only that.
    """
    openai = host == "api.openai.com" or host.endswith((".openai.com", ".openai.azure.com"))
    return "max_completion_tokens" if openai else "max_tokens"


def foreign_headers(tiers: dict[str, ModelTier]) -> tuple[str, ...]:
    """Headers that external tiers of a namespace set: every cluster removes them, so that none reaches another tier."""
    names: set[str] = set()
    for tier in tiers.values():
        external = tier.spec.external
        if external is not None:
            names.update(header.name for header in external.headers)
            if external.credentials_ref is not None:
                names.add(external.credentials_ref.header)
    return tuple(sorted(names))


def in_cluster(
    key: Key, tier: ModelTier, removed: tuple[str, ...], options: GatewayOptions, *, sticky: bool
) -> Resource:
    """A tier whose replicas come by EDS.

    Args:
        key: of the tier.
        tier: the tier.
        removed: headers that no tier but their owner may see.
        options: the gateway's settings.
        sticky: some class sends equal sessions to equal replicas.
    """
    return {
        **_common(key, options),
        "type": "EDS",
        "eds_cluster_config": {"eds_config": ADS},
        "load_balancing_policy": {"policies": [{"typed_extension_config": _balancer(options, sticky=sticky)}]},
        "typed_extension_protocol_options": upstream.protocol_options(
            [
                upstream.reset(removed, (), of_host=True),
                upstream.request_for_tier(
                    model=_json_text(tier.spec.model), base="/v1", host=host_of(key), output_key="max_tokens"
                ),
            ],
            engine=True,
        ),
    }


def guarded(key: Key, tier: ModelTier, removed: tuple[str, ...], options: GatewayOptions) -> dict[str, Resource]:
    """The clusters of the way to a tier that gives way when it is saturated, beside its plain one: see `guard`.

    Args:
        key: of the tier.
        tier: the tier.
        removed: headers that no tier but their owner may see.
        options: the gateway's settings.
    """
    front, limited = guard.front(str(key)), guard.limited(str(key))
    before = [
        guard.reset(str(key), removed),
        upstream.request_for_tier(
            model=_json_text(tier.spec.model), base="/v1", host=host_of(key), output_key="max_tokens"
        ),
    ]
    found: dict[str, Resource] = {
        front: {
            **_common(key, options),
            "name": front,
            "alt_stat_name": f"{key.namespace}_{key.name}_guarded",
            "type": "STATIC",
            "load_assignment": endpoints.relayed(front, host_of(key), listener=GUARD_LISTENER),
            "typed_extension_protocol_options": upstream.protocol_options(before),
        },
        limited: {
            **_common(key, options),
            "name": limited,
            "alt_stat_name": f"{key.namespace}_{key.name}_limited",
            "type": "EDS",
            "eds_cluster_config": {"eds_config": ADS},
            "load_balancing_policy": {"policies": [{"typed_extension_config": _balancer(options, sticky=False)}]},
            "typed_extension_protocol_options": upstream.protocol_options(
                [upstream.reset(removed, (), of_host=True)], engine=True
            ),
        },
    }
    del found[front]["outlier_detection"]  # its host is the listener, which is well when replicas are not
    return found


def picked(
    key: Key, tier: ModelTier, ref: EndpointPicker, removed: tuple[str, ...], options: GatewayOptions
) -> dict[str, Resource]:
    """An in-cluster tier with an endpoint picker: the clusters of its way, see `picker`.

    Args:
        key: of the tier.
        tier: the tier.
        ref: its picker.
        removed: headers that no tier but their owner may see.
        options: the gateway's settings.
    """
    own = str(key)
    found: dict[str, Resource] = {}
    for name, reset in picker.steps(own, ref, removed).items():
        filters = [reset]
        if name == own:
            filters.append(
                upstream.request_for_tier(
                    model=_json_text(tier.spec.model), base="/v1", host=host_of(key), output_key="max_tokens"
                )
            )
        found[name] = {
            **_common(key, options),
            "name": name,
            "alt_stat_name": name.replace("/", "_").replace("@", "_"),
            "type": "STATIC",
            "load_assignment": endpoints.relayed(name, host_of(key), listener=PICKER_LISTENER),
            "typed_extension_protocol_options": upstream.protocol_options(filters),
        }
        del found[name]["outlier_detection"]  # its host is the listener, which is well when replicas are not
    replicas = picker.replicas(own)
    least = picker.balancer(_balancer(options, sticky=False))
    found[replicas] = {
        **_common(key, options),
        "name": replicas,
        "alt_stat_name": f"{key.namespace}_{key.name}_replicas",
        "type": "EDS",
        "eds_cluster_config": {"eds_config": ADS},
        "load_balancing_policy": {"policies": [{"typed_extension_config": least}]},
        "typed_extension_protocol_options": upstream.protocol_options(
            [upstream.reset(removed, (), of_host=True)], engine=True
        ),
    }
    found[picker.service(own)] = picker.cluster(key, ref, dns())
    return found


def external(
    key: Key,
    tier: ModelTier,
    provider: External,
    removed: tuple[str, ...],
    options: GatewayOptions,
    *,
    usable: bool,
    gateways: int,
) -> dict[str, Resource]:
    """A tier behind a URL: its cluster, which leads to the relay, and the one that the relay leads to.

    Args:
        key: of the tier.
        tier: the tier.
        provider: its external part.
        removed: headers that no tier but their owner may see.
        options: the gateway's settings.
        usable: False when its credential is missing: requests then fall back at once, without trying the provider.
        gateways: that share the provider's limits, at least 1.
    """
    name = relay.provider_cluster(str(key))
    url = urlsplit(provider.url)
    host = url.hostname or ""
    port = url.port or (443 if url.scheme == "https" else 80)
    default_port = port == (443 if url.scheme == "https" else 80)
    authority = f"[{host}]" if ":" in host else host
    before = [
        upstream.relayed(removed, name, relay.request_units(provider.limits, gateways)),
        upstream.request_for_tier(
            model=_json_text(tier.spec.model),
            base=url.path.rstrip("/"),
            host=authority if default_port else f"{authority}:{port}",
            output_key=output_key(host),
        ),
    ]
    token_units = relay.token_units(provider.limits, gateways)
    refuses = provider.stream_usage is StreamUsage.ALWAYS
    if token_units or refuses:
        before.append(upstream.for_provider(token_units=token_units, refuses_options=refuses))
    own_headers = tuple((header.name, header.value) for header in provider.headers)
    filters = [upstream.reset(removed, own_headers, of_host=True)]
    ref = provider.credentials_ref
    if ref is not None and usable:
        filters.append(upstream.credential(secret=str(key), header=ref.header, prefix=ref.prefix))
    cluster: Resource = {
        **_common(key, options),
        "name": name,
        "alt_stat_name": f"{key.namespace}_{key.name}_provider",
        "cluster_type": dns(
            respect_dns_ttl=True, dns_failure_refresh_rate={"base_interval": "1s", "max_interval": "5s"}
        ),
        "load_assignment": endpoints.assignment(name, [(host, port)], host),
        "typed_extension_protocol_options": upstream.protocol_options(filters),
    }
    if url.scheme == "https":
        cluster["transport_socket"] = tls(host, provider.ca_bundle, options)
    front = {
        **_common(key, options),
        "type": "STATIC",
        "load_assignment": endpoints.relayed(str(key), host, usable=usable),
        "typed_extension_protocol_options": upstream.protocol_options(before),
    }
    del front["outlier_detection"]  # its host is the relay, which is well when the provider is not
    return {str(key): front, name: cluster}


def dns(**settings: Any) -> dict[str, Any]:  # noqa: ANN401 - any JSON value
    """Hosts of a cluster are all addresses that its names have."""
    cluster = "envoy.extensions.clusters.dns.v3.DnsCluster"
    return extension("envoy.cluster.dns", cluster, dns_lookup_family="V4_PREFERRED", **settings)


def _common(key: Key, options: GatewayOptions) -> dict[str, Any]:
    return {
        "@type": CLUSTER,
        "name": str(key),
        "alt_stat_name": f"{key.namespace}_{key.name}",
        "metadata": metadata(namespace=key.namespace, tier=key.name),
        "connect_timeout": seconds(_CONNECT_TIMEOUT_SECONDS),
        # What is left of a body after the Lua filter has held it whole.
        "per_connection_buffer_limit_bytes": options.max_body_bytes,
        # An open circuit breaker answers 503 without trying the next tier: weights and replicas limit load, not this.
        "circuit_breakers": {
            "thresholds": [
                {
                    "max_connections": _MANY,
                    "max_pending_requests": _MANY,
                    "max_requests": _MANY,
                    "max_retries": _MANY,
                }
            ]
        },
        "outlier_detection": {
            "consecutive_5xx": 5,
            "consecutive_gateway_failure": 3,
            "interval": "2s",
            "base_ejection_time": "15s",
            # The host that refuses counts too. So a third: one replica of two may be ejected, an only one never.
            "max_ejection_percent": 34,
        },
    }


def _balancer(options: GatewayOptions, *, sticky: bool) -> dict[str, Any]:
    policies = "envoy.extensions.load_balancing_policies"
    if sticky:
        # A hot session spills over to the next replica instead of queueing at its own.
        bounded = {"hash_balance_factor": 150}
        return extension("maglev", f"{policies}.maglev.v3.Maglev", consistent_hashing_lb_config=bounded)
    # From a tenth of its share upwards.
    slowly = {"slow_start_window": seconds(options.slow_start_seconds), "min_weight_percent": {"value": 10}}
    # A gateway's own zone first, as long as no replica gets more than the others for it.
    own_zone = {"zone_aware_lb_config": {"min_cluster_size": 2}}
    return extension(
        "least_request",
        f"{policies}.least_request.v3.LeastRequest",
        slow_start_config=slowly,
        locality_lb_config=own_zone,
    )


def tls(host: str, ca_bundle: str | None, options: GatewayOptions) -> dict[str, Any]:
    """TLS 1.2 or later; the certificate must chain to the CA and carry the URL's host."""
    trusted = {"inline_string": ca_bundle} if ca_bundle is not None else {"filename": options.system_ca_path}
    context: dict[str, Any] = {}
    try:
        ipaddress.ip_address(host)
        san_type = "IP_ADDRESS"
    except ValueError:
        san_type = "DNS"
        context["sni"] = host
    context["common_tls_context"] = {
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_2", "tls_maximum_protocol_version": "TLSv1_3"},
        "alpn_protocols": ["http/1.1"],
        "validation_context": {
            "trusted_ca": trusted,
            "match_typed_subject_alt_names": [{"san_type": san_type, "matcher": {"exact": host}}],
        },
    }
    return extension("tls", "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext", **context)


def _json_text(model: str) -> str:
    """The name as it stands between the quotes of a JSON string."""
    return json.dumps(model)[1:-1]
