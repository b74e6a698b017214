"""A tier that gives way when it is saturated: its clusters, its limit, and a checker that sees other ways out."""

import copy
import dataclasses

import pytest
from envoy_lab import external, in_cluster, policy, world
from hypothesis import given
from hypothesis import strategies as st

from tierwise.api.model_tier import ModelTier
from tierwise.core.world import Endpoint, Key
from tierwise.render.envoy import accesslog, audit, bootstrap, concurrency, gateway, static, unattended
from tierwise.render.envoy.fields import GATEWAY_HEADERS, GUARD_HEADER
from tierwise.render.envoy.options import GatewayOptions
from tierwise.render.envoy.protos import CLUSTER, ENDPOINTS, ROUTES, SCOPE, encode
from tierwise.runtime import envoy_config

WHEN = ["ConnectFailure", "ServerError", "Saturated"]
ENGINE = {"engine": "VLLM", "image": "vllm/vllm-openai:v0.24.0", "replicas": {"min": 1, "max": 4}}


def with_status(tier, concurrent):
    status = {"capacity": {"provenance": "Measured", **({"concurrentRequests": concurrent} if concurrent else {})}}
    return ModelTier.parse(tier.model_dump(by_alias=True, mode="json", exclude_none=True) | {"status": status})


def given_world(*, concurrent=4, ports=(1, 2), gateways=1, when=WHEN, others=(), **more):
    tiers = [
        with_status(in_cluster("a", clearance="Restricted"), concurrent),
        in_cluster("b", clearance="Internal"),
        external("https://x.example/v1", "x", clearance="Public"),
        *others,
    ]
    one = {
        "name": "c",
        "tiers": [{"name": "a", "weight": 60}, {"name": "b", "weight": 30}, {"name": "x", "weight": 10}],
        "fallback": {"when": when, "attempts": 3},
        **more,
    }
    one["tiers"] += [{"name": each.metadata.name, "weight": 0} for each in others]
    counts = {"acknowledged": 1, "refused": 0, "hash": "x", "lastTransitionTime": "2026-11-25T12:00:00Z"}
    status = {"gateways": [{"name": "operator-0", "connected": gateways, **counts}]}
    return world(tiers, [policy(models=["m"], classes=[one], status=status)], {"legal/a": list(ports)})


def rendered(**more):
    config = gateway.render(given_world(**more))
    assert not config.invalid
    return config, copy.deepcopy(config.namespaces["legal"])


def actions(bundle):
    tree = bundle.routes["virtual_hosts"][0]["matcher"]["matcher_tree"]["exact_match_map"]["map"]["m"]
    return {
        one["name"].rsplit("/", 1)[1]: one["route"]
        for one in tree["action"]["typed_config"]["routes"]
        if "route" in one
    }


def groups(action):
    plugin = action["inline_cluster_specifier_plugin"]["extension"]["typed_config"]
    return [[one["cluster_name"] for one in group["clusters"]] for group in plugin["priority_groups"]]


def chain(bundle, name):
    return next(iter(bundle.clusters[name]["typed_extension_protocol_options"].values()))["http_filters"]


def mutations(bundle, name):
    return chain(bundle, name)[0]["typed_config"]["mutations"]["request_mutations"]


def next_of(bundle, name):
    return next(one["append"] for one in mutations(bundle, name) if GUARD_HEADER in str(one.get("append")))


# What is rendered -----------------------------------------------------------------------------------------------------


def test_attempts_give_way_and_the_last_one_waits_where_one_gave_way():
    _, bundle = rendered()
    found = {level: groups(action) for level, action in actions(bundle).items()}
    assert found["Public"] == [
        ["legal/a@guarded", "legal/b@guarded", "legal/x"],
        ["legal/b@guarded", "legal/a@guarded", "legal/a@guarded"],
        ["legal/x", "legal/x", "legal/b"],
        ["legal/b", "legal/a", "legal/a"],
    ]
    assert found["Internal"] == [
        ["legal/a@guarded", "legal/b@guarded"],
        ["legal/b", "legal/a"],
        ["legal/a", "legal/b"],
    ]
    assert found["Confidential"] == found["Restricted"] == [["legal/a"]]


