"""Hold 200 streams open through the gateways while everything behind and around them moves, and count who was hurt.

Weights move every second, an in-cluster tier is scaled up and down, another is rolled out anew, gateways and operators
are restarted, and an external provider fails in turn with 500, 503, 429, resets and streams that break off. A stream
may be cut only by its own upstream after its first byte, by that upstream's own log; no request may fail, as an allowed
tier lives all the time. Two operators, two gateways, a real control plane, Pods as processes.

    python e2e/soak.py [--minutes 30] [--streams 200] [--keep]
"""

import argparse
import json
import os
import random
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from kubernetes import client as kube
from kubernetes import config as kube_config
from rich.console import Console

import soak_verdict
import support
from tierwise.devcluster import build, install
from tierwise.devcluster import cluster as clusters
from tierwise.devcluster.cluster import Cluster
from tierwise.devcluster.errors import DevClusterError

NAMESPACE = "soak"
LOAD = Path(__file__).parent / "load"
SCALED, ROLLED, PROVIDER = "scaled", "rolled", "provider"
KEY = "sk-soak"
MARK = "x-tierwise-sensitivity:Confidential"  # the provider is cleared for Internal only
STREAM_TOKENS = (150, 300)
"""Three to eight seconds, by the simulators' profiles."""

FAULTS: tuple[dict[str, Any], ...] = (
    {"error_rate": 0.5, "status": 500},
    {"cut_after_tokens": 60},
    {"outage": True, "status": 429},
    {"reset_rate": 0.5},
    {"outage": True, "status": 503},
    {"reset_rate": 1},
)


def tier(name: str, replicas: tuple[int, int], generation: int = 0) -> dict[str, Any]:
    """An in-cluster tier on the engine simulator, with few and large writes: two cores carry everything."""
    made = support.in_cluster_tier(name, replicas=replicas, terminationGracePeriodSeconds=40)
    made["spec"]["clearance"] = "Restricted"
    made["spec"]["inCluster"]["env"] = [
        {"name": "TIERWISE_SIM_PROFILE", "value": "llama-3.1-70b/4xh100"},
        {"name": "TIERWISE_SIM_TOKENS_PER_CHUNK", "value": "16"},
        {"name": "TIERWISE_SIM_WAKE_MS", "value": "200"},
        {"name": "SOAK_GENERATION", "value": str(generation)},
    ]
    return made


def policy(weights: tuple[int, int, int]) -> dict[str, Any]:
    """All requests to three tiers; whatever fails is tried at the others."""
    names = (SCALED, ROLLED, PROVIDER)
    tiers = [{"name": name, "weight": weight} for name, weight in zip(names, weights, strict=True)]
    return support.policy("soak", tiers, fallback={"attempts": 3})


def provider() -> list[dict[str, Any]]:
    """An external tier, and what stands for it: a simulator in its provider mode, whose faults are planted by HTTP."""
    labels = {"app": "soak-provider"}
    container = {
        "name": "api",
        "image": "ghcr.io/tierwise/operator:soak",
        "args": ["engine", "provider-model", "--provider", "--port=8000", "--admin-port=8001", f"--api-key={KEY}"],
        "env": [
            {"name": "TIERWISE_SIM_PROFILE", "value": "provider/gpt-5-mini"},
            {"name": "TIERWISE_SIM_TOKENS_PER_CHUNK", "value": "16"},
            {"name": "TIERWISE_SIM_WAKE_MS", "value": "200"},
        ],
        "ports": [{"containerPort": 8000, "name": "http"}, {"containerPort": 8001, "name": "admin"}],
        "readinessProbe": {"httpGet": {"path": "/health", "port": 8000}, "periodSeconds": 1},
    }
    ports = [{"name": name, "port": port, "targetPort": name} for name, port in (("http", 8000), ("admin", 8001))]
    return [
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "key"}, "stringData": {"token": KEY}},
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "soak-provider"},
            "spec": {
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": {"containers": [container]}},
            },
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "soak-provider"},
            "spec": {"clusterIP": "None", "selector": labels, "ports": ports},
        },
        {
            "apiVersion": support.API,
            "kind": "ModelTier",
            "metadata": {"name": PROVIDER},
            "spec": {
                "model": "provider-model",
                "clearance": "Internal",
                "external": {
                    "url": f"http://soak-provider.{NAMESPACE}.svc.cluster.local:8000/v1",
                    "allowPlaintext": True,
                    "credentialsRef": {"name": "key"},
                },
            },
        },
    ]


