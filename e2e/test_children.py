"""The children of a tier on a real API server with its real controllers, applied as the operator applies them.

No operator runs here: what is tested is what `render` says, against the API server's defaulting, its Pod security
admission, its garbage collector and its autoscaler.
"""

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from rich.console import Console

import support
from tierwise import yaml_text
from tierwise.api.model_tier import ModelTier
from tierwise.core.plan import ReplicaBounds
from tierwise.devcluster import install
from tierwise.devcluster.cluster import Cluster
from tierwise.devcluster.errors import DevClusterError
from tierwise.render.children import children
from tierwise.render.drift import differs

pytestmark = pytest.mark.slow

NAMESPACE = "children"
KINDS = ("deployments", "services", "hpa", "pdb")
RESTRICTED = [f"pod-security.kubernetes.io/{mode}=restricted" for mode in ("enforce", "warn")]


@pytest.fixture(scope="module")
def bare(cluster: Cluster) -> Iterator[Cluster]:
    """Our kinds and the autoscalers' rules, and a namespace that admits restricted Pods only; no operator.

    One that another module has installed on the session's cluster rests meanwhile: it would move the bounds.
    """
    operator = ("deployment/tierwise-operator", "-n", install.NAMESPACE)
    replicas = cluster.kubectl("get", *operator, "-o", "jsonpath={.spec.replicas}", "--ignore-not-found").stdout
    if replicas:
        cluster.kubectl("scale", *operator, "--replicas=0")
        selector = ("-l", "tierwise.dev/component=operator")
        cluster.kubectl("wait", "pods", *selector, "-n", install.NAMESPACE, "--for=delete", "--timeout=60s")
    cluster.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(install.shared("crds")))
    cluster.kubectl("wait", "--for=condition=Established", "--timeout=30s", "-f", str(install.shared("crds")))
    cluster.kubectl("create", "namespace", NAMESPACE)
    cluster.kubectl("label", "namespace", NAMESPACE, *RESTRICTED)
    chart = str(install.shared("charts") / "tierwise")
    rules = cluster.helm("template", "tierwise", chart, "--show-only", "templates/metrics-rules.yaml").stdout
    cluster.kubectl("apply", "-n", NAMESPACE, "-f", "-", input_text=rules)
    yield cluster
    cluster.kubectl("delete", "namespace", NAMESPACE, "--timeout=60s")
    if replicas:
        cluster.kubectl("scale", *operator, f"--replicas={replicas}")
        cluster.kubectl("rollout", "status", *operator, "--timeout=120s")


def stored(cluster: Cluster, manifest: dict[str, Any], *options: str) -> ModelTier:
    """The tier as the API server gives it back, uid and defaults included."""
    text = cluster.kubectl(
        "apply", "-n", NAMESPACE, "-f", "-", "-o", "json", *options, input_text=yaml_text.dump(manifest)
    ).stdout
    return ModelTier.parse(json.loads(text))


def applied(cluster: Cluster, tier: ModelTier, bounds: ReplicaBounds, *options: str) -> list[dict[str, Any]]:
    """Server-side apply of all children as the operator does it; what the API server made of them."""
    result = cluster.kubectl(
        "apply",
        "--server-side",
        "--force-conflicts",
        "--field-manager=tierwise",
        "-o",
        "json",
        "-f",
        "-",
        *options,
        input_text=yaml_text.dump_all(children(tier, bounds)),
    )
    assert "Warning" not in result.stderr, result.stderr  # Pod security and deprecated fields show there
    found: list[dict[str, Any]] = json.loads(result.stdout)["items"]
    return found


