"""The chart, by a real Helm, against a real API server: accepted, restricted, least privilege, refused when wrong."""

import asyncio
import json
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

import support
from tierwise import yaml_text
from tierwise.devcluster import install
from tierwise.devcluster.cluster import Cluster
from tierwise.devcluster.errors import DevClusterError
from tierwise.runtime import zones

pytestmark = pytest.mark.slow

CHART = str(install.shared("charts") / "tierwise")
OPERATOR = f"system:serviceaccount:{install.NAMESPACE}:tierwise-operator"


def rendered(cluster: Cluster, *options: str) -> list[dict[str, Any]]:
    text = cluster.helm("template", "tierwise", CHART, "--namespace", "chart", *options).stdout
    return [document for document in yaml.safe_load_all(text) if document]


def of_kind(objects: list[dict[str, Any]], kind: str) -> dict[str, dict[str, Any]]:
    return {each["metadata"]["name"]: each for each in objects if each["kind"] == kind}


def test_helm_finds_no_fault(cluster: Cluster) -> None:
    out = cluster.helm("lint", "--strict", CHART).stdout
    assert "0 chart(s) failed" in out


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"gateway": {"service": {"type": "LoadBalancer", "annotations": {"a": "b"}}, "concurrency": 0}},
        {"gateway": {"service": {"headless": True}, "tolerations": [{"operator": "Exists"}]}},
        {"operator": {"env": [{"name": "A", "value": "1"}], "nodeSelector": {"a": "b"}, "log": {"format": "console"}}},
        {"rbac": {"aggregate": False}, "metricsRules": {"enabled": False}},
    ],
    ids=["default", "load-balancer", "headless", "operator", "less"],
)
def test_the_api_server_accepts_it_and_pod_security_has_no_objection(
    cluster: Cluster, tmp_path: Any, values: dict[str, Any]
) -> None:
    created = cluster.kubectl("create", "namespace", "chart", check=False)
    assert created.returncode == 0 or "AlreadyExists" in created.stderr
    for mode in ("enforce", "warn"):
        cluster.kubectl("label", "namespace", "chart", "--overwrite", f"pod-security.kubernetes.io/{mode}=restricted")
    (tmp_path / "values.yaml").write_text(yaml_text.dump(values))
    objects = rendered(cluster, "--values", str(tmp_path / "values.yaml"))
    # As another installation: cluster-wide objects of one that is there stay untouched by a dry run.
    result = cluster.kubectl(
        "apply", "--server-side", "--dry-run=server", "--force-conflicts", "-n", "chart", "-f", "-",
        input_text=yaml_text.dump_all(objects),
    )  # fmt: skip
    assert "Warning" not in result.stderr, result.stderr
    assert result.stdout.count("serverside-applied") == len(objects)


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("operator.replicas=0", "replicas"),
        ("gateway.replica=3", "replica"),
        ("operator.log.level=TRACE", "level"),
        ("operator.namespaces={Not_A_Name}", "namespaces"),
        ("gateway.tracing.otlpEndpoint=http://collector", "otlpEndpoint"),
        ("gateway.resources.limits.memory=much", "512Mi"),
        ("metricsRules.extra={no name}", "extra"),
    ],
)
def test_a_wrong_value_is_refused_by_name(cluster: Cluster, setting: str, says: str) -> None:
    with pytest.raises(DevClusterError, match=says):
        rendered(cluster, "--set", setting)


@pytest.mark.parametrize(
    ("limit", "heap"), [("1Gi", 858993459), ("512Mi", 429496729), ("2G", 1600000000), (None, 858993459)]
)
def test_the_heaps_bound_follows_the_memory_limit(cluster: Cluster, limit: str | None, heap: int) -> None:
    """And with it the Pods: Envoy reads its bootstrap once."""
    option = f"gateway.resources.limits={json.dumps({'memory': limit} if limit else None)}"
    objects = rendered(cluster, "--set-json", option)
    bootstrap = json.loads(of_kind(objects, "ConfigMap")["tierwise-gateway"]["data"]["bootstrap.json"])
    (monitor,) = (m for m in bootstrap["overload_manager"]["resource_monitors"] if "fixed_heap" in m["name"])
    assert monitor["typed_config"]["max_heap_size_bytes"] == heap
    template = of_kind(objects, "Deployment")["tierwise-gateway"]["spec"]["template"]
    default = of_kind(rendered(cluster), "Deployment")["tierwise-gateway"]["spec"]["template"]
    same = template["metadata"]["annotations"] == default["metadata"]["annotations"]
    assert same == (heap == 858993459)


