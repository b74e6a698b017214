"""The part of `audit` that looks at the way to a tier that gives way when it is saturated.

It shares no code with what makes that way. From `@guarded` it leads through one listener to `@limited` of the same
tier, and from there to the tier's own replicas. What is not known is a way out.
"""

from collections.abc import Iterator

from tierwise.render.envoy.audit_form import Unknown, only
from tierwise.render.envoy.bundle import Limits, NamespaceBundle, Resource

_FILTERS = "envoy.extensions.filters.http"
_HEADERS = f"{_FILTERS}.header_mutation.v3.HeaderMutation"
_CODEC = f"{_FILTERS}.upstream_codec.v3.UpstreamCodec"
_LUA = f"{_FILTERS}.lua.v3.Lua"
_HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"

_LISTENER = "tierwise/guard"
_FRONT, _LIMITED = "guarded", "limited"
_NEXT = "x-tierwise-guard"
_REFUSES = {"socket_address": {"address": "127.0.0.1", "port_value": 1}}


def concerns(name: str) -> bool:
    """Whether a cluster is on the way to a guarded tier, by its name."""
    return name.partition("@")[2] in {_FRONT, _LIMITED}


def violations(bundle: NamespaceBundle, limits: Limits, name: str, cluster: Resource) -> Iterator[str]:
    """What is wrong with one that `concerns`, each as a sentence.

    Raises:
        Unknown, KeyError, TypeError, AttributeError: it has another form than the one that is understood.
    """
    own, _, suffix = name.partition("@")
    tier = own.rpartition("/")[2]
    if tier in limits.hosts or tier in limits.pickers:
        yield f"cluster {name} is guarded, and tier {tier} is external or has an endpoint picker"
    kinds = [str(one["typed_config"]["@type"]).rpartition("/")[2] for one in _chain(name, cluster)]
    if suffix == _LIMITED:
        if cluster.get("type") != "EDS":
            raise Unknown(f"cluster {name} is of type {cluster.get('type')}")
        only(cluster["eds_cluster_config"], {"eds_config"}, f"endpoints of cluster {name}")
        if set(kinds) - {_HEADERS, _CODEC}:
            raise Unknown(f"cluster {name} has the filters {kinds}")
        return
    if cluster.get("type") != "STATIC":
        raise Unknown(f"cluster {name} is of type {cluster.get('type')}")
    for locality in cluster["load_assignment"]["endpoints"]:
        for one in locality["lb_endpoints"]:
            address = one["endpoint"]["address"]
            if address not in ({"envoy_internal_address": {"server_listener_name": _LISTENER}}, _REFUSES):
                yield f"cluster {name} leads to {address}, and not to the guard"
    said: list[str] = []
    for kind, one in zip(kinds, _chain(name, cluster), strict=True):
        if kind == _HEADERS:
            said += _said(name, one["typed_config"])
        elif kind != _CODEC and (kind, one["name"]) != (_LUA, "tierwise.request"):
            raise Unknown(f"cluster {name} has the filter {one['name']}")
    following = f"{own}@{_LIMITED}"
    if said != [following] or following not in bundle.clusters:
        yield f"cluster {name} has the guard take {said or 'what the client says'}, and not the replicas of its tier"


def _said(name: str, config: Resource) -> Iterator[str]:
    """What a filter says to the guard."""
    only(config, {"@type", "mutations"}, f"headers of cluster {name}")
    only(config["mutations"], {"request_mutations"}, f"headers of cluster {name}")
    for mutation in config["mutations"]["request_mutations"]:
        only(mutation, {"append", "remove"}, f"headers of cluster {name}")
        header = mutation.get("append", {}).get("header", {})
        if str(header.get("key", "")).lower() == _NEXT:
            if mutation["append"]["append_action"] != "OVERWRITE_IF_EXISTS_OR_ADD":
                raise Unknown(f"cluster {name} does not say plainly what {_NEXT} is")
            yield str(header["value"])


def _chain(name: str, cluster: Resource) -> list[Resource]:
    options = cluster["typed_extension_protocol_options"]
    only(options, {_HTTP_OPTIONS}, f"options of cluster {name}")
    filters: list[Resource] = options[_HTTP_OPTIONS]["http_filters"]
    return filters
