"""How long a change of weights takes to reach clients, and whether any request fails meanwhile.

On a real control plane, two operators, two gateways: 50 times all requests are moved from one tier to the other by
a change of the policy's weights (mode Manual: the written weights are the plan), under a load of short requests on new
connections, which find either gateway, and of streams. All figures are the client's: the time from just before the
change is sent to the API server until the start of the last request that still went to the old tier.

    python e2e/bench_propagation.py [--changes 50] [--seconds 1.5] [--keep]
"""

import argparse
import asyncio
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass

import aiohttp
from kubernetes import client as kube
from kubernetes import config as kube_config

from tierwise import yaml_text
from tierwise.devcluster import cluster as clusters
from tierwise.devcluster import install

NAMESPACE = "bench"
TIERS = ("left", "right")
LIMIT_SECONDS = 1.0
SHORT_CLIENTS = 6
STREAM_CLIENTS = 6
SHORT_TOKENS = 4
STREAM_TOKENS = 80
REQUEST_TIMEOUT_SECONDS = 30


def tier(name: str) -> dict:
    return {
        "apiVersion": "tierwise.dev/v1alpha1",
        "kind": "ModelTier",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "model": f"model-{name}",
            "inCluster": {
                "engine": "VLLM",
                "image": "vllm/vllm-openai:v0.24.0",
                "env": [
                    {"name": "TIERWISE_SIM_PROFILE", "value": "qwen3-8b/h100"},
                    {"name": "TIERWISE_SIM_TOKENS_PER_CHUNK", "value": "8"},
                    {"name": "TIERWISE_SIM_REQUEST_LOG", "value": "off"},
                ],
                "replicas": {"min": 1, "max": 1},
            },
        },
    }


def weights(first: int) -> list[dict]:
    return [{"name": TIERS[0], "weight": first}, {"name": TIERS[1], "weight": 100 - first}]


def policy() -> dict:
    return {
        "apiVersion": "tierwise.dev/v1alpha1",
        "kind": "RoutingPolicy",
        "metadata": {"name": "bench", "namespace": NAMESPACE},
        "spec": {
            "models": ["bench"],
            "sensitivity": "Public",
            "rebalance": {"mode": "Manual"},
            "classes": [{"name": "all", "tiers": weights(100)}],
        },
    }


@dataclass(frozen=True, slots=True)
class Record:
    """One request as its client saw it; `began` by the monotonic clock, `problem` empty when it was whole."""

    began: float
    tier: str
    stream: bool
    problem: str


class Load:
    """Clients that never stop asking."""

    def __init__(self, address: str) -> None:
        self._url = f"http://{address}/v1/chat/completions"
        self.records: list[Record] = []
        self._stopping = False

    async def run(self) -> None:
        clients = [self._client(stream=n >= SHORT_CLIENTS) for n in range(SHORT_CLIENTS + STREAM_CLIENTS)]
        await asyncio.gather(*clients)

    def stop(self) -> None:
        self._stopping = True

    async def _client(self, *, stream: bool) -> None:
        while not self._stopping:
            began = time.monotonic()
            # A connection per request: each may find either gateway.
            async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as session:
                answered, problem = await self._ask(session, stream=stream)
            self.records.append(Record(began, answered, stream, problem))
            await asyncio.sleep(0.01)

    async def _ask(self, session: aiohttp.ClientSession, *, stream: bool) -> tuple[str, str]:
        body = {
            "model": f"{NAMESPACE}/bench",
            "messages": [{"role": "user", "content": "What do you answer?"}],
            "stream": stream,
            "max_tokens": STREAM_TOKENS if stream else SHORT_TOKENS,
            "ignore_eos": True,
        }
        timeout = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_SECONDS)
        try:
            async with session.post(self._url, json=body, timeout=timeout) as response:
                raw = await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            return "", repr(error)
        answered = response.headers.get("x-tierwise-tier", "")
        if response.status != 200:
            return answered, f"{response.status}: {raw[:200]!r}"
        if stream and not raw.rstrip().endswith(b"data: [DONE]"):
            return answered, "the stream broke off"
        return answered, ""


def percentile(values: Iterable[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


async def measure(address: str, api: kube.CustomObjectsApi, *, changes: int, seconds: float) -> dict:
    load = Load(address)
    running = asyncio.create_task(load.run())
    await asyncio.sleep(2)
    took: list[float] = []
    unanswered = 0
    for number in range(changes):
        goal = TIERS[1 - number % 2]
        patch = {"spec": {"classes": [{"name": "all", "tiers": weights(0 if goal == TIERS[1] else 100)}]}}
        began = time.monotonic()
        await asyncio.to_thread(
            api.patch_namespaced_custom_object,
            *("tierwise.dev", "v1alpha1", NAMESPACE, "routingpolicies", "bench", patch),
            _content_type="application/merge-patch+json",
            _request_timeout=5,
        )
        await asyncio.sleep(max(0.0, seconds - (time.monotonic() - began)))
        # Short requests end soon: what began within this window has been recorded, or is in flight at its end.
        later = [r for r in load.records if r.began >= began and not r.stream and not r.problem]
        old = [r.began - began for r in later if r.tier != goal]
        if max((r.began - began for r in later if r.tier == goal), default=0.0) <= max(old, default=0.0):
            unanswered += 1
        took.append(max(old, default=0.0))
    load.stop()
    await running
    failed = [r for r in load.records if r.problem]
    streams = [r for r in load.records if r.stream]
    return {
        "changes": changes,
        "seconds_to_effect": {
            "median": round(statistics.median(took), 4),
            "p99": round(percentile(took, 0.99), 4),
            "max": round(max(took), 4),
        },
        "each": [round(each, 3) for each in took],
        "changes_without_effect": unanswered,
        "requests": len(load.records),
        "streams": len(streams),
        "failed": len(failed),
        "problems": sorted({r.problem for r in failed})[:10],
    }


def set_up(started: clusters.Cluster) -> str:
    install.install(started)
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
    manifests = [namespace, *(tier(name) for name in TIERS), policy()]
    started.kubectl("apply", "-f", "-", input_text=yaml_text.dump_all(manifests))
    for kind in ("modeltiers", "routingpolicies"):
        started.kubectl(
            *("wait", "-n", NAMESPACE, "--for=condition=Ready", kind, "--all", "--timeout=120s"), timeout_seconds=130
        )
    return install.gateway_address(started)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--changes", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=1.5, help="time between two changes")
    parser.add_argument("--name", default=f"propagation-{os.getpid()}", help="of the development cluster")
    parser.add_argument("--keep", action="store_true", help="leave the cluster up")
    options = parser.parse_args()
    started = clusters.up(options.name)
    try:
        address = set_up(started)
        api = kube.CustomObjectsApi(kube_config.new_client_from_config(str(started.kubeconfig)))
        found = asyncio.run(measure(address, api, changes=options.changes, seconds=options.seconds))
    finally:
        if not options.keep:
            started.down()
    print(json.dumps(found, indent=2))
    passed = (
        found["seconds_to_effect"]["p99"] <= LIMIT_SECONDS
        and not found["failed"]
        and not found["changes_without_effect"]
    )
    print("PASSED" if passed else "FAILED", f"(p99 within {LIMIT_SECONDS:.0f} s, no failed request)")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