def test_a_collector_is_told_to_the_operator(cluster: Cluster) -> None:
    objects = rendered(
        cluster, "--set", "gateway.tracing.otlpEndpoint=otel.monitoring:4317",
        "--set-json", "gateway.tracing.samplingPercent=12.5",
    )  # fmt: skip
    (container,) = of_kind(objects, "Deployment")["tierwise-operator"]["spec"]["template"]["spec"]["containers"]
    given = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert given["TIERWISE_TRACING_ENDPOINT"] == "otel.monitoring:4317"
    assert given["TIERWISE_TRACING_SAMPLING_PERCENT"] == "12.5"


def test_rendering_twice_gives_the_same_and_holds_no_key(cluster: Cluster) -> None:
    """So that Argo CD sees no drift: certificates are the operator's."""
    assert rendered(cluster) == rendered(cluster)
    assert not of_kind(rendered(cluster), "Secret")


def test_with_namespaces_the_operator_has_no_rights_elsewhere(cluster: Cluster) -> None:
    objects = rendered(cluster, "--set", "operator.namespaces={red,blue}")
    assert not of_kind(objects, "ClusterRoleBinding")
    bindings = [o for o in objects if o["kind"] == "RoleBinding" and o["roleRef"]["kind"] == "ClusterRole"]
    assert sorted(b["metadata"]["namespace"] for b in bindings) == ["blue", "red"]
    for binding in bindings:
        assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "tierwise-operator", "namespace": "chart"}]
    (container,) = of_kind(objects, "Deployment")["tierwise-operator"]["spec"]["template"]["spec"]["containers"]
    assert {"name": "TIERWISE_NAMESPACES", "value": "red,blue"} in container["env"]


