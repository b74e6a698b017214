"""What whole-system tests share: manifests of small tiers, waiting for what users wait for."""

import time
from collections.abc import Callable
from typing import Any, TypeVar

import yaml

from tierwise import yaml_text
from tierwise.devcluster.cluster import Cluster

T = TypeVar("T")

API = "tierwise.dev/v1alpha1"


def in_cluster_tier(name: str, *, replicas: tuple[int, int] = (1, 1), **over: Any) -> dict[str, Any]:
    """A tier on the engine simulator, quick to start."""
    return {
        "apiVersion": API,
        "kind": "ModelTier",
        "metadata": {"name": name},
        "spec": {
            "model": f"{name}-model",
            "inCluster": {
                "engine": "VLLM",
                "image": "vllm/vllm-openai:v0.24.0",
                "modelSource": "Qwen/Qwen3-8B",
                "env": [
                    {"name": "TIERWISE_SIM_PROFILE", "value": "qwen3-8b/h100"},
                    {"name": "TIERWISE_SIM_STARTUP_SECONDS", "value": "0"},
                    {"name": "TIERWISE_SIM_TOKENS_PER_CHUNK", "value": "4"},
                ],
                "price": {"perReplicaHour": "1.00", "currency": "USD"},
                "replicas": {"min": replicas[0], "max": replicas[1], "startupSeconds": 5},
                "capacity": {"requestsPerSecond": "20"},
                "terminationGracePeriodSeconds": 20,
                **over,
            },
            "quality": [{"task": "any", "score": "0.9"}],
        },
    }


def policy(name: str, tiers: list[dict[str, Any]], **over: Any) -> dict[str, Any]:
    """A policy with one class that takes everything and weights that only a person moves."""
    return {
        "apiVersion": API,
        "kind": "RoutingPolicy",
        "metadata": {"name": name},
        "spec": {
            "models": [name],
            "sensitivity": "Internal",
            "classes": [{"name": "all", "complexity": "Simple", "task": "any", "tiers": tiers, **over}],
            "rebalance": {"mode": "Manual"},
        },
    }


def apply(cluster: Cluster, namespace: str, *manifests: dict[str, Any]) -> None:
    """kubectl apply."""
    cluster.kubectl("apply", "-n", namespace, "-f", "-", input_text=yaml_text.dump_all(manifests))


def wait_ready(cluster: Cluster, namespace: str, *kinds: str, seconds: int = 120) -> None:
    """What the documentation tells users to run."""
    cluster.kubectl(
        "wait",
        "-n",
        namespace,
        "--for=condition=Ready",
        ",".join(kinds or ("modeltiers", "routingpolicies")),
        "--all",
        f"--timeout={seconds}s",
        timeout_seconds=seconds + 10,
    )


def until(check: Callable[[], T | None], *, seconds: float, what: str, every: float = 0.2) -> T:
    """Poll until `check` gives something; a test that waits for ever is worse than one that fails."""
    end = time.monotonic() + seconds
    while True:
        found = check()
        if found:
            return found
        if time.monotonic() > end:
            raise AssertionError(f"not within {seconds} s: {what}")
        time.sleep(every)


def names(cluster: Cluster, namespace: str, *kinds: str) -> list[str]:
    """kind/name of all objects of these kinds."""
    out = cluster.kubectl("get", ",".join(kinds), "-n", namespace, "-o", "name", "--ignore-not-found").stdout
    return sorted(out.split())


def pods(cluster: Cluster, namespace: str, selector: str) -> list[dict[str, Any]]:
    """Pods that run and are not being deleted."""
    text = cluster.kubectl("get", "pods", "-n", namespace, "-l", selector, "-o", "yaml").stdout
    return [
        pod
        for pod in yaml.safe_load(text)["items"]
        if pod["metadata"].get("deletionTimestamp") is None and pod["status"].get("podIP")
    ]
