"""`tierwise envoy-config` from files: what it prints, what it never prints, and what it exits with."""

import base64
import copy
import json
import os
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from tierwise import yaml_text
from tierwise.adapters.cluster import ForbiddenError, Listing, NotFoundError
from tierwise.cli import cli
from tierwise.render.envoy import protos
from tierwise.render.envoy.options import GatewayOptions
from tierwise.runtime import envoy_config, served

KEY = "sk-planted-provider-71d2"
CONSUMER_KEY = "tw-planted-consumer-9a8b7c6d5e"
API = "tierwise.dev/v1alpha1"


def tier(name="frontier", namespace="legal", **external):
    given = {"url": "https://api.provider.example/v1", "credentialsRef": {"name": "provider-key"}, **external}
    return {
        "apiVersion": API,
        "kind": "ModelTier",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"model": "large-1", "external": given},
    }


def policy(namespace="legal", **spec):
    given = {
        "models": ["assistant"],
        "sensitivity": "Public",
        "classes": [{"name": "all", "tiers": [{"name": "frontier"}]}],
        **spec,
    }
    return {
        "apiVersion": API,
        "kind": "RoutingPolicy",
        "metadata": {"name": "assistant", "namespace": namespace, "uid": f"u-{namespace}"},
        "spec": given,
    }


def secret(name="provider-key", namespace="legal", **data):
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": namespace},
        "stringData": data or {"token": KEY},
    }


def consumer():
    return {
        "apiVersion": API,
        "kind": "Consumer",
        "metadata": {"name": "bot", "namespace": "legal"},
        "spec": {"apiKeys": [{"name": "bot-key", "key": "key"}, {"name": "no-such", "key": "key"}]},
    }


@pytest.fixture(autouse=True)
def envoy_on_path(monkeypatch):
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")


def run(tmp_path, *manifests, options=()):
    (tmp_path / "all.yaml").write_text(yaml_text.dump_all(manifests))
    result = CliRunner().invoke(cli, ["envoy-config", "-f", str(tmp_path), "-o", "json", *options])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def of_type(resources, type_url):
    return {each.get("name") or each.get("cluster_name"): each for each in resources if each["@type"] == type_url}


def test_it_prints_every_kind_of_resource_and_no_secret(tmp_path):
    planted = [tier(), policy(), secret(), consumer(), secret("bot-key", key=CONSUMER_KEY)]
    result = run(tmp_path, *planted, options=["--validate"])
    assert result.exit_code == 0, result.stderr
    for each in (KEY, CONSUMER_KEY):
        assert each not in result.output
        assert base64.b64encode(each.encode()).decode() not in result.output
    found = json.loads(result.stdout)
    legal = found["namespaces"]["legal"]
    assert set(of_type(legal["resources"], protos.CLUSTER)) == {"legal/frontier", "legal/frontier@provider"}
    (kept,) = of_type(legal["resources"], protos.SECRET).values()
    assert kept["generic_secret"]["secret"]["inline_string"] == "REDACTED-1"
    (keys,) = of_type(found["shared"]["resources"], protos.EXTENSION).values()
    assert "REDACTED-1" in json.dumps(keys)
    assert "legal/bot" in json.dumps(keys)
    assert legal["missing"] == ["Consumer bot: Secret 'no-such', key 'key': not found in this namespace: create it"]
    listeners = {"tierwise", "tierwise/providers", "tierwise/guard", "tierwise/pickers", "tierwise_picker_calls"}
    assert set(of_type(found["shared"]["resources"], protos.LISTENER)) == listeners
    # The same as YAML.
    again = CliRunner().invoke(cli, ["envoy-config", "-f", str(tmp_path)])
    assert yaml.safe_load(again.stdout) == found


def of_an_engine(namespace):
    """A tier that gives way at five requests in flight for each of its two replicas."""
    spec = {"model": "m", "clearance": "Public", "inCluster": {"image": "i:1", "replicas": {"min": 1, "max": 2}}}
    own = {"apiVersion": API, "kind": "ModelTier", "metadata": {"name": "own", "namespace": namespace}, "spec": spec}
    classes = [{"name": "all", "tiers": [{"name": "own"}, {"name": "frontier"}], "fallback": {"when": ["Saturated"]}}]
    labels = {"tierwise.dev/tier": "own"}
    pods = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "addressType": "IPv4",
        "metadata": {"name": "own-1", "namespace": namespace, "labels": labels},
        "ports": [{"name": "http", "port": 8000}],
        "endpoints": [{"addresses": [f"10.0.0.{n}"], "conditions": {"ready": True}} for n in (1, 2)],
    }
    status = {"capacity": {"provenance": "Measured", "concurrentRequests": 5}}
    return [{**own, "status": status}, pods, policy(namespace, classes=classes), tier(namespace=namespace)]


