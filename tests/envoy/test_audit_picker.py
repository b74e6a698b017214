"""The checker of the way to tiers with an endpoint picker: ways out that no renderer of ours takes are seen."""

import copy

import pytest
from envoy_lab import external, in_cluster, policy, world

from tierwise.render.envoy import audit, gateway

ENGINE = {"engine": "VLLM", "image": "vllm/vllm-openai:v0.24.0", "replicas": {"min": 1, "max": 4}}


def picked(mode, name="a"):
    ref = {"name": f"epp-{name}", "port": 9100, "failureMode": mode}
    return in_cluster(name=name, clearance="Restricted", inCluster={**ENGINE, "endpointPickerRef": ref})


def small(mode="FailOpen"):
    """Tiers a and c have pickers; requests go to a only, and b may see nothing of them."""
    tiers = [picked(mode), external("https://b.example/v1", name="b", clearance="Public"), picked(mode, "c")]
    classes = [{"name": "one", "tiers": [{"name": "a"}]}]
    config = gateway.render(world(tiers, [policy(models=["m"], sensitivity="Confidential", classes=classes)]))
    return config, copy.deepcopy(config.namespaces["legal"])


def chain(bundle, name):
    return next(iter(bundle.clusters[name]["typed_extension_protocol_options"].values()))["http_filters"]


def mutations(bundle, name):
    return chain(bundle, name)[0]["typed_config"]["mutations"]["request_mutations"]


def header(bundle, name, key):
    return next(
        one["append"] for one in mutations(bundle, name) if one.get("append", {}).get("header", {}).get("key") == key
    )


def endpoint(bundle, name):
    return bundle.clusters[name]["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]


def said(name, key, value):
    def mistake(bundle):
        header(bundle, name, key)["header"]["value"] = value

    mistake.__name__ = f"{name}_{key}_{value}"
    return mistake


def unsaid(name, key):
    def mistake(bundle):
        mutations(bundle, name).remove({"append": header(bundle, name, key)})

    mistake.__name__ = f"{name}_{key}_unsaid"
    return mistake


def picker_elsewhere(bundle):
    endpoint(bundle, "legal/a@picker")["address"]["socket_address"]["address"] = "epp-a.sales.svc.cluster.local"


def picker_at_another_port(bundle):
    endpoint(bundle, "legal/a@picker")["address"]["socket_address"]["port_value"] = 9101


def picker_of_another_tier(bundle):
    bundle.clusters["legal/a@picker"]["load_assignment"] = bundle.clusters["legal/c@picker"]["load_assignment"]


def picker_with_a_filter(bundle):
    options = next(iter(bundle.clusters["legal/a@picker"]["typed_extension_protocol_options"].values()))
    options["http_filters"] = chain(bundle, "legal/a")


def picker_of_hosts_that_requests_name(bundle):
    kind = "type.googleapis.com/envoy.extensions.clusters.dynamic_forward_proxy.v3.ClusterConfig"
    bundle.clusters["legal/a@picker"]["cluster_type"]["typed_config"]["@type"] = kind


def replicas_of_another_tier(bundle):
    bundle.clusters["legal/a@replicas"]["eds_cluster_config"]["service_name"] = "legal/c@replicas"


def replicas_that_are_fixed(bundle):
    del bundle.clusters["legal/a@replicas"]["eds_cluster_config"]
    bundle.clusters["legal/a@replicas"] |= {"type": "STATIC", "load_assignment": {}}


def replicas_with_a_script(bundle):
    chain(bundle, "legal/a@replicas").insert(0, chain(bundle, "legal/a")[1])


def way_past_the_listener(bundle):
    endpoint(bundle, "legal/a")["address"] = {"socket_address": {"address": "elsewhere.example", "port_value": 80}}


def way_by_the_relay(bundle):
    endpoint(bundle, "legal/a@open")["address"]["envoy_internal_address"]["server_listener_name"] = "tierwise/providers"


def another_processor(bundle):
    kind = "type.googleapis.com/envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor"
    chain(bundle, "legal/a@open").insert(1, {"name": "tierwise.picker", "typed_config": {"@type": kind}})


def said_twice(bundle):
    found = copy.deepcopy(header(bundle, "legal/a@open", "x-tierwise-pick"))
    found["header"] = {"key": "X-Tierwise-Pick", "value": "legal/b"}
    mutations(bundle, "legal/a@open").append({"append": found})


def said_if_the_client_does_not(bundle):
    header(bundle, "legal/a", "x-tierwise-pick")["append_action"] = "ADD_IF_ABSENT"


def straight_to_the_picker(bundle):
    tree = bundle.routes["virtual_hosts"][0]["matcher"]["matcher_tree"]["exact_match_map"]["map"]["m"]
    route = next(one for one in tree["action"]["typed_config"]["routes"] if "route" in one)
    plugin = route["route"]["inline_cluster_specifier_plugin"]["extension"]["typed_config"]
    plugin["priority_groups"][0]["clusters"][0]["cluster_name"] = "legal/a@picker"


@pytest.mark.parametrize(
    "mistake",
    [
        said("legal/a", "x-tierwise-pick", "legal/b@provider"),
        said("legal/a", "x-tierwise-pick", "legal/c@replicas"),
        said("legal/a", "x-tierwise-pick", "legal/a"),
        said("legal/a", "x-tierwise-pick", "%REQ(x-tier)%"),
        said("legal/a", "x-tierwise-pick", "legal/a@picker"),
        said("legal/a@open", "x-tierwise-pick", "legal/b"),
        said("legal/a@open", "x-tierwise-pick", "legal/a@open"),
        said("legal/a@open", "x-tierwise-picker", "legal/c@picker"),
        said("legal/a@open", "x-tierwise-picker", "%REQ(x-tier)%"),
        unsaid("legal/a", "x-tierwise-pick"),
        unsaid("legal/a@open", "x-tierwise-pick"),
        unsaid("legal/a@open", "x-tierwise-picker"),
        said_twice,
        said_if_the_client_does_not,
        picker_elsewhere,
        picker_at_another_port,
        picker_of_another_tier,
        picker_with_a_filter,
        picker_of_hosts_that_requests_name,
        replicas_of_another_tier,
        replicas_that_are_fixed,
        replicas_with_a_script,
        way_past_the_listener,
        way_by_the_relay,
        another_processor,
        straight_to_the_picker,
    ],
)
def test_ways_out_are_seen(mistake):
    config, bundle = small()
    assert audit.audit(bundle, config.limits["legal"]) == ()
    mistake(bundle)
    (first, *_) = audit.audit(bundle, config.limits["legal"])
    assert first.startswith(audit.PREFIX)


def test_a_tier_that_fails_closed_asks_its_own_picker():
    config, bundle = small("FailClose")
    assert audit.audit(bundle, config.limits["legal"]) == ()
    said("legal/a", "x-tierwise-picker", "legal/c@picker")(bundle)
    assert audit.audit(bundle, config.limits["legal"])


def test_a_picker_that_the_objects_no_longer_name_is_not_asked():
    _, before = small()
    now = gateway.render(world([in_cluster(name="a", clearance="Restricted"), picked("FailOpen", "c")], []))
    found = audit.audit(before, now.limits["legal"])
    for name in ("legal/a@open", "legal/a@replicas", "legal/a@picker"):
        assert any(f"cluster {name} is of an endpoint picker, and tier a has none" in each for each in found)
    assert any("cluster legal/a leads to" in each for each in found)
