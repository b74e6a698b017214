"""Who may call, and what a budget's decision does, on a real cluster: by Secrets, Consumers and statuses."""

import base64
import json
import time
from collections.abc import Callable, Iterator

import httpx
import pytest

import support
from tierwise.devcluster import install
from tierwise.devcluster.cluster import Cluster

pytestmark = pytest.mark.timeout(400)

NAMESPACE, OTHER = "callers-e2e", "callers-e2e-other"
KEYS = {NAMESPACE: "tw-e2e-" + "a1b2c3d4" * 4, OTHER: "tw-e2e-" + "e5f6a7b8" * 4}
ASK = {"messages": [{"role": "user", "content": "one two three"}], "max_tokens": 5, "ignore_eos": True}


def secret(name: str, **values: str) -> dict:
    data = {key: base64.b64encode(value.encode()).decode() for key, value in values.items()}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "data": data}


def consumer(name: str, *keys: dict, **spec: object) -> dict:
    return {
        "apiVersion": support.API,
        "kind": "Consumer",
        "metadata": {"name": name},
        "spec": {"apiKeys": list(keys), **spec},
    }


@pytest.fixture(scope="module")
def gateway(guarded: Cluster) -> Iterator[Callable[..., httpx.Response]]:
    """Asks the gateway with a key."""
    platform = guarded
    for namespace in (NAMESPACE, OTHER):
        platform.kubectl("create", "namespace", namespace)
        rule = support.policy("chat", [{"name": "only", "weight": 100}])
        support.apply(
            platform,
            namespace,
            support.in_cluster_tier("only"),
            rule,
            secret("app", token=KEYS[namespace]),
            consumer("app", {"name": "app"}),
        )
    for namespace in (NAMESPACE, OTHER):
        for kind in ("modeltiers", "routingpolicies", "consumers"):
            support.wait_ready(platform, namespace, kind)
    address = install.gateway_address(platform)

    def ask(key: str | None = None, model: str = "chat", **more: object) -> httpx.Response:
        headers = {"authorization": f"Bearer {key}"} if key is not None else {}
        # A connection each: gateways come and go.
        body = {"model": model, **ASK, **more}
        return httpx.post(f"http://{address}/v1/chat/completions", json=body, headers=headers, timeout=20)

    support.until(lambda: ask(KEYS[OTHER]).status_code == 200, seconds=60, what="a key opens its namespace")
    try:
        yield ask
    finally:
        for namespace in (NAMESPACE, OTHER):
            platform.kubectl("delete", "namespace", namespace, "--wait=false")


def test_a_key_opens_its_own_namespace_only(gateway: Callable[..., httpx.Response]) -> None:
    for namespace, key in KEYS.items():
        assert gateway(key).status_code == 200
        assert gateway(key, f"{namespace}/chat").status_code == 200
    refused = gateway(KEYS[NAMESPACE], f"{OTHER}/chat")
    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "model_not_found")
    for key in (None, "tw-e2e-somebody-elses-key-00"):
        answer = gateway(key, f"{NAMESPACE}/chat")
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")


def test_a_key_is_rotated_and_revoked_without_a_restart(
    platform: Cluster, gateway: Callable[..., httpx.Response]
) -> None:
    new = "tw-e2e-" + "90ab12cd" * 4
    both = ({"name": "app"}, {"name": "second", "key": "next"})
    support.apply(platform, NAMESPACE, secret("second", next=new), consumer("app", *both))
    support.until(lambda: gateway(new).status_code == 200, seconds=30, what="the new key is accepted")
    assert gateway(KEYS[NAMESPACE]).status_code == 200
    assert gateway(new, f"{OTHER}/chat").status_code == 404
    support.apply(platform, NAMESPACE, consumer("app", both[1]))
    support.until(lambda: gateway(KEYS[NAMESPACE]).status_code == 401, seconds=10, what="the old key is refused")
    assert gateway(new).status_code == 200
    shown = platform.kubectl("get", "ncon", "app", "-n", NAMESPACE, "--no-headers").stdout.split()
    assert shown[:4] == ["app", "True", "Accepted", "1"]
    support.apply(platform, NAMESPACE, consumer("app", both[1], suspend=True))
    support.until(lambda: gateway(new).status_code == 401, seconds=10, what="a suspended consumer is refused")
    support.apply(platform, NAMESPACE, consumer("app", {"name": "app"}))
    support.until(lambda: gateway(KEYS[NAMESPACE]).status_code == 200, seconds=30, what="the first key is back")


@pytest.mark.usefixtures("gateway")
def test_a_key_in_a_secret_that_is_missing_is_told(platform: Cluster) -> None:
    support.apply(platform, NAMESPACE, consumer("lost", {"name": "nowhere"}))
    path = '{range .status.conditions[?(@.type=="Ready")]}{.reason} {.message}{end}'

    def told() -> str:
        return platform.kubectl("get", "ncon", "lost", "-n", NAMESPACE, "-o", f"jsonpath={path}").stdout

    support.until(lambda: "KeyNotFound" in told(), seconds=30, what="the condition says so")
    assert "'nowhere'" in told()


def test_what_a_budget_decides_is_in_force_at_once_and_until_it_is_taken_back(
    platform: Cluster, gateway: Callable[..., httpx.Response]
) -> None:
    ceiling = {
        "apiVersion": support.API,
        "kind": "NamespaceBudget",
        "metadata": {"name": "ceiling"},
        "spec": {"ceiling": "1000", "ladder": [{"atPercent": 100, "action": "Deny"}]},
    }
    support.apply(platform, NAMESPACE, ceiling)
    key = KEYS[NAMESPACE]
    assert gateway(key).status_code == 200

    def decide(action: str | None) -> None:
        decided = {"action": action, "since": "2026-11-26T00:00:00Z", "resetsAt": "2026-12-01T00:00:00Z"}
        patch = json.dumps({"status": {"enforcement": decided if action else None}})
        platform.kubectl(
            *("patch", "nbud", "ceiling", "-n", NAMESPACE, "--subresource=status", "--type=merge", "-p", patch)
        )

    decide("Deny")
    began = time.monotonic()
    support.until(lambda: gateway(key).status_code == 429, seconds=10, what="the budget denies", every=0.01)
    print(f"Deny in force {1000 * (time.monotonic() - began):.0f} ms after kubectl had written it")
    denied = gateway(key)
    assert denied.json()["error"]["code"] == "budget_exceeded"
    assert denied.headers["retry-after"] == "Tue, 01 Dec 2026 00:00:00 GMT"
    assert gateway(KEYS[OTHER]).status_code == 200
    time.sleep(5)  # planning rounds go by: the decision is not theirs to take back
    assert gateway(key).status_code == 429
    decide(None)
    support.until(lambda: gateway(key).status_code == 200, seconds=10, what="the budget lets requests through again")
