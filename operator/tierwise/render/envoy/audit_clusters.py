"""The part of `audit` that looks at clusters: each leads to the tier that it is named after, by known filters only.

It shares no code with what makes the clusters.
"""

from collections.abc import Iterator, Sequence

from tierwise.render.envoy import audit_guard, audit_picker
from tierwise.render.envoy.audit_form import Unknown, only
from tierwise.render.envoy.bundle import Limits, NamespaceBundle, Resource
from tierwise.render.envoy.fields import PROVIDER_HEADER

_DNS = "envoy.extensions.clusters.dns.v3.DnsCluster"
_HEADERS = "envoy.extensions.filters.http.header_mutation.v3.HeaderMutation"
_LUA = "envoy.extensions.filters.http.lua.v3.Lua"
_CODEC = "envoy.extensions.filters.http.upstream_codec.v3.UpstreamCodec"
_INJECTOR = "envoy.extensions.filters.http.credential_injector.v3.CredentialInjector"
_KINDS = {_HEADERS, _CODEC, _INJECTOR}
_HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_SCRIPTS = {"tierwise.request", "tierwise.external"}
_RELAY = "tierwise/providers"
_PROVIDER = "@provider"
_REFUSES = ("127.0.0.1", 1)
"""Stands in a cluster for hosts that are not there; nothing listens."""

_CLUSTER = {
    "@type",
    "name",
    "alt_stat_name",
    "metadata",
    "connect_timeout",
    "per_connection_buffer_limit_bytes",
    "circuit_breakers",
    "outlier_detection",
    "type",
    "cluster_type",
    "eds_cluster_config",
    "load_assignment",
    "load_balancing_policy",
    "typed_extension_protocol_options",
    "transport_socket",
}


def violations(bundle: NamespaceBundle, limits: Limits) -> Iterator[str]:
    """Clusters that lead elsewhere than to the tier that they are named after, each as a sentence.

    Raises:
        Unknown, KeyError, TypeError, AttributeError: one has another form than the one that is understood.
    """
    for name, cluster in bundle.clusters.items():
        only(cluster, _CLUSTER, f"cluster {name}")
        namespace, _, tier = name.partition("/")
        if namespace != bundle.namespace or cluster["name"] != name:
            yield f"cluster {name} has another name, {cluster['name']}, or another namespace's"
        if audit_guard.concerns(name):
            yield from audit_guard.violations(bundle, limits, name, cluster)
            continue
        if audit_picker.concerns(name, cluster, limits):
            yield from audit_picker.violations(bundle, limits, name, cluster)
            continue
        _filters(cluster)
        if cluster.get("type") == "STATIC":
            yield from _relayed(bundle, limits, name, cluster)
            continue
        tier = tier.removesuffix(_PROVIDER)
        host = limits.hosts.get(tier)
        if cluster.get("type") == "EDS":
            only(cluster["eds_cluster_config"], {"eds_config"}, f"endpoints of cluster {name}")
            if host is not None:
                yield f"cluster {name} leads into the cluster, and tier {tier} is external"
            continue
        if cluster["cluster_type"]["typed_config"]["@type"].rpartition("/")[2] != _DNS:
            raise Unknown(f"cluster {name} is of type {cluster['cluster_type']['typed_config']['@type']}")
        for address in _addresses(cluster["load_assignment"]):
            if address != _REFUSES and (host is None or address[0].lower() != host.lower()):
                yield f"cluster {name} leads to {address[0]}, and tier {tier} to {host or 'replicas'}"


def _relayed(bundle: NamespaceBundle, limits: Limits, name: str, cluster: Resource) -> Iterator[str]:
    """A cluster whose host is the relay: its header names the cluster that the relay takes, its own provider's."""
    if limits.hosts.get(name.rpartition("/")[2]) is None:
        yield f"cluster {name} leads to the relay for providers, and its tier is none"
    for locality in cluster["load_assignment"]["endpoints"]:
        for one in locality["lb_endpoints"]:
            address = one["endpoint"]["address"]
            inside = address.get("envoy_internal_address", {})
            socket = address.get("socket_address", {})
            refuses = (socket.get("address"), socket.get("port_value")) == _REFUSES
            if not refuses and inside != {"server_listener_name": _RELAY}:
                yield f"cluster {name} leads to {address}, and not to the relay"
    named = [
        mutation["append"]["header"]["value"]
        for one in _chain(cluster)
        if one["typed_config"]["@type"].rpartition("/")[2] == _HEADERS
        for mutation in one["typed_config"]["mutations"]["request_mutations"]
        if mutation.get("append", {}).get("header", {}).get("key", "").lower() == PROVIDER_HEADER
    ]
    if named != [name + _PROVIDER]:
        yield f"cluster {name} has the relay take {', '.join(named) or 'what the client says'}"
    if name + _PROVIDER not in bundle.clusters:
        yield f"cluster {name} leads to {name + _PROVIDER}, which does not exist"


def _filters(cluster: Resource) -> None:
    """Filters of an attempt could send it elsewhere: only those that are known."""
    for one in _chain(cluster):
        kind = one["typed_config"]["@type"].rpartition("/")[2]
        if kind not in _KINDS and not (kind == _LUA and one["name"] in _SCRIPTS):
            raise Unknown(f"cluster {cluster['name']} has the filter {one['name']}")


def _chain(cluster: Resource) -> Sequence[Resource]:
    options = cluster["typed_extension_protocol_options"]
    only(options, {_HTTP_OPTIONS}, f"options of cluster {cluster['name']}")
    filters: Sequence[Resource] = options[_HTTP_OPTIONS]["http_filters"]
    return filters


def _addresses(assignment: Resource) -> Iterator[tuple[str, int]]:
    for locality in assignment["endpoints"]:
        for one in locality["lb_endpoints"]:
            address = one["endpoint"]["address"]["socket_address"]
            yield str(address["address"]), int(address["port_value"])