def test_the_router_tries_on_for_a_saturated_tier_only_where_it_is_listed():
    _, bundle = rendered()
    said = actions(bundle)["Public"]["retry_policy"]
    assert "retriable-headers" in said["retry_on"]
    assert {"name": "x-tierwise-saturated", "present_match": True} in said["retriable_headers"]
    assert {"name": "x-tierwise-unreached", "present_match": True} in said["retriable_headers"]
    _, bundle = rendered(when=["Saturated"])
    said = actions(bundle)["Public"]["retry_policy"]
    # What is passed on must not fail where it could have waited.
    assert {"5xx", "connect-failure", "reset", "retriable-headers"} <= {*said["retry_on"].split(",")}
    assert said["retriable_status_codes"] == [429]
    assert {each["name"] for each in said["retriable_headers"]} == {"x-tierwise-saturated", "x-tierwise-unreached"}
    # Where nobody gives way it is as it is written.
    confidential = actions(bundle)["Confidential"]["retry_policy"]
    assert (confidential["retry_on"], confidential["num_retries"]) == ("retriable-headers", said["num_retries"] - 1)
    _, bundle = rendered(when=["ServerError"])
    assert "retriable_headers" not in actions(bundle)["Public"]["retry_policy"]


def test_clusters_are_there_for_tiers_that_are_relieved_and_for_no_other():
    picked = in_cluster("p", inCluster={**ENGINE, "endpointPickerRef": {"name": "epp"}})
    config, bundle = rendered(others=[picked])
    assert {name for name in bundle.clusters if "@guarded" in name or "@limited" in name} == {
        f"legal/{name}@{suffix}" for name in "ab" for suffix in ("guarded", "limited")
    }
    front, limited, plain = (bundle.clusters[f"legal/a{suffix}"] for suffix in ("@guarded", "@limited", ""))
    assert front["type"] == "STATIC"
    assert "outlier_detection" not in front
    assert limited["outlier_detection"] == plain["outlier_detection"]
    assert limited["load_balancing_policy"] == plain["load_balancing_policy"]
    assert front["metadata"] == limited["metadata"] == plain["metadata"]
    names = [one["alt_stat_name"] for one in bundle.clusters.values()]
    assert len({*names}) == len(names)
    assert not any("@" in name or "/" in name for name in names)
    same = {**bundle.endpoints["legal/a"], "cluster_name": "legal/a@limited"}
    assert bundle.endpoints["legal/a@limited"] == same
    assert "legal/b@guarded" not in rendered(when=["ServerError"])[1].clusters
    assert "tierwise/guard" in next(found for url, found in config.shared.items() if url.endswith(".Listener"))


def test_clients_and_tiers_do_not_get_the_guards_header():
    assert GUARD_HEADER in GATEWAY_HEADERS
    _, bundle = rendered()
    for name in ("legal/a", "legal/a@limited", "legal/b"):
        assert {"remove": GUARD_HEADER} in mutations(bundle, name)
    for name in ("legal/a", "legal/a@limited", "legal/x@provider"):
        answers = chain(bundle, name)[0]["typed_config"]["mutations"]["response_mutations"]
        assert {"remove": "x-tierwise-saturated"} in answers


def test_what_is_passed_on_is_counted():
    (logger,) = accesslog.saturations()
    (counter,) = logger["typed_config"]["counters"]
    assert counter["stat"]["name"] == "saturated"
    (arrival,) = accesslog.arrivals()[0]["typed_config"]["counters"]
    assert counter["stat"]["tags"] == arrival["stat"]["tags"]


# Limits ---------------------------------------------------------------------------------------------------------------