def test_a_pod_monitor_finds_every_component(cluster: Cluster) -> None:
    objects = rendered(cluster, "--set", "podMonitor.enabled=true")
    monitors = of_kind(objects, "PodMonitor")
    assert sorted(monitors) == ["tierwise-engine", "tierwise-gateway", "tierwise-operator"]
    for component, deployment in of_kind(objects, "Deployment").items():
        template = deployment["spec"]["template"]
        monitor = monitors[component]["spec"]
        assert monitor["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
        ports = {port["name"] for c in template["spec"]["containers"] for port in c["ports"]}
        assert {endpoint["port"] for endpoint in monitor["podMetricsEndpoints"]} <= ports
        assert monitor["podMetricsEndpoints"][0]["path"] == template["metadata"]["annotations"]["prometheus.io/path"]


def test_more_metrics_get_rules(cluster: Cluster) -> None:
    objects = rendered(cluster, "--set", "metricsRules.extra={my:queue}")
    (rules,) = (o for o in objects if "tierwise.dev/metrics-rules" in o["metadata"].get("labels", {}))
    listed = yaml.safe_load(rules["data"]["config.yaml"])["rules"]
    assert listed[-1]["name"]["as"] == "my_queue"
    assert listed[-1]["seriesQuery"].startswith("my:queue{")
    assert len(listed) > 5


def can(cluster: Cluster, who: str, verb: str, resource: str, namespace: str) -> bool:
    """Resource as kubectl spells it, with a subresource after a colon."""
    kind, _, subresource = resource.partition(":")
    options = [f"--subresource={subresource}"] if subresource else []
    asked = cluster.kubectl("auth", "can-i", verb, kind, *options, f"--as={who}", "-n", namespace, check=False)
    return asked.stdout.strip() == "yes"


ALLOWED = [
    ("watch", "modeltiers.tierwise.dev", "default"),
    ("patch", "routingpolicies.tierwise.dev:status", "default"),
    ("patch", "deployments.apps", "default"),
    ("patch", "deployments.apps:scale", "default"),
    ("create", "events.events.k8s.io", "default"),
    ("get", "secrets/provider-key", "default"),
    ("patch", "secrets/tierwise-xds-server", install.NAMESPACE),
    ("create", "secrets", install.NAMESPACE),
    ("update", "leases.coordination.k8s.io/tierwise-leader", install.NAMESPACE),
    ("list", "pods", install.NAMESPACE),
]
DENIED = [
    ("patch", "modeltiers.tierwise.dev", "default"),
    ("update", "routingpolicies.tierwise.dev", "default"),
    ("patch", "namespacebudgets.tierwise.dev", "default"),
    ("list", "secrets", "default"),
    ("list", "secrets", install.NAMESPACE),
    ("create", "secrets", "default"),
    ("patch", "secrets/another", install.NAMESPACE),
    ("delete", "secrets/tierwise-xds-ca", install.NAMESPACE),
    ("list", "pods", "default"),
    ("create", "pods", "default"),
    ("delete", "pods", install.NAMESPACE),
    ("create", "pods:exec", install.NAMESPACE),
    ("create", "leases.coordination.k8s.io", "default"),
    ("create", "rolebindings.rbac.authorization.k8s.io", install.NAMESPACE),
    ("list", "nodes", "default"),
    ("list", "namespaces", "default"),
]


@pytest.mark.parametrize(("verb", "resource", "namespace"), ALLOWED)
def test_the_operator_may(platform: Cluster, verb: str, resource: str, namespace: str) -> None:
    assert can(platform, OPERATOR, verb, resource, namespace)


@pytest.mark.parametrize(("verb", "resource", "namespace"), DENIED)
def test_the_operator_may_not(platform: Cluster, verb: str, resource: str, namespace: str) -> None:
    assert not can(platform, OPERATOR, verb, resource, namespace)


def test_teams_edit_tiers_and_only_the_platform_team_budgets(platform: Cluster) -> None:
    platform.kubectl("create", "namespace", "team", check=False)
    for who, role in (("ann", "edit"), ("vic", "view"), ("pat", "tierwise-budget-admin")):
        platform.kubectl("create", "rolebinding", who, "-n", "team", f"--clusterrole={role}", f"--user={who}")
    # The aggregation controller adds our rules to the built-in roles.
    support.until(
        lambda: can(platform, "ann", "create", "modeltiers.tierwise.dev", "team"),
        seconds=20,
        what="roles are aggregated",
    )
    assert can(platform, "ann", "delete", "routingpolicies.tierwise.dev", "team")
    assert can(platform, "ann", "get", "namespacebudgets.tierwise.dev", "team")
    assert not can(platform, "ann", "patch", "namespacebudgets.tierwise.dev", "team")
    assert not can(platform, "ann", "patch", "modeltiers.tierwise.dev:status", "team")
    assert can(platform, "vic", "list", "modeltiers.tierwise.dev", "team")
    assert not can(platform, "vic", "create", "modeltiers.tierwise.dev", "team")
    assert can(platform, "pat", "patch", "namespacebudgets.tierwise.dev", "team")
    platform.kubectl("delete", "namespace", "team", "--wait=false")


def test_the_installation_runs_and_its_secrets_are_the_operators_own(platform: Cluster) -> None:
    listed = platform.kubectl("get", "secrets", "-n", install.NAMESPACE, "-o", "json").stdout
    names = {item["metadata"]["name"] for item in json.loads(listed)["items"]}
    assert {"tierwise-xds-ca", "tierwise-xds-server", "tierwise-xds-client"} <= names
    for component, replicas in (("operator", 2), ("gateway", 2)):
        deployment = json.loads(
            platform.kubectl("get", "deployment", f"tierwise-{component}", "-n", install.NAMESPACE, "-o", "json").stdout
        )
        assert deployment["status"]["readyReplicas"] == replicas
    manifest = platform.helm("get", "manifest", install.RELEASE, "--namespace", install.NAMESPACE).stdout
    assert "PRIVATE KEY" not in manifest


def test_only_the_gateways_pair_is_mounted_in_a_gateway(platform: Cluster) -> None:
    pods = support.pods(platform, install.NAMESPACE, "tierwise.dev/component=gateway")
    assert pods
    for pod in pods:
        secrets = {v["secret"]["secretName"] for v in pod["spec"]["volumes"] if "secret" in v}
        assert secrets == {"tierwise-xds-client"}
        assert pod["spec"]["automountServiceAccountToken"] is False


def test_a_gateway_and_the_operator_know_its_zone(platform: Cluster) -> None:
    """By the label that the API server copies from the node to the Pod."""
    nodes = json.loads(platform.kubectl("get", "nodes", "-o", "json").stdout)["items"]
    of_node = {node["metadata"]["name"]: node["metadata"]["labels"][zones.ZONE_LABEL] for node in nodes}
    pods = support.pods(platform, install.NAMESPACE, zones.SELECTOR)
    expected = Counter(of_node[pod["spec"]["nodeName"]] for pod in pods)
    assert pods
    assert zones.counted(pods) == expected
    started = [path.read_bytes().split(b"\0") for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    for pod in pods:
        name, zone = pod["metadata"]["name"], of_node[pod["spec"]["nodeName"]]
        (arguments,) = [each for each in started if b"--service-zone" in each and name.encode() in each]
        assert arguments[arguments.index(b"--service-zone") + 1] == zone.encode()


async def streamed(client: httpx.AsyncClient, url: str, model: str, tokens: int) -> str:
    """Empty when the whole stream came, else what went wrong."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": "count"}],
        "max_tokens": tokens,
        "ignore_eos": True,
        "stream": True,
    }
    last = ""
    try:
        async with client.stream("POST", url, json=body) as answer:
            if answer.status_code != 200:
                return f"{answer.status_code} {(await answer.aread())[:200]!r}"
            async for line in answer.aiter_lines():
                last = line or last
    except httpx.TransportError as error:
        return f"{type(error).__name__}: {error}"
    return "" if last == "data: [DONE]" else f"ended with {last!r}"


async def test_a_gateway_that_is_stopped_cuts_no_stream(platform: Cluster) -> None:
    """Streams that are longer than the least drain, on connections that are kept alive and on new ones."""
    namespace = "drain"
    platform.kubectl("create", "namespace", namespace, check=False)
    support.apply(platform, namespace, support.in_cluster_tier("small"), support.policy("any", [{"name": "small"}]))
    support.wait_ready(platform, namespace)
    url = f"http://{install.gateway_address(platform)}/v1/chat/completions"
    gateways = support.pods(platform, install.NAMESPACE, "tierwise.dev/component=gateway")
    stopped = gateways[0]["metadata"]["name"]
    outcomes: list[str] = []

    async def one(client: httpx.AsyncClient, tokens: int) -> None:
        outcomes.append(await streamed(client, url, f"{namespace}/any", tokens))

    async with httpx.AsyncClient(timeout=60) as client, asyncio.TaskGroup() as group:
        for turn in range(50):
            group.create_task(one(client, tokens=800 if turn % 5 == 0 else 40))
            await asyncio.sleep(0.1)
            if turn == 10:
                await asyncio.to_thread(
                    platform.kubectl, "delete", "pod", stopped, "-n", install.NAMESPACE, "--wait=false"
                )
    assert outcomes == [""] * 50
    gone = f"pod/{stopped}"
    support.until(
        lambda: gone not in support.names(platform, install.NAMESPACE, "pods"), seconds=60, what="the gateway has ended"
    )
    events = platform.kubectl("get", "events", "-n", install.NAMESPACE).stdout
    assert "FailedPreStopHook" not in events
    platform.kubectl("delete", "namespace", namespace, "--wait=false")
