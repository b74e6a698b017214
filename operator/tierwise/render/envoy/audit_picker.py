"""The part of `audit` that looks at the way to tiers with an endpoint picker, which sees the prompts of its tier.

It shares no code with what makes that way. A step may lead to a later step of its own tier only, and only the picker of
the tier, at the address that the objects say, may be asked. What is not known is a way out.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from tierwise.render.envoy.bundle import Limits, NamespaceBundle, Resource

_FILTERS = "envoy.extensions.filters.http"
_HEADERS = f"{_FILTERS}.header_mutation.v3.HeaderMutation"
_CODEC = f"{_FILTERS}.upstream_codec.v3.UpstreamCodec"
_LUA = f"{_FILTERS}.lua.v3.Lua"
_DNS = "envoy.extensions.clusters.dns.v3.DnsCluster"
_HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"

_LISTENER = "tierwise/pickers"
_PICKER = "@picker"
_RANK = {"": 0, "@open": 1, "@replicas": 2}
"""Clusters of a tier by suffix, in the order in which a request takes them."""
_NEXT, _ASKED = "x-tierwise-pick", "x-tierwise-picker"
_REFUSES = {"socket_address": {"address": "127.0.0.1", "port_value": 1}}


def concerns(name: str, cluster: Resource, limits: Limits) -> bool:
    """Whether a cluster is on the way to a tier with an endpoint picker, or says so by its name."""
    tier, at, suffix = name.rpartition("/")[2].partition("@")
    if at:
        return at + suffix in {_PICKER, *_RANK}
    return tier in limits.pickers and cluster.get("type") == "STATIC"


def violations(bundle: NamespaceBundle, limits: Limits, name: str, cluster: Resource) -> Iterator[str]:
    """What is wrong with one that `concerns`, each as a sentence.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: it has another form than the one that is understood.
    """
    own, at, suffix = name.partition("@")
    tier = own.rpartition("/")[2]
    if tier not in limits.pickers:
        yield f"cluster {name} is of an endpoint picker, and tier {tier} has none"
        return
    if at + suffix == _PICKER:
        yield from _picker(limits.pickers[tier], name, cluster)
    elif at + suffix == "@replicas":
        if cluster.get("type") != "EDS":
            raise ValueError(f"cluster {name} is of type {cluster.get('type')}")
        _only(cluster["eds_cluster_config"], {"eds_config"}, f"endpoints of cluster {name}")
        for one in _chain(name, cluster):
            if _kind(one) not in {_HEADERS, _CODEC}:
                raise ValueError(f"cluster {name} has the filter {one['name']}")
    else:
        yield from _step(bundle, own, at + suffix, cluster)


def _picker(address: tuple[str, int], name: str, cluster: Resource) -> Iterator[str]:
    if cluster["cluster_type"]["typed_config"]["@type"].rpartition("/")[2] != _DNS:
        raise ValueError(f"cluster {name} is of type {cluster['cluster_type']['typed_config']['@type']}")
    _only(cluster["typed_extension_protocol_options"], {_HTTP_OPTIONS}, f"options of cluster {name}")
    options = cluster["typed_extension_protocol_options"][_HTTP_OPTIONS]
    _only(options, {"@type", "explicit_http_config", "common_http_protocol_options"}, f"options of cluster {name}")
    for found in _addresses(cluster):
        socket = found.get("socket_address", {})
        if (socket.get("address"), socket.get("port_value")) != address or set(found) != {"socket_address"}:
            yield f"cluster {name} leads to {found}, and the endpoint picker is at {address[0]}:{address[1]}"


def _step(bundle: NamespaceBundle, own: str, suffix: str, cluster: Resource) -> Iterator[str]:
    name = own + suffix
    if cluster.get("type") != "STATIC":
        raise ValueError(f"cluster {name} is of type {cluster.get('type')}")
    for address in _addresses(cluster):
        if address not in ({"envoy_internal_address": {"server_listener_name": _LISTENER}}, _REFUSES):
            yield f"cluster {name} leads to {address}, and not to the listener for pickers"
    said: dict[str, list[str]] = {_NEXT: [], _ASKED: []}
    for one in _chain(name, cluster):
        kind = _kind(one)
        if kind == _HEADERS:
            for key, value in _set(name, one["typed_config"]):
                said.get(key, []).append(value)
        elif kind != _CODEC and not (kind == _LUA and one["name"] == "tierwise.request" and not suffix):
            raise ValueError(f"cluster {name} has the filter {one['name']}")
    later = {own + each for each, rank in _RANK.items() if rank > _RANK[suffix]} & set(bundle.clusters)
    if len(said[_NEXT]) != 1 or said[_NEXT][0] not in later:
        yield f"cluster {name} has requests go on to {said[_NEXT]}, and not to a later step of its own tier"
    # Between a tier's cluster and its `@open` nobody is asked.
    if (said[_NEXT] == [f"{own}@replicas"] or said[_ASKED]) and said[_ASKED] != [own + _PICKER]:
        yield f"cluster {name} shows its requests to {said[_ASKED]}, and not to the tier's endpoint picker alone"


def _set(name: str, config: Resource) -> Iterator[tuple[str, str]]:
    """Headers that a filter sets, and to what."""
    _only(config, {"@type", "mutations"}, f"headers of cluster {name}")
    _only(config["mutations"], {"request_mutations"}, f"headers of cluster {name}")
    for mutation in config["mutations"]["request_mutations"]:
        _only(mutation, {"append", "remove"}, f"headers of cluster {name}")
        if "append" in mutation:
            header = mutation["append"]["header"]
            if mutation["append"]["append_action"] != "OVERWRITE_IF_EXISTS_OR_ADD":
                raise ValueError(f"cluster {name} does not say plainly what {header['key']} is")
            yield str(header["key"]).lower(), str(header["value"])


def _chain(name: str, cluster: Resource) -> list[Resource]:
    options = cluster["typed_extension_protocol_options"]
    _only(options, {_HTTP_OPTIONS}, f"options of cluster {name}")
    filters: list[Resource] = options[_HTTP_OPTIONS]["http_filters"]
    return filters


def _kind(one: Resource) -> str:
    return str(one["typed_config"]["@type"]).rpartition("/")[2]


def _addresses(cluster: Resource) -> Iterator[Resource]:
    for locality in cluster["load_assignment"]["endpoints"]:
        for one in locality["lb_endpoints"]:
            yield one["endpoint"]["address"]


def _only(found: Mapping[str, Any], known: set[str], where: str) -> None:
    more = sorted(set(found) - known)
    if more:
        raise ValueError(f"{where} has {', '.join(more)}")