def test_limits_are_of_ready_replicas_and_shared_by_gateways():
    assert rendered()[0].concurrency == {"legal/a@limited": 8}
    assert rendered(gateways=3)[0].concurrency == {"legal/a@limited": 3}
    assert rendered(concurrent=1, ports=[1], gateways=5)[0].concurrency == {"legal/a@limited": 1}
    assert rendered(concurrent=None)[0].concurrency == {}
    assert rendered(ports=[])[0].concurrency == {}
    assert rendered(when=["ServerError"])[0].concurrency == {}
    leaving = (Endpoint("10.0.0.1", 1, False, True, True),)
    found = dataclasses.replace(given_world(), endpoints={Key("legal", "a"): leaving})
    assert gateway.render(found).concurrency == {}, "nothing is ready"


@pytest.mark.parametrize(("connected", "ready", "each"), [(0, 4, 2), (1, 4, 2), (4, 1, 2), (0, 0, 8)])
def test_gateways_that_are_ready_have_their_part_before_any_operator_tells_of_them(connected, ready, each):
    """A policy that is new, or operators that are: no status says how many gateways there are."""
    zones = {"": ready} if ready else {}
    found = dataclasses.replace(given_world(gateways=connected), gateway_zones=zones)
    assert gateway.render(found).concurrency == {"legal/a@limited": each}
    dead = dataclasses.replace(found, live_replicas=frozenset({"operator-9"}))
    assert gateway.render(dead).concurrency == {"legal/a@limited": 8 // max(ready, 1)}


@given(st.integers(1, 500), st.integers(1, 40), st.integers(1, 30))
def test_all_gateways_together_have_the_limit_and_less_than_one_more_each(concurrent, replicas, gateways):
    found = given_world(concurrent=concurrent, ports=range(1, 1 + replicas))
    tiers = {key.name: tier for key, tier in found.tiers.items()}
    endpoints = {key.name: each for key, each in found.endpoints.items()}
    limits = concurrency.of_namespace("legal", found.policies.values(), tiers, endpoints, gateways)
    together = gateways * limits["legal/a@limited"]
    assert concurrent * replicas <= together < concurrent * replicas + gateways


def test_a_limit_that_moves_is_no_new_configuration():
    renderer = gateway.Renderer()
    one = renderer(given_world())
    two = renderer(given_world(concurrent=9, ports=(1, 2, 3)))
    assert one.concurrency != two.concurrency
    assert one.namespaces["legal"].hash == two.namespaces["legal"].hash
    assert one.namespaces["legal"].clusters == two.namespaces["legal"].clusters
    assert renderer(given_world()) == one


def test_the_layer_is_a_value_of_envoys_runtime():
    layer = concurrency.layer({"legal/a.v2@limited": 7})
    assert layer["name"] == concurrency.LAYER
    assert layer["layer"] == {"circuit_breakers.legal/a.v2@limited.default.max_requests": 7}
    assert encode(layer).version != encode(concurrency.layer({})).version


def test_gateways_ask_for_the_layer_and_a_static_one_has_none():
    options = bootstrap.BootstrapOptions(xds_host="127.0.0.1", xds_dns=False, certificates=None)
    made = bootstrap.bootstrap(options)
    layers = [each["name"] for each in made["layered_runtime"]["layers"]]
    assert layers.count(concurrency.LAYER) == 1
    assert [*layers][: len(layers) - 1] == [each["name"] for each in unattended.layered_runtime()["layers"]]
    assert "rtds_layer" not in str(static.bootstrap(made, {})["layered_runtime"])


def test_envoy_takes_it_as_one_static_bootstrap():
    config, bundle = rendered()
    shared = dict(config.shared)
    resources = {
        **shared,
        CLUSTER: {**shared[CLUSTER], **bundle.clusters},
        ENDPOINTS: {**shared[ENDPOINTS], **bundle.endpoints},
        SCOPE: {**shared[SCOPE], **bundle.scopes},
        ROUTES: {**shared[ROUTES], "legal": bundle.routes},
    }
    options = bootstrap.BootstrapOptions(
        xds_host="127.0.0.1", xds_dns=False, certificates=None, admin_path="admin.sock"
    )
    path = GatewayOptions().system_ca_path
    made = static.bootstrap(bootstrap.bootstrap(options), resources, {path: envoy_config._authorities(path)})
    assert envoy_config.ask_envoy(made, "envoy") == ""


# The checker ----------------------------------------------------------------------------------------------------------


def names_another(value):
    def mistake(bundle):
        next_of(bundle, "legal/a@guarded")["header"]["value"] = value

    mistake.__name__ = f"names_{value}"
    return mistake


def names_none(bundle):
    mutations(bundle, "legal/a@guarded").remove({"append": next_of(bundle, "legal/a@guarded")})


def names_two(bundle):
    found = copy.deepcopy(next_of(bundle, "legal/a@guarded"))
    found["header"] = {"key": "X-Tierwise-Guard", "value": "legal/b@limited"}
    mutations(bundle, "legal/a@guarded").append({"append": found})


def if_the_client_does_not(bundle):
    next_of(bundle, "legal/a@guarded")["append_action"] = "ADD_IF_ABSENT"


def address(bundle):
    return bundle.clusters["legal/a@guarded"]["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]


def by_another_listener(bundle):
    address(bundle)["address"]["envoy_internal_address"]["server_listener_name"] = "tierwise/providers"


def past_the_guard(bundle):
    address(bundle)["address"] = {"socket_address": {"address": "elsewhere.example", "port_value": 80}}


def endpoints_of_another_tier(bundle):
    bundle.clusters["legal/a@limited"]["eds_cluster_config"]["service_name"] = "legal/b"


def fixed_hosts(bundle):
    del bundle.clusters["legal/a@limited"]["eds_cluster_config"]
    bundle.clusters["legal/a@limited"] |= {"type": "STATIC", "load_assignment": {}}


def limited_is_gone(bundle):
    del bundle.clusters["legal/a@limited"]


def a_script_before_the_replicas(bundle):
    chain(bundle, "legal/a@limited").insert(0, chain(bundle, "legal/a")[1])


def a_processor(bundle):
    kind = "type.googleapis.com/envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor"
    chain(bundle, "legal/a@guarded").insert(1, {"name": "tierwise.request", "typed_config": {"@type": kind}})


def of_another_name(bundle):
    bundle.clusters["legal/a@guarded"] = bundle.clusters["legal/b@guarded"]


def of_a_provider(bundle):
    found = copy.deepcopy(bundle.clusters["legal/a@guarded"])
    bundle.clusters["legal/x@guarded"] = {**found, "name": "legal/x@guarded"}


def route_to(cluster, level="Confidential"):
    def mistake(bundle):
        plugin = actions(bundle)[level]["inline_cluster_specifier_plugin"]["extension"]["typed_config"]
        plugin["priority_groups"][0]["clusters"][0]["cluster_name"] = cluster

    mistake.__name__ = f"{level}_to_{cluster}"
    return mistake


@pytest.mark.parametrize(
    "mistake",
    [
        names_another("legal/b@limited"),
        names_another("legal/a"),
        names_another("legal/a@guarded"),
        names_another("legal/x@provider"),
        names_another("%REQ(x-tier)%"),
        names_none,
        names_two,
        if_the_client_does_not,
        by_another_listener,
        past_the_guard,
        endpoints_of_another_tier,
        fixed_hosts,
        limited_is_gone,
        a_script_before_the_replicas,
        a_processor,
        of_another_name,
        of_a_provider,
        route_to("legal/b@guarded"),
        route_to("legal/b@limited"),
        route_to("legal/a@limited"),
        route_to("sales/a@guarded"),
        route_to("legal/gone@guarded"),
        route_to("legal/x@guarded", "Public"),
    ],
)
def test_ways_out_are_seen(mistake):
    config, bundle = rendered()
    assert audit.audit(bundle, config.limits["legal"]) == ()
    mistake(bundle)
    (first, *_) = audit.audit(bundle, config.limits["legal"])
    assert first.startswith(audit.PREFIX)


def test_a_guarded_tier_is_named_plainly_when_it_is_not_cleared():
    config, bundle = rendered()
    route_to("legal/b@guarded")(bundle)
    found = audit.audit(bundle, config.limits["legal"])
    assert any("could reach tier b (cleared for Internal)" in each for each in found)