def set_up(cluster: Cluster) -> None:
    """Tiers, provider and policy, and the wait that users do."""
    cluster.kubectl("create", "namespace", NAMESPACE)
    support.apply(cluster, NAMESPACE, *provider(), tier(SCALED, (1, 1)), tier(ROLLED, (2, 2)), policy((40, 40, 20)))
    support.wait_ready(cluster, NAMESPACE)
    cluster.kubectl("rollout", "status", "-n", NAMESPACE, "deployment/soak-provider", "--timeout=60s")


@dataclass
class Moves:
    """Threads that each move one thing until told to stop. What they did is counted when it is done."""

    cluster: Cluster
    seconds: float
    done: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    reloads: dict[str, float] = field(default_factory=dict)
    over: threading.Event = field(default_factory=threading.Event)
    threads: list[threading.Thread] = field(default_factory=list)

    def start(self) -> None:
        """Begin, with a short form's restarts as close together as they can be."""
        slow = 25.0 if self.seconds < 600 else 60.0
        api = kube.CustomObjectsApi(kube_config.new_client_from_config(str(self.cluster.kubeconfig)))
        dice = random.Random(4)
        self._every(1.0, 0.0, lambda: self._move_weights(api, dice))
        self._every(15.0, 6.0, self._scale)
        self._every(slow, 10.0, self._roll_out)
        self._every(slow, 14.0, lambda: self._restart("gateway"))
        self._every(slow * 1.4, 20.0, lambda: self._restart("operator"))
        self._every(6.0, 5.0, self._fail)
        self._every(3.0, 3.0, self._read_reloads)

    def stop(self) -> None:
        """End all of them; what is under way is finished."""
        self.over.set()
        for thread in self.threads:
            thread.join(180)
        self._plant({})

    def _every(self, seconds: float, first: float, action: Callable[[], None]) -> None:
        def run() -> None:
            due = time.monotonic() + first
            while not self.over.wait(max(0.0, due - time.monotonic())):
                try:
                    action()
                except (DevClusterError, OSError, kube.ApiException, AssertionError) as error:
                    self.problems.append(f"{action}: {error}")
                # Late is late: what was missed is not made up for.
                due = max(due + seconds, time.monotonic())

        self.threads.append(threading.Thread(target=run, daemon=True))
        self.threads[-1].start()

    def _move_weights(self, api: kube.CustomObjectsApi, dice: random.Random) -> None:
        first, second = sorted(dice.sample(range(101), 2))
        # In turn a tier has nothing at all: then its streams must end by themselves.
        shares = [first, second - first, 100 - second]
        if self.done["weight moves"] % 5 == 4:
            shares[1] += shares[0]
            shares[0] = 0
        body = {"spec": {"classes": policy(tuple(shares))["spec"]["classes"]}}
        api.patch_namespaced_custom_object(
            *("tierwise.dev", "v1alpha1", NAMESPACE, "routingpolicies", "soak", body),
            _content_type="application/merge-patch+json",
            _request_timeout=5,
        )
        self.done["weight moves"] += 1

    def _patch_tier(self, name: str, spec: dict[str, Any]) -> None:
        patch = json.dumps({"spec": {"inCluster": spec}})
        self.cluster.kubectl("patch", "modeltier", name, "-n", NAMESPACE, "--type=merge", "-p", patch)

    def _scale(self) -> None:
        number = (3, 1, 2, 1)[self.done["scale moves"] % 4]
        self._patch_tier(SCALED, {"replicas": {"min": number, "max": number}})
        self.done["scale moves"] += 1

    def _roll_out(self) -> None:
        env = tier(ROLLED, (2, 2), self.done["tier roll-outs"] + 1)["spec"]["inCluster"]["env"]
        self._patch_tier(ROLLED, {"env": env})
        name = f"deployment/{ROLLED}"
        stated = json.dumps(env[-1], separators=(",", ":"))
        path = "jsonpath={.spec.template.spec.containers[0].env}"
        support.until(
            lambda: stated in self.cluster.kubectl("get", name, "-n", NAMESPACE, "-o", path).stdout,
            seconds=30,
            what="the operator takes the tier's new environment to its Deployment",
            every=1.0,
        )
        self._await_roll_out(NAMESPACE, name)
        self.done["tier roll-outs"] += 1

    def _restart(self, component: str) -> None:
        name = f"deployment/tierwise-{component}"
        self.cluster.kubectl("rollout", "restart", "-n", install.NAMESPACE, name)
        self._await_roll_out(install.NAMESPACE, name)
        self.done[f"{component} restarts (rolling, both)"] += 1

    def _await_roll_out(self, namespace: str, name: str) -> None:
        self.cluster.kubectl("rollout", "status", "-n", namespace, name, "--timeout=120s", timeout_seconds=130)

    def _fail(self) -> None:
        number = self.done["provider failures"]
        if number % 2 == 0 or self.over.is_set():
            self._plant(FAULTS[number // 2 % len(FAULTS)])
        else:
            self._plant({})
        self.done["provider failures"] += 1

    def _plant(self, fault: dict[str, Any]) -> None:
        address = self.cluster.forward(NAMESPACE, "soak-provider", "admin")
        request = urllib.request.Request(f"http://{address}/faults", json.dumps(fault).encode(), method="PUT")
        with urllib.request.urlopen(request, timeout=5) as answer:  # noqa: S310 - our own simulator
            assert answer.status == 200

    def _read_reloads(self) -> None:
        """How many route configurations each gateway has taken, as its Envoy counts."""
        prometheus = self.cluster.forward("monitoring", "prometheus", 9090)
        query = "envoy_http_rds_config_reload"
        with urllib.request.urlopen(f"http://{prometheus}/api/v1/query?query={query}", timeout=5) as answer:
            for series in json.load(answer)["data"]["result"]:
                metric = series["metric"]
                name = f"{metric.get('instance')} {metric.get('pod', '')} {sorted(metric.items())}"
                if NAMESPACE in name:
                    self.reloads[name] = max(self.reloads.get(name, 0.0), float(series["value"][1]))

    def counts(self) -> dict[str, int]:
        """All that was done, and what of it the gateways say that they took."""
        found = {name: self.done[name] for name in sorted(self.done)}
        failures = found.pop("provider failures", 0)
        return found | {
            "periods in which the provider failed": (failures + 1) // 2,
            "route configurations that gateways took, sum": int(sum(self.reloads.values())),
        }


@dataclass(frozen=True)
class Result:
    """Of a whole soak."""

    records: list[dict[str, Any]]
    upstream: soak_verdict.Upstream
    verdict: soak_verdict.Verdict
    moves: dict[str, int]
    problems: list[str]
    seconds: float

    def __str__(self) -> str:
        lines = [soak_verdict.table(self.records, self.upstream, self.verdict, self.moves, self.seconds)]
        for title, found in (
            ("cut", self.verdict.cut),
            ("failed", self.verdict.failed),
            ("leaked", self.verdict.leaked),
            ("could not be moved", self.problems),
        ):
            lines += [f"\n{len(found)} {title}, the first:", *map(str, found[:10])] if found else []
        return "\n".join(lines)


def run(cluster: Cluster, seconds: float, streams: int, folder: Path) -> Result:
    """Load and move for so many seconds; the cluster must be `set_up`."""
    program = build.small_program(LOAD, Console(stderr=True))
    output = folder / "requests.jsonl"
    host = f"{install.GATEWAY_SERVICE}.{install.NAMESPACE}.svc.cluster.local"
    load = subprocess.Popen(
        cluster.nsenter(
            [str(program), "streams", "-host", host, "-port", "8080", "-model", f"{NAMESPACE}/soak",
             "-streams", str(streams), "-least-tokens", str(STREAM_TOKENS[0]), "-most-tokens", str(STREAM_TOKENS[1]),
             "-duration", f"{seconds}s", "-header", MARK, "-output", str(output)]
        )
    )  # fmt: skip
    moves = Moves(cluster, seconds)
    began = time.monotonic()
    try:
        moves.start()
        load.wait(seconds + 120)
        took = time.monotonic() - began
    finally:
        if load.poll() is None:
            load.terminate()
            load.wait(90)
        moves.stop()
    if load.returncode:
        raise DevClusterError(f"the load ended with {load.returncode}")
    time.sleep(1)  # the last lines of logs
    records = soak_verdict.read_records(output)
    tier_of = {f"{name}-": name for name in (SCALED, ROLLED)} | {"soak-provider-": PROVIDER}
    upstream = soak_verdict.read_upstreams(cluster.state.logs / "pods", NAMESPACE, tier_of)
    verdict = soak_verdict.judge(records, upstream, PROVIDER)
    return Result(records, upstream, verdict, moves.counts(), moves.problems, took)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--name", default=f"soak-{os.getpid()}", help="of the development cluster")
    parser.add_argument("--keep", action="store_true", help="leave the cluster up")
    options = parser.parse_args()
    started = clusters.up(options.name)
    try:
        install.install(started)
        set_up(started)
        with TemporaryDirectory(prefix="tierwise-soak-") as folder:
            found = run(started, options.minutes * 60, options.streams, Path(folder))
    finally:
        if not options.keep:
            started.down()
    print(found)
    passed = not found.verdict.violations and not found.problems
    print("PASSED" if passed else "FAILED")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
