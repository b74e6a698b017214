"""Kill the operator, an Envoy, Prometheus and the API server in turn under load: who may fail, and who comes back.

A request may fail only if the proxy that it went through was the one that was killed. Figures come from the client.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

import support
from tierwise.devcluster import install
from tierwise.devcluster.cluster import Cluster

NAMESPACE = "resilience"
SECONDS = 60
RATE = 16.0


@dataclass(frozen=True)
class Kill:
    """A process that was killed; `gateway` where it was a proxy."""

    what: str
    at: float
    gateway: str | None = None


def unexcused(records: list[dict[str, Any]], kills: list[Kill], *, back_within: float) -> list[dict[str, Any]]:
    """Failed requests that a live tier could have served: those whose own proxy did not die.

    A proxy's death excuses what was open on it then, and what came until it was back.
    """

    def excused(record: dict[str, Any]) -> bool:
        return any(
            kill.gateway == record["gateway"] and record["start"] <= kill.at + back_within and record["end"] >= kill.at
            for kill in kills
            if kill.gateway is not None
        )

    return [record for record in records if not record["ok"] and not excused(record)]


def test_the_check_can_fail() -> None:
    ok = {"gateway": "http://a", "start": 10.0, "end": 11.0, "ok": True}
    failed = ok | {"ok": False}
    assert unexcused([ok], [], back_within=5) == []
    assert unexcused([failed], [Kill("Envoy", 10.5, "http://a")], back_within=5) == []
    assert unexcused([failed], [Kill("Envoy", 10.5, "http://b")], back_within=5) == [failed]
    assert unexcused([failed], [Kill("Prometheus", 10.5)], back_within=5) == [failed]
    assert unexcused([failed | {"start": 20.0, "end": 21.0}], [Kill("Envoy", 10.5, "http://a")], back_within=5)
    assert unexcused([failed | {"start": 1.0, "end": 2.0}], [Kill("Envoy", 10.5, "http://a")], back_within=5)


@pytest.fixture
def served(platform: Cluster) -> Iterator[Cluster]:
    platform.kubectl("create", "namespace", NAMESPACE)
    support.apply(
        platform,
        NAMESPACE,
        support.in_cluster_tier("first"),
        support.in_cluster_tier("second"),
        support.policy("both", [{"name": "first", "weight": 50}, {"name": "second", "weight": 50}]),
    )
    support.wait_ready(platform, NAMESPACE)
    yield platform
    platform.kubectl("delete", "namespace", NAMESPACE, "--wait=false")


def component(name: str) -> str:
    return f"tierwise.dev/component={name}"


def gateways(cluster: Cluster) -> dict[str, str]:
    found = support.pods(cluster, install.NAMESPACE, component("gateway"))
    return {f"http://{pod['status']['podIP']}:8080": pod["metadata"]["name"] for pod in found}


def leader(cluster: Cluster) -> str:
    return cluster.kubectl(
        "get", "lease", "tierwise-leader", "-n", install.NAMESPACE, "-o", "jsonpath={.spec.holderIdentity}"
    ).stdout


def kill(pid: int) -> float:
    at = time.time()
    os.kill(pid, signal.SIGKILL)
    return at


def kill_container(cluster: Cluster, namespace: str, pod: str) -> float:
    (pid,) = cluster.pod_pids(namespace, pod).values()
    return kill(pid)


@pytest.mark.timeout(300)
def test_only_requests_of_a_killed_proxy_fail_and_everything_comes_back(served: Cluster, tmp_path: Path) -> None:
    cluster = served
    proxies = gateways(cluster)
    assert len(proxies) == 2
    output = tmp_path / "requests.jsonl"
    load = subprocess.Popen(
        cluster.nsenter(
            [sys.executable, str(Path(__file__).with_name("steady_load.py")),
             *[part for url in proxies for part in ("--url", url)],
             "--model", f"{NAMESPACE}/both", "--rate", str(RATE), "--seconds", str(SECONDS), "--output", str(output)]
        )
    )  # fmt: skip
    kills: list[Kill] = []
    try:
        time.sleep(4)
        deciding = leader(cluster)
        kills.append(Kill("operator (leader)", kill_container(cluster, install.NAMESPACE, deciding)))
        time.sleep(12)
        url, pod = min(proxies.items())
        kills.append(Kill("Envoy", kill_container(cluster, install.NAMESPACE, pod), url))
        time.sleep(12)
        (prometheus,) = support.pods(cluster, "monitoring", "app.kubernetes.io/name=prometheus")
        kills.append(Kill("Prometheus", kill_container(cluster, "monitoring", prometheus["metadata"]["name"])))
        time.sleep(8)
        kills.append(Kill("API server", kill(cluster.pid("kube-apiserver"))))
        load.wait(SECONDS + 90)
    finally:
        if load.poll() is None:
            load.terminate()
            load.wait(10)
    assert load.returncode == 0

    records = [json.loads(line) for line in output.read_text().splitlines()]
    failed = [record for record in records if not record["ok"]]
    wrong = unexcused(records, kills, back_within=12)
    print(f"\n{len(records)} requests, {len(failed)} failed, {len(wrong)} of them without their own proxy's death")
    for one in kills:
        window = [r for r in records if one.at <= r["end"] and r["start"] <= one.at + 12]
        lost = sum(not record["ok"] for record in window)
        print(f"  {one.what:18} killed: {len(window):4} requests in the 12 s after, {lost} failed")
    assert len(records) == int(RATE * SECONDS)
    assert wrong == []
    assert len(failed) < RATE / 2 * 12, "the killed proxy came back"

    # Everything recovers by itself: what users wait for holds again, and the leader decides again.
    support.wait_ready(cluster, NAMESPACE, seconds=60)
    for name in ("operator", "gateway"):
        cluster.kubectl("rollout", "status", "-n", install.NAMESPACE, f"deployment/tierwise-{name}", "--timeout=60s")
    cluster.kubectl("rollout", "status", "-n", "monitoring", "deployment/prometheus", "--timeout=60s")
    support.apply(
        cluster,
        NAMESPACE,
        support.policy("both", [{"name": "first", "weight": 100}, {"name": "second", "weight": 0}]),
    )
    support.until(
        lambda: leader(cluster) and weights(cluster) == {"first": 100}, seconds=40, what="the loop decides again"
    )


def weights(cluster: Cluster) -> dict[str, int]:
    """Weights as clients see them: which tier answers twenty requests in a row."""
    url = f"http://{install.gateway_address(cluster)}/v1/chat/completions"
    body = {"model": f"{NAMESPACE}/both", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
    answers: dict[str, int] = {}
    for _ in range(10):
        tier = httpx.post(url, json=body, timeout=20).headers.get("x-tierwise-tier", "none")
        answers[tier] = answers.get(tier, 0) + 10
    return answers
