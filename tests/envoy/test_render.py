"""Invariants of every rendered configuration."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import pytest
from envoy_lab import external, in_cluster, policy, world
from hypothesis import given, settings
from hypothesis import strategies as st

from tierwise.core.world import Endpoint, Key
from tierwise.render.envoy import bootstrap, clusters, gateway, last_good, protos
from tierwise.render.envoy.bundle import NamespaceBundle
from tierwise.render.envoy.options import GatewayOptions
from tierwise.render.envoy.protos import CLUSTER, ENDPOINTS, LISTENER, ROUTES, SCOPE

LEVELS = ["Public", "Internal", "Confidential", "Restricted"]
NAMES = ["a", "b", "c"]
ENGINE = {"engine": "VLLM", "image": "vllm/vllm-openai:v0.24.0", "replicas": {"min": 1, "max": 4}}

tiers = st.lists(
    st.tuples(st.sampled_from(NAMES), st.booleans(), st.sampled_from(LEVELS)), unique_by=lambda t: t[0], max_size=3
)


pickers = st.sampled_from([None, "FailOpen", "FailClose"]).map(
    lambda mode: {"inCluster": {**ENGINE, "endpointPickerRef": {"name": "epp", "failureMode": mode}}} if mode else {}
)


@st.composite
def worlds(draw):
    found, policies = [], []
    for namespace in draw(st.lists(st.sampled_from(["n1", "n2"]), unique=True)):
        for name, outside, clearance in draw(tiers):
            if outside:
                url = f"https://{name}.provider.example/v1"
                credentials = {"name": "k", "header": draw(st.sampled_from(["authorization", "x-own-key"]))}
                found.append(external(url, name, namespace, clearance=clearance, credentialsRef=credentials))
            else:
                found.append(in_cluster(name, namespace, clearance=clearance, **draw(pickers)))
        for number in range(draw(st.integers(0, 2))):
            classes = []
            for index in range(draw(st.integers(1, 3))):
                listed = draw(st.lists(st.sampled_from(NAMES), min_size=1, unique=True))
                each = {"name": f"c{index}", "tiers": [{"name": n} for n in listed]}
                each["match"] = {"headers": [{"name": "x-c", "value": str(index)}]}
                more = draw(st.sampled_from([[], ["Saturated"]]))
                each["fallback"] = {"attempts": draw(st.integers(1, 5)), "when": ["ServerError", *more]}
                classes.append(each)
            models = draw(st.lists(st.sampled_from(["m1", "m2"]), min_size=1, unique=True))
            hosts = draw(st.lists(st.sampled_from(["h1", "h2"]), unique=True))
            policies.append(
                policy(
                    f"p{number}",
                    namespace,
                    models=models,
                    hostnames=hosts,
                    classes=classes,
                    sensitivity=draw(st.sampled_from(LEVELS)),
                )
            )
    secrets = {f"{n}/k": {"token": "sk-secret"} for n in draw(st.lists(st.sampled_from(["n1", "n2"]), unique=True))}
    return world(found, policies, {}, secrets)


def routes_of(bundle):
    if bundle.routes is None:
        return
    tree = bundle.routes["virtual_hosts"][0]["matcher"]["matcher_tree"]["exact_match_map"]["map"]
    for model, action in tree.items():
        for route in action["action"]["typed_config"]["routes"]:
            yield model, route


def clusters_of(route):
    plugin = route["route"]["inline_cluster_specifier_plugin"]["extension"]["typed_config"]
    return {c["cluster_name"] for group in plugin["priority_groups"] for c in group["clusters"]}


@settings(max_examples=60, deadline=None)
@given(worlds())
def test_every_configuration_keeps_its_promises(given_world):
    config = gateway.render(given_world)
    assert not config.invalid
    for namespace, bundle in config.namespaces.items():
        for model, route in routes_of(bundle):
            if "route" not in route:
                continue
            labels = route["metadata"]["filter_metadata"]["tierwise"]
            owner = given_world.policies[Key(namespace, labels["policy"])]
            assert model in owner.spec.models
            level = LEVELS.index(route["name"].rsplit("/", 1)[1])
            listed = {f"{namespace}/{t.name}" for t in owner.spec.routing_class(labels["class"]).tiers}
            for name in clusters_of(route):
                assert name in bundle.clusters, "a route names a cluster that is not there"
                tier = name.removesuffix("@guarded")
                assert tier in listed, "a tier outside of the class"
                clearance = given_world.tiers[Key(*tier.split("/"))].spec.effective_clearance
                assert clearance.rank >= level, "a tier that is not cleared"
        for name, cluster in bundle.clusters.items():
            if name.endswith("@picker"):  # not a request's way, but that of a question about it
                assert name.removesuffix("@picker") in bundle.clusters
                continue
            chain = cluster["typed_extension_protocol_options"][
                "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
            ]["http_filters"]
            assert chain[0]["name"] == "tierwise.reset"
            tier, at, _ = name.partition("@")
            if at:
                assert tier in bundle.clusters
            else:
                assert chain[1]["name"] == "tierwise.request"
            assert chain[-1]["name"] == "tierwise.codec"
            removed = {m["remove"] for m in chain[0]["typed_config"]["mutations"]["request_mutations"] if "remove" in m}
            assert {"authorization", "cookie", "x-api-key", "api-key"} <= removed
            for key, tier in given_world.tiers.items():
                if key.namespace == namespace and tier.spec.external is not None:
                    assert tier.spec.external.credentials_ref.header in removed, "a credential would travel on"
            assert name.split("/")[0] == namespace
        assert "sk-secret" not in json.dumps([bundle.clusters, bundle.routes, bundle.scopes, bundle.endpoints])
        assert "sk-secret" not in repr(bundle)
        assert last_good.unpack(namespace, last_good.pack(bundle)) == dataclasses.replace(
            bundle, endpoints={}, secrets={}
        )


@settings(max_examples=30, deadline=None)
@given(worlds())
def test_equal_worlds_give_equal_bytes_in_any_order(given_world):
    shuffled = dataclasses.replace(
        given_world,
        tiers=dict(reversed(given_world.tiers.items())),
        policies=dict(reversed(given_world.policies.items())),
    )
    one, two = gateway.render(given_world), gateway.render(shuffled)
    assert protos.canonical(one.shared) == protos.canonical(two.shared)
    assert one.namespaces == two.namespaces


VERSIONS = """
from envoy_lab import in_cluster, policy, world
from tierwise.render.envoy import gateway, protos
config = gateway.render(world([in_cluster()], [policy(classes=[{"name": "all", "tiers": [{"name": "compact"}]}])]))
bundle = config.namespaces["legal"]
found = [bundle.routes, *bundle.clusters.values(), *(each for kind in config.shared.values() for each in kind.values())]
print(*(protos.encode(each).version for each in found))
"""


def test_versions_are_equal_in_every_process():
    """Else a gateway that goes to another replica would be sent everything anew, its listener too."""
    folder = pathlib.Path(__file__).parent
    printed = {
        subprocess.run(
            [sys.executable, "-c", VERSIONS],
            env=os.environ | {"PYTHONHASHSEED": seed},
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(printed) == 1


@settings(max_examples=20, deadline=None)
@given(worlds())
def test_the_listener_never_changes(given_world):
    assert gateway.render(given_world).shared[LISTENER] == gateway.render(world()).shared[LISTENER]


@settings(max_examples=30, deadline=None)
@given(st.lists(worlds(), min_size=2, max_size=4))
def test_what_was_rendered_before_makes_no_difference(sequence):
    renderer = gateway.Renderer()
    for each in [*sequence, sequence[0]]:
        # Objects that stay are the very same ones in the next world, as in the operator's store.
        mixed = dataclasses.replace(each, tiers={**sequence[0].tiers, **each.tiers})
        assert renderer(mixed) == gateway.render(mixed)
        assert renderer(mixed) == gateway.render(mixed)


def test_only_namespaces_that_changed_are_made_anew():
    renderer = gateway.Renderer()
    before = world([in_cluster(), in_cluster(namespace="sales")], [], {"legal/compact": [1]})
    one = renderer(before)
    two = renderer(
        dataclasses.replace(before, endpoints={Key("legal", "compact"): (Endpoint("10.0.0.1", 2, True, True, False),)})
    )
    assert two.namespaces["sales"] is one.namespaces["sales"]
    assert two.namespaces["legal"] is not one.namespaces["legal"]


def bundle_of(**more) -> NamespaceBundle:
    given_world = world([in_cluster()], [policy(classes=[{"name": "all", "tiers": [{"name": "compact"}]}])], **more)
    return gateway.render(given_world).namespaces["legal"]


def test_the_hash_follows_configuration_not_addresses_and_credentials():
    assert bundle_of().hash == bundle_of(endpoints={"legal/compact": [1, 2]}).hash
    assert bundle_of().endpoints != bundle_of(endpoints={"legal/compact": [1]}).endpoints


@given(st.permutations(["b", "a", None, "a"]), st.permutations([("b", 1), ("", 1), ("a", 2)]))
def test_replicas_and_gateways_are_sorted_by_zone(zones, gateways):
    """In whatever order they are seen; the host that refuses, for when there are none, stands in no zone."""
    at = {"b": ["10.0.0.9"], "a": ["10.0.0.3", "10.0.0.5"], None: ["10.0.0.7"]}
    left = {zone: list(addresses) for zone, addresses in at.items()}
    found = tuple(Endpoint(left[zone].pop(), 80, True, True, False, zone) for zone in zones)
    given_world = dataclasses.replace(
        world([in_cluster()], gateway_zones=dict(gateways)), endpoints={Key("legal", "compact"): found}
    )
    config = gateway.render(given_world)

    def placed(resource):
        return [
            (
                each.get("locality", {}).get("zone"),
                [
                    (host["address"]["socket_address"]["address"], host["address"]["socket_address"]["port_value"])
                    for host in (one["endpoint"] for one in each["lb_endpoints"])
                ],
            )
            for each in resource["endpoints"]
        ]

    assert placed(config.namespaces["legal"].endpoints["legal/compact"]) == [
        (None, [("10.0.0.7", 80)]),
        ("a", [("10.0.0.3", 80), ("10.0.0.5", 80)]),
        ("b", [("10.0.0.9", 80)]),
        (None, [("127.0.0.1", 1)]),
    ]
    assert [(zone, len(hosts)) for zone, hosts in placed(config.shared[ENDPOINTS]["tierwise.gateways"])] == [
        (None, 1),
        ("a", 2),
        ("b", 1),
    ]
    nowhere = dataclasses.replace(given_world, gateway_zones={"": 2})
    assert placed(gateway.render(nowhere).shared[ENDPOINTS]["tierwise.gateways"]) == [], "no zone is known"


def test_terminating_replicas_serve_while_no_other_does():
    def hosts(*found):
        given_world = dataclasses.replace(world([in_cluster()]), endpoints={Key("legal", "compact"): found})
        groups = gateway.render(given_world).namespaces["legal"].endpoints["legal/compact"]["endpoints"]
        return [
            e["endpoint"]["address"]["socket_address"]["port_value"]
            for g in groups
            if g["priority"] == 0
            for e in g["lb_endpoints"]
        ]

    ready, leaving, starting = (
        Endpoint("10.0.0.1", 1, True, True, False),
        Endpoint("10.0.0.2", 2, False, True, True),
        Endpoint("10.0.0.3", 3, False, False, False),
    )
    assert hosts(ready, leaving, starting) == [1]
    assert hosts(leaving, starting) == [2]
    assert hosts(starting) == []


@pytest.mark.parametrize(
    ("field", "value"),
    [("no_such_field", 1), ("connect_timeout", "soon"), ("type", "WRONG"), ("metadata", {"filter_metadata": 3})],
)
def test_what_envoy_would_swallow_is_an_error_here(field, value):
    cluster = dict(bundle_of().clusters["legal/compact"])
    cluster[field] = value
    with pytest.raises(protos.InvalidResource, match="legal/compact"):
        protos.encode(cluster)


def test_an_invalid_namespace_harms_no_other(monkeypatch):
    plain = gateway.clusters.in_cluster

    def planted(key, *args, **kwargs):
        return plain(key, *args, **kwargs) | ({"nonsense": 1} if key.namespace == "legal" else {})

    monkeypatch.setattr(gateway.clusters, "in_cluster", planted)
    config = gateway.render(world([in_cluster(), in_cluster(namespace="sales")]))
    assert set(config.namespaces) == {"sales"}
    assert "nonsense" in config.invalid["legal"]


@pytest.mark.parametrize(
    "damage", [{"format": "9"}, {"bundle": "!"}, {"bundle": "AAAA"}, {"hash": "x"}, {"bundle": None}]
)
def test_a_damaged_last_good_is_an_error_not_a_surprise(damage):
    with pytest.raises(last_good.UnreadableLastGood):
        last_good.unpack("legal", last_good.pack(bundle_of()) | damage)


def test_a_last_good_that_an_earlier_version_kept_is_read():
    kept = last_good.pack(bundle_of())
    assert last_good.unpack("legal", kept | {"hash": kept["hash"].removeprefix("h")}).hash == kept["hash"]


def test_a_last_good_that_unpacks_to_too_much_is_refused(monkeypatch):
    monkeypatch.setattr(last_good, "_MAX_BYTES", 100)
    with pytest.raises(last_good.UnreadableLastGood, match="larger"):
        last_good.unpack("legal", last_good.pack(bundle_of()))


def test_envoy_validates_bootstrap_and_resources_together(tmp_path):
    provider = external("https://api.provider.example:8443/v1", credentialsRef={"name": "k"}, caBundle=None)
    classes = [{"name": "all", "tiers": [{"name": "compact"}, {"name": "frontier"}], "affinity": {"header": "x-s"}}]
    config = gateway.render(
        world(
            [in_cluster(), provider],
            [policy(classes=classes, hostnames=["h.example"])],
            {"legal/compact": [9]},
            {"legal/k": {"token": "sk"}},
        ),
        GatewayOptions(port=18080),
    )
    options = bootstrap.BootstrapOptions(xds_host="127.0.0.1", xds_dns=False, certificates=None, files=str(tmp_path))
    static = bootstrap.bootstrap(options)
    # Validation contacts nobody: what would come by ADS is put in its place.
    del static["dynamic_resources"]
    bundle = config.namespaces["legal"]
    plain = lambda resource: {k: v for k, v in resource.items() if k != "@type"}  # noqa: E731

    def at_home(found):
        if isinstance(found, list):
            return [at_home(each) for each in found]
        if not isinstance(found, dict):
            return found
        return {key: at_home(value) for key, value in found.items() if key not in {"sds_config", "eds_cluster_config"}}

    for name, cluster in bundle.clusters.items():
        here = at_home(plain(cluster))
        if name in bundle.endpoints:
            here |= {"type": "STATIC", "load_assignment": plain(bundle.endpoints[name])}
        static["static_resources"]["clusters"].append(here)
    listener = plain(config.shared[LISTENER]["tierwise"])
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    del manager["scoped_routes"]
    manager["route_config"] = plain(bundle.routes)
    static["static_resources"]["listeners"].append(listener)
    static["static_resources"]["secrets"] = [plain(s) for s in bundle.secrets.values()]
    (tmp_path / "all.json").write_text(json.dumps(static))
    checked = subprocess.run(
        [
            "envoy",
            "--mode",
            "validate",
            "-c",
            str(tmp_path / "all.json"),
            "-l",
            "error",
            "--service-node",
            "n",
            "--service-cluster",
            "c",
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert {SCOPE, ROUTES, LISTENER, ENDPOINTS, CLUSTER} == set(config.shared)
    assert all(c["@type"] == CLUSTER for c in bundle.clusters.values())


CHART_FILES = {
    bootstrap.BOOTSTRAP_FILE: "envoy-bootstrap.json",
    bootstrap.CERTIFICATE_FILE: "envoy-xds-certificate.json",
    bootstrap.AUTHORITY_FILE: "envoy-xds-authority.json",
}


def test_the_chart_holds_the_bootstrap_that_is_rendered(pytestconfig):
    rendered = bootstrap.files(bootstrap.for_namespace("TIERWISE_NAMESPACE"))
    assert set(rendered) == set(CHART_FILES)
    for file, content in rendered.items():
        held = json.loads((pytestconfig.rootpath / "charts/tierwise/files" / CHART_FILES[file]).read_text())
        assert held == content, f"write {file} of bootstrap.files() to charts/tierwise/files/{CHART_FILES[file]}"


def test_openais_own_hosts_get_the_key_that_their_newer_models_want():
    for host in ("api.openai.com", "eu.api.openai.com", "legal.openai.azure.com"):
        assert clusters.output_key(host) == "max_completion_tokens"
    for host in ("openai.com.example", "myopenai.com", "api.mistral.ai", "10.0.0.1"):
        assert clusters.output_key(host) == "max_tokens"
