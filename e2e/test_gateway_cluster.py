"""The gateway on a real cluster: what only Envoy finds wrong, told to the user; fallback and tokens from outside."""

import time
from collections import Counter

import httpx
import pytest

import support
from tierwise.devcluster import install
from tierwise.devcluster.cluster import Cluster

pytestmark = pytest.mark.timeout(400)

NAMESPACE, OTHER = "gateway-e2e", "gateway-e2e-other"
NO_CERTIFICATE = "-----BEGIN CERTIFICATE-----\nbm90IGEgY2VydGlmaWNhdGU=\n-----END CERTIFICATE-----\n"
ASK = {"messages": [{"role": "user", "content": "one two three"}], "max_tokens": 5, "ignore_eos": True}


@pytest.fixture(scope="module")
def gateway(platform: Cluster):
    """A client of the gateway, and two namespaces with tiers that are ready."""
    for namespace in (NAMESPACE, OTHER):
        platform.kubectl("create", "namespace", namespace)
        tiers = [support.in_cluster_tier("left"), support.in_cluster_tier("right")]
        policy = support.policy("chat", [{"name": "left", "weight": 100}, {"name": "right", "weight": 0}])
        support.apply(platform, namespace, *tiers, policy)
    for namespace in (NAMESPACE, OTHER):
        for kind in ("modeltiers", "routingpolicies"):
            platform.kubectl(
                *("wait", "-n", namespace, "--for=condition=Ready", kind, "--all", "--timeout=120s"),
                timeout_seconds=130,
            )
    with httpx.Client(base_url=f"http://{install.gateway_address(platform)}", timeout=20) as client:
        yield client
    for namespace in (NAMESPACE, OTHER):
        platform.kubectl("delete", "namespace", namespace, "--wait=false")


def ask(client: httpx.Client, model: str = f"{NAMESPACE}/chat", **more) -> httpx.Response:
    return client.post("/v1/chat/completions", json={"model": model, **ASK, **more})


def eventually(holds, *, seconds: float = 60.0):
    until = time.monotonic() + seconds
    while True:
        found = holds()
        if found:
            return found
        assert time.monotonic() < until, "not in time"
        time.sleep(0.1)


def ready(cluster: Cluster, namespace: str) -> tuple[str, str, str]:
    """Status, reason and message of the policy's Ready."""
    path = '{range .status.conditions[?(@.type=="Ready")]}{.status}|{.reason}|{.message}{end}'
    text = cluster.kubectl("get", "-n", namespace, "routingpolicy", "chat", "-o", f"jsonpath={path}").stdout
    status, _, rest = text.partition("|")
    reason, _, message = rest.partition("|")
    return status, reason, message


def broken_tier() -> dict:
    """A provider whose CA only looks like a certificate: the API server takes the text, Envoy does not."""
    external = {"url": "https://provider.invalid/v1", "caBundle": NO_CERTIFICATE}
    return {
        "apiVersion": support.API,
        "kind": "ModelTier",
        "metadata": {"name": "broken"},
        "spec": {"model": "m", "external": external},
    }


def weighted(left: int) -> dict:
    return support.policy("chat", [{"name": "left", "weight": left}, {"name": "right", "weight": 100 - left}])


def tier_of(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    return answer.headers["x-tierwise-tier"]


def test_what_envoy_refuses_is_told_and_changes_nothing(platform: Cluster, gateway: httpx.Client) -> None:
    eventually(lambda: tier_of(ask(gateway)) == "left" and ready(platform, NAMESPACE)[0] == "True")
    support.apply(platform, NAMESPACE, broken_tier())
    told = eventually(lambda: "trusted CA" in (state := ready(platform, NAMESPACE))[2] and state)
    print(told)
    assert told[0] == "False"
    # A change of weights is part of what is refused; the last good configuration stays.
    support.apply(platform, NAMESPACE, weighted(0))
    time.sleep(2)
    assert {tier_of(ask(gateway)) for _ in range(10)} == {"left"}
    # The other namespace goes on, and takes changes.
    assert ready(platform, OTHER)[0] == "True"
    support.apply(platform, OTHER, weighted(0))
    eventually(lambda: tier_of(ask(gateway, f"{OTHER}/chat")) == "right")
    # Fresh gateways get the last good one as well.
    platform.kubectl("rollout", "restart", "-n", install.NAMESPACE, "deployment/tierwise-gateway")
    platform.kubectl(
        *("rollout", "status", "-n", install.NAMESPACE, "deployment/tierwise-gateway", "--timeout=120s"),
        timeout_seconds=130,
    )
    assert {tier_of(eventually(lambda: served(platform))) for _ in range(5)} == {"left"}
    # What was wrong is taken back: the weights that were held back take effect.
    platform.kubectl("delete", "-n", NAMESPACE, "modeltier", "broken")
    eventually(lambda: tier_of(eventually(lambda: served(platform))) == "right")
    eventually(lambda: ready(platform, NAMESPACE)[0] == "True")


def served(platform: Cluster) -> httpx.Response | None:
    """An answer over a new connection; None while a gateway that has just gone is still in the Service."""
    with httpx.Client(base_url=f"http://{install.gateway_address(platform)}", timeout=20) as client:
        try:
            return ask(client)
        except httpx.TransportError:
            return None


@pytest.mark.usefixtures("gateway")
def test_a_tier_whose_replicas_are_gone_falls_back(platform: Cluster) -> None:
    support.apply(platform, NAMESPACE, weighted(100))
    eventually(lambda: tier_of(eventually(lambda: served(platform))) == "left")
    platform.kubectl("delete", "-n", NAMESPACE, "pod", "-l", "tierwise.dev/tier=left", "--grace-period=0", "--force")
    found: Counter[tuple[int, str | None]] = Counter()
    until = time.monotonic() + 3
    while time.monotonic() < until:
        answer = eventually(lambda: served(platform))
        found[(answer.status_code, answer.headers.get("x-tierwise-tier"))] += 1
    print(dict(found))
    assert {status for status, _ in found} == {200}
    assert found[(200, "right")] > 0


def test_tokens_reach_prometheus_with_their_tier_policy_class_and_namespace(
    platform: Cluster, gateway: httpx.Client
) -> None:
    address = platform.forward("monitoring", "prometheus", 9090)
    labels = f'tierwise_namespace="{OTHER}",tierwise_policy="chat",tierwise_class="all"'

    def total(name: str) -> float:
        # With the last word of gateways that are gone: one that still drains now would be missed later.
        query = f"sum(last_over_time(envoy_tierwise_{name}{{{labels}}}[15m]))"
        result = httpx.get(f"http://{address}/api/v1/query", params={"query": query}, timeout=5).json()["data"][
            "result"
        ]
        return float(result[0]["value"][1]) if result else 0.0

    ask(gateway, f"{OTHER}/chat")
    eventually(lambda: total("requests") > 0)
    time.sleep(3)  # what earlier tests asked has been scraped
    names = ("requests", "usage_requests", "completion_tokens", "prompt_tokens")
    before = {name: total(name) for name in names}
    prompts = 0
    for number in range(10):
        answer = ask(gateway, f"{OTHER}/chat", stream=number % 2 == 0)
        if number % 2:
            usage = answer.json()["usage"]
            assert usage["completion_tokens"] == 5
            prompts = usage["prompt_tokens"]
    expected = {"requests": 10, "usage_requests": 10, "completion_tokens": 50, "prompt_tokens": 10 * prompts}

    def counted() -> bool:
        return all(total(name) - before[name] == expected[name] for name in names)

    eventually(counted)