def shown(cluster: Cluster, tier: ModelTier) -> list[dict[str, Any]]:
    names = [f"{kind}/{tier.metadata.name}" for kind in KINDS]
    found: list[dict[str, Any]] = json.loads(cluster.kubectl("get", "-n", NAMESPACE, *names, "-o", "json").stdout)[
        "items"
    ]
    return found


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "sglang": {"engine": "SGLang", "image": "lmsysorg/sglang:v0.6.0"},
    "llamacpp": {"engine": "LlamaCpp", "image": "ghcr.io/ggml-org/llama.cpp:server", "modelSource": "/m/a.gguf"},
    "custom": {
        "engine": "Custom",
        "image": "registry.example/engine:1",
        "command": ["/serve"],
        "port": 9000,
        "health": {"path": "/alive"},
        "autoscaling": {"signal": "CPU"},
    },
    "quantities": {
        "resources": {
            "limits": {"nvidia.com/gpu": 1, "memory": "1.5Gi", "cpu": "0.5"},
            "requests": {"cpu": "100m", "memory": 1024},
        }
    },
    "no-grace": {"terminationGracePeriodSeconds": 0},
    "short-grace": {"terminationGracePeriodSeconds": 2},
    "kv": {"autoscaling": {"signal": "KVCacheUsage"}},
    "behaviour": {
        "autoscaling": {
            "target": "2500m",
            "behavior": {
                "scaleUp": {"selectPolicy": "Disabled"},
                "scaleDown": {"policies": [{"type": "Pods", "value": 1, "periodSeconds": 90}]},
            },
        }
    },
    "environment": {
        "env": [
            {"name": "HOME", "value": ""},
            {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hf", "key": "token"}}},
            {"name": "CORES", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu", "divisor": "1m"}}},
            {"name": "TIERWISE_SIM_PROFILE", "value": "qwen3-8b/h100"},
        ]
    },
    "overlay": {
        "podTemplate": {
            "metadata": {"annotations": {"team": "red"}, "labels": {"cost-centre": "7"}},
            "spec": {
                "nodeSelector": {"gpu": "l40s"},
                "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
                "hostAliases": [{"ip": "10.0.0.9", "hostnames": ["models"]}],
                "imagePullSecrets": [{"name": "pull"}],
                "priorityClassName": "system-cluster-critical",
                "topologySpreadConstraints": [
                    {"topologyKey": "kubernetes.io/hostname", "maxSkew": 2, "whenUnsatisfiable": "ScheduleAnyway"}
                ],
                "initContainers": [
                    {
                        "name": "fetch",
                        "image": "busybox:1.37",
                        "command": ["true"],
                        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
                    }
                ],
                "containers": [
                    {
                        "name": "engine",
                        "ports": [{"containerPort": 9999, "name": "debug"}],
                        "volumeMounts": [{"name": "weights", "mountPath": "/weights", "readOnly": True}],
                    }
                ],
                "volumes": [
                    {"name": "weights", "persistentVolumeClaim": {"claimName": "weights"}},
                    {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "2048Mi"}},
                ],
            },
        }
    },
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_rendered_is_accepted_and_its_defaulted_form_is_no_drift(bare: Cluster, variant: str) -> None:
    manifest = support.in_cluster_tier(f"variant-{variant}", **VARIANTS[variant])
    tier = stored(bare, manifest, "--dry-run=server")
    for bounds in (ReplicaBounds(1, 3), ReplicaBounds(0, 0)):
        accepted = applied(bare, tier, bounds, "--dry-run=server")
        assert [each["kind"] for each in accepted] == [each["kind"] for each in children(tier, bounds)]
        for wanted, found in zip(children(tier, bounds), accepted, strict=True):
            assert not differs(wanted, found), wanted["kind"]


def test_an_overlay_of_the_wrong_shape_is_refused_in_words(bare: Cluster) -> None:
    manifest = support.in_cluster_tier("misshapen", podTemplate={"spec": {"nodeSelektor": {"a": "b"}}})
    tier = stored(bare, manifest, "--dry-run=server")
    with pytest.raises(DevClusterError, match="nodeSelektor"):
        applied(bare, tier, ReplicaBounds(1, 1), "--dry-run=server")


def pods(cluster: Cluster, name: str) -> list[dict[str, Any]]:
    return support.pods(cluster, NAMESPACE, f"tierwise.dev/tier={name}")


def ready(cluster: Cluster, name: str) -> list[str]:
    """Names of the tier's ready Pods."""
    return sorted(
        pod["metadata"]["name"]
        for pod in pods(cluster, name)
        for condition in pod["status"].get("conditions", ())
        if condition["type"] == "Ready" and condition["status"] == "True"
    )


def test_a_tier_lives_rolls_and_goes(bare: Cluster, console: Console) -> None:
    name, bounds = "life", ReplicaBounds(1, 2)
    env = support.in_cluster_tier(name)["spec"]["inCluster"]["env"]
    with_more = [*env, {"name": "EXTRA", "value": "1"}]
    tier = stored(bare, support.in_cluster_tier(name, env=with_more, podTemplate={"metadata": {"labels": {"a": "b"}}}))
    applied(bare, tier, bounds)
    began = time.monotonic()
    first = support.until(lambda: ready(bare, name), seconds=60, what="the engine is ready")
    console.print(f"a replica was ready after {time.monotonic() - began:.1f} s")

    # What the controllers have made of it since is no drift, and applying it again changes nothing.
    before = shown(bare, tier)
    assert [item["spec"].get("replicas") for item in before if item["kind"] == "Deployment"] == [1]
    for wanted, found in zip(children(tier, bounds), before, strict=True):
        assert not differs(wanted, found), wanted["kind"]
    applied(bare, tier, bounds)
    generations = [item["metadata"].get("generation") for item in before]
    assert [item["metadata"].get("generation") for item in shown(bare, tier)] == generations

    # A change rolls it: the old replica stays until the new one is ready. What is no longer said goes.
    changed = stored(bare, support.in_cluster_tier(name, image="vllm/vllm-openai:v0.25.0"))
    deployment = next(item for item in shown(bare, tier) if item["kind"] == "Deployment")
    assert differs(children(changed, bounds)[0], deployment)
    applied(bare, changed, bounds)

    def rolled() -> bool:
        now = ready(bare, name)
        assert now, "a roll-out of one replica leaves none ready"
        return len(now) == 1 and now != first and len(pods(bare, name)) == 1

    support.until(rolled, seconds=90, what="the tier has rolled")
    (pod,) = pods(bare, name)
    variables = {variable["name"] for variable in pod["spec"]["containers"][0]["env"]}
    assert "EXTRA" not in variables
    assert "a" not in pod["metadata"]["labels"]

    # The tier takes its children with it.
    assert len(support.names(bare, NAMESPACE, *KINDS)) == 4
    bare.kubectl("delete", "modeltier", name, "-n", NAMESPACE)
    support.until(
        lambda: not support.names(bare, NAMESPACE, *KINDS, "pods"), seconds=60, what="children and Pods are gone"
    )


def test_the_autoscaler_follows_running_requests(bare: Cluster, console: Console) -> None:
    """The engine's own metric, through Prometheus and the metrics API by the chart's rules, moves replicas."""
    name = "scaled"
    quick = {"stabilizationWindowSeconds": 0, "policies": [{"type": "Pods", "value": 4, "periodSeconds": 5}]}
    tier = stored(
        bare,
        support.in_cluster_tier(
            name,
            replicas=(1, 3),
            autoscaling={"target": 4, "behavior": {"scaleDown": quick}},
            terminationGracePeriodSeconds=4,
        ),
    )
    applied(bare, tier, ReplicaBounds(1, 3))
    support.until(lambda: ready(bare, name), seconds=60, what="the engine is ready")
    address = bare.forward(NAMESPACE, name, "http")
    done = threading.Event()

    def ask() -> None:
        body = {
            "model": f"{name}-model",
            "messages": [{"role": "user", "content": "count"}],
            "max_tokens": 300,
            "ignore_eos": True,
        }
        with httpx.Client(timeout=30) as client:
            while not done.is_set():
                try:
                    client.post(f"http://{address}/v1/chat/completions", json=body)
                except httpx.TransportError:
                    time.sleep(0.2)  # a replica that was stopped

    askers = [threading.Thread(target=ask, daemon=True) for _ in range(12)]
    began = time.monotonic()
    for asker in askers:
        asker.start()
    try:
        # 12 running requests at 4 per replica are 3 replicas.
        support.until(lambda: len(ready(bare, name)) == 3, seconds=90, what="load makes three replicas")
        console.print(f"HPA on the engine's metric: three replicas ready after {time.monotonic() - began:.1f} s")
        hpa = next(item for item in shown(bare, tier) if item["kind"] == "HorizontalPodAutoscaler")
        (current,) = hpa["status"]["currentMetrics"]
        assert current["pods"]["metric"]["name"] == "vllm_num_requests_running"

        # The loop's bounds bind: the same load under a lower maximum.
        applied(bare, tier, ReplicaBounds(1, 2))
        support.until(lambda: len(pods(bare, name)) == 2, seconds=60, what="the maximum binds")
    finally:
        done.set()
    for asker in askers:
        asker.join(timeout=35)
    began = time.monotonic()
    support.until(lambda: len(pods(bare, name)) == 1, seconds=90, what="without load one replica is left")
    console.print(f"HPA without load: one replica after {time.monotonic() - began:.1f} s")
    deployment = next(item for item in shown(bare, tier) if item["kind"] == "Deployment")
    assert not differs(children(tier, ReplicaBounds(1, 2))[0], deployment), "replicas are no drift"
    bare.kubectl("delete", "modeltier", name, "-n", NAMESPACE)


def test_a_drain_is_not_blocked_by_a_single_replica(bare: Cluster) -> None:
    name = "drained"
    tier = stored(bare, support.in_cluster_tier(name, terminationGracePeriodSeconds=2))
    applied(bare, tier, ReplicaBounds(1, 1))
    (pod,) = support.until(lambda: ready(bare, name), seconds=60, what="the engine is ready")
    support.until(
        lambda: bare.kubectl(
            "get", "pdb", name, "-n", NAMESPACE, "-o", "jsonpath={.status.disruptionsAllowed}"
        ).stdout == "1",
        seconds=20,
        what="the disruption budget is computed",
    )  # fmt: skip
    eviction = {
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"name": pod, "namespace": NAMESPACE},
    }
    bare.kubectl(
        "create",
        "--raw",
        f"/api/v1/namespaces/{NAMESPACE}/pods/{pod}/eviction",
        "-f",
        "-",
        input_text=json.dumps(eviction),
    )
    support.until(
        lambda: (now := ready(bare, name)) and pod not in now, seconds=60, what="another replica took its place"
    )
    bare.kubectl("delete", "modeltier", name, "-n", NAMESPACE)