def test_each_namespace_has_its_part_of_the_limits_of_requests_in_flight(tmp_path):
    objects = [*of_an_engine("legal"), *of_an_engine("sales"), tier(namespace="idle"), policy("idle")]
    result = run(tmp_path, *objects, options=["--no-authentication", "--validate"])
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)["namespaces"]
    for name in ("legal", "sales"):
        (layer,) = of_type(found[name]["resources"], protos.RUNTIME).values()
        assert layer["layer"] == {f"circuit_breakers.{name}/own@limited.default.max_requests": 10}
    assert not of_type(found["idle"]["resources"], protos.RUNTIME)
    (alone,) = json.loads(run(tmp_path, *objects, options=["-n", "sales"]).stdout)["namespaces"].values()
    assert of_type(alone["resources"], protos.RUNTIME)


def test_a_missing_secret_is_shown_as_such(tmp_path):
    found = json.loads(run(tmp_path, tier(), policy()).stdout)["namespaces"]["legal"]
    assert found["missing"] == [
        "Secret provider-key, key token: not found; ModelTier frontier takes no request without it"
    ]
    assert not of_type(found["resources"], protos.SECRET)
    found = json.loads(run(tmp_path, tier(), policy(), secret(other="x" * 9)).stdout)["namespaces"]["legal"]
    assert "has no such key" in found["missing"][0]


def test_one_namespace_alone(tmp_path):
    both = [tier(), policy(), tier(namespace="sales"), policy("sales")]
    found = json.loads(run(tmp_path, *both, options=["-n", "sales"]).stdout)
    assert list(found) == ["namespaces"]
    assert list(found["namespaces"]) == ["sales"]
    assert "legal" not in json.dumps(found)


def test_manifests_without_a_namespace_are_in_the_one_that_is_named(tmp_path):
    bare = [tier(), policy()]
    for each in bare:
        del each["metadata"]["namespace"]
    found = json.loads(run(tmp_path, *bare, options=["-n", "mine"]).stdout)
    assert found["namespaces"]["mine"]["resources"]


def test_what_envoy_refuses_is_told_in_its_words_by_namespace(tmp_path):
    no_certificate = "-----BEGIN CERTIFICATE-----\nbm90IGEgY2VydGlmaWNhdGU=\n-----END CERTIFICATE-----\n"
    wrong = [tier(), policy(), secret(), tier(namespace="sales", caBundle=no_certificate), policy("sales"),
             secret(namespace="sales")]  # fmt: skip
    result = run(tmp_path, *wrong, options=["--validate"])
    assert result.exit_code == 4
    assert "Envoy refuses namespace sales:" in result.stderr
    assert "trusted CA" in result.stderr
    assert "legal" not in result.stderr
    assert KEY not in result.output
    # Without --validate it is printed, and that is all.
    assert run(tmp_path, *wrong).exit_code == 0


def test_an_object_that_is_not_valid_is_named(tmp_path):
    wrong = policy(sensitivity="VerySecret")
    result = run(tmp_path, tier(), secret(), wrong)
    assert result.exit_code == 3
    (note,) = json.loads(result.stdout)["namespaces"]["legal"]["notes"]
    assert "RoutingPolicy assistant is not valid" in note
    assert run(tmp_path, tier(), secret(), wrong, options=["-n", "elsewhere"]).exit_code == 0


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (["--validate", "--envoy", "no-such-envoy"], 1, "no program 'no-such-envoy'"),
        (["--kubeconfig", __file__], 2, "exclude each other"),
    ],
)
def test_other_ends(tmp_path, options, code, says, monkeypatch, capsys):
    (tmp_path / "all.yaml").write_text(yaml_text.dump_all([tier(), policy()]))
    from tierwise import cli as module

    monkeypatch.setattr(sys, "argv", ["tierwise", "envoy-config", "-f", str(tmp_path / "all.yaml"), *options])
    with pytest.raises(SystemExit) as ended:
        module.main()
    assert ended.value.code == code
    assert says in capsys.readouterr().err


def test_a_file_that_is_no_manifest_is_named(tmp_path, monkeypatch, capsys):
    (tmp_path / "bad.yaml").write_text("a: b: c")
    from tierwise import cli as module

    monkeypatch.setattr(sys, "argv", ["tierwise", "envoy-config", "-f", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        module.main()
    assert ended.value.code == 1
    assert "bad.yaml" in capsys.readouterr().err


def test_what_gateways_refuse_is_taken_from_the_statuses(tmp_path):
    """Another replica's gateways refused this very version, and nothing older is kept."""
    first = json.loads(run(tmp_path, tier(), secret(), policy()).stdout)["namespaces"]["legal"]
    refused = policy()
    entry = {"name": "operator-1", "hash": first["version"], "connected": 1, "refused": 1, "message": "missing )"}
    refused["status"] = {"gateways": [entry]}
    result = run(tmp_path, tier(), secret(), refused)
    assert result.exit_code == 3
    (note,) = json.loads(result.stdout)["namespaces"]["legal"]["notes"]
    assert "missing )" in note
    assert "this is the newest" in note
    entry["hash"] = "an-older-one"
    assert run(tmp_path, tier(), secret(), refused).exit_code == 0


class FakeCluster:
    """Lists and reads what it holds; says no to whatever this user may not."""

    def __init__(self, *manifests, may_list=None, may_read=True):
        self.manifests = manifests
        self.may_list = may_list  # None: all namespaces
        self.may_read = may_read

    async def list(self, kind, *, namespace=None, label_selector=None):
        if self.may_list is not None and namespace != self.may_list:
            raise ForbiddenError(f"{kind.plural} in {namespace}")
        found = [
            each
            for each in self.manifests
            if each["kind"] == kind.name
            and namespace in {None, each["metadata"]["namespace"]}
            and (label_selector is None or each["metadata"].get("labels"))
        ]
        return Listing(tuple(copy.deepcopy(found)), "1")

    async def secret(self, namespace, name):
        if not self.may_read:
            raise ForbiddenError(name)
        for each in self.manifests:
            metadata = each["metadata"]
            if (each["kind"], metadata["namespace"], metadata["name"]) == ("Secret", namespace, name):
                data = {key: base64.b64encode(value.encode()).decode() for key, value in each["stringData"].items()}
                return {**each, "data": data}
        raise NotFoundError(name)


def deployment(**environment):
    container = {"env": [{"name": name, "value": value} for name, value in environment.items()]}
    container["env"].append({"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}})
    labels = {"tierwise.dev/component": "operator"}
    return {
        "kind": "Deployment",
        "metadata": {"name": "tierwise-operator", "namespace": "tierwise-system", "labels": labels},
        "spec": {"template": {"spec": {"containers": [container]}}},
    }


async def from_cluster(cluster, **given):
    store = await served.from_cluster(cluster, (), **given)
    unreadable = await served.read_secrets(cluster, store)
    shown = served.show(store.snapshot(datetime.now(UTC)), GatewayOptions(), unreadable=unreadable)
    return envoy_config.document(shown)["namespaces"]


async def test_one_who_may_see_a_namespace_only_sees_that():
    objects = [tier(), policy(), secret(), tier(namespace="sales"), policy("sales")]
    assert set(await from_cluster(FakeCluster(*objects))) == {"legal", "sales"}
    assert set(await from_cluster(FakeCluster(*objects, may_list="legal"), fallback="legal")) == {"legal"}
    with pytest.raises(ForbiddenError):
        await from_cluster(FakeCluster(*objects, may_list="legal"))
    unread = (await from_cluster(FakeCluster(*objects, may_read=False)))["legal"]
    assert "you may not read it" in unread["missing"][0]


async def test_the_gateways_zones_are_shown_to_those_who_may_see_them():
    metadata = {"name": "gateway-0", "namespace": "tierwise-system", "labels": {"topology.kubernetes.io/zone": "a"}}
    ready = {"conditions": [{"type": "Ready", "status": "True"}]}
    pod = {"kind": "Pod", "metadata": metadata, "status": ready}
    for cluster, seen in ((FakeCluster(pod), {"a": 1}), (FakeCluster(pod, may_list="legal"), {})):
        store = await served.from_cluster(cluster, (), fallback="legal")
        await served.read_gateway_zones(cluster, store, "tierwise-system")
        assert store.snapshot(datetime.now(UTC)).gateway_zones == seen


async def test_the_operators_settings_are_its_deployments():
    cluster = FakeCluster(deployment(TIERWISE_AUTHENTICATION="false", TIERWISE_TRACING_ENDPOINT="otel:4317"))
    environment = await served.operators_environment(cluster, "tierwise-system")
    options = envoy_config._options(envoy_config._told(environment))
    assert options.authentication is None
    assert options.tracing is not None
    assert options.tracing.host == "otel"
    # Who can not see it gets the defaults: callers have to prove who they are.
    nothing = await served.operators_environment(FakeCluster(may_list="legal"), "tierwise-system")
    assert nothing == {}
    assert envoy_config._options(envoy_config._told(nothing)).authentication is not None
