"""What the README tells a user to do, done as a user: kubectl, the OpenAI client, the eyes."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

import support
from tierwise.devcluster import install
from tierwise.devcluster.cluster import Cluster

NAMESPACE = "journey"
CHILDREN = ("deployments", "services", "hpa", "pdb", "configmaps", "endpointslices")


@pytest.fixture(scope="module")
def client(platform: Cluster) -> Iterator[openai.OpenAI]:
    platform.kubectl("create", "namespace", NAMESPACE)
    support.apply(
        platform,
        NAMESPACE,
        support.in_cluster_tier("small"),
        support.in_cluster_tier("large", modelSource="Qwen/Qwen3-32B"),
        support.policy("to-small", [{"name": "small"}]),
        support.policy("to-large", [{"name": "large"}]),
    )
    support.wait_ready(platform, NAMESPACE)
    with openai.OpenAI(
        base_url=f"http://{install.gateway_address(platform)}/v1", api_key="none", max_retries=0, timeout=30
    ) as made:
        yield made
    platform.kubectl("delete", "namespace", NAMESPACE, "--wait=false")


@pytest.mark.parametrize("tier", ["small", "large"])
def test_the_openai_client_streams_a_completion(client: openai.OpenAI, tier: str) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model=f"{NAMESPACE}/to-{tier}",
        messages=[{"role": "user", "content": "Say hello to the world"}],
        max_tokens=12,
        stream=True,
        stream_options={"include_usage": True},
    )
    assert raw.headers["x-tierwise-tier"] == tier
    chunks = list(raw.parse())
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert "simulated" in text
    usage = chunks[-1].usage
    assert usage is not None
    assert 0 < usage.completion_tokens <= 12
    assert len(chunks) > 2, "a stream comes in pieces"


def test_the_openai_client_gets_a_whole_completion_and_its_usage(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=f"{NAMESPACE}/to-small", messages=[{"role": "user", "content": "one two three"}], max_tokens=5
    )
    assert answer.usage is not None
    assert answer.usage.completion_tokens <= 5
    assert answer.choices[0].message.content


def test_an_unknown_model_is_the_clients_error_not_a_crash(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as raised:
        client.chat.completions.create(
            model=f"{NAMESPACE}/nobody", messages=[{"role": "user", "content": "hello"}], max_tokens=5
        )
    assert isinstance(raised.value.body, dict)
    assert "message" in raised.value.body


def test_what_kubectl_shows_reads_well(platform: Cluster, client: openai.OpenAI) -> None:
    assert client
    table = platform.kubectl("get", "modeltiers,routingpolicies,hpa,deploy", "-n", NAMESPACE).stdout
    print(table)
    header = table.splitlines()[0].split()
    assert header[:2] == ["NAME", "MODEL"]
    assert "READY" in header
    assert "<none>" not in table
    assert max(map(len, table.splitlines())) <= 140


def test_deleting_a_tier_removes_its_children_and_nothing_else(platform: Cluster, client: openai.OpenAI) -> None:
    assert client
    before = support.names(platform, NAMESPACE, *CHILDREN)
    support.apply(platform, NAMESPACE, support.in_cluster_tier("extra"))
    support.wait_ready(platform, NAMESPACE, "modeltiers")
    during = support.names(platform, NAMESPACE, "deployments", "services", "hpa", "pdb")
    assert [name for name in during if name.endswith("/extra")] == [
        "deployment.apps/extra",
        "horizontalpodautoscaler.autoscaling/extra",
        "poddisruptionbudget.policy/extra",
        "service/extra",
    ]
    platform.kubectl("delete", "modeltier", "extra", "-n", NAMESPACE)
    support.until(
        lambda: support.names(platform, NAMESPACE, *CHILDREN) == before, seconds=40, what="children are removed"
    )


def test_changing_a_tier_rolls_it_without_a_failed_request(platform: Cluster, client: openai.OpenAI) -> None:
    def image() -> str:
        return platform.kubectl(
            "get", "pods", "-n", NAMESPACE, "-l", "tierwise.dev/tier=small", "-o", "jsonpath={..image}"
        ).stdout

    assert "v0.24.1" not in image()
    support.apply(platform, NAMESPACE, support.in_cluster_tier("small", image="vllm/vllm-openai:v0.24.1"))
    sent = 0

    def rolled() -> bool:
        nonlocal sent
        client.chat.completions.create(
            model=f"{NAMESPACE}/to-small", messages=[{"role": "user", "content": "hello"}], max_tokens=3
        )
        sent += 1
        return "v0.24.1" in image() and "v0.24.0" not in image()

    support.until(rolled, seconds=90, what="the tier has rolled")
    print(f"{sent} requests during the roll-out, none failed")


def test_the_readmes_ten_lines_work_as_pasted(platform: Cluster, client: openai.OpenAI) -> None:
    assert client
    text = (Path(__file__).parents[1] / "README.md").read_text()
    (script,) = re.findall(r"(?s)```yaml\n(kubectl apply .*?)```", text)
    namespace = "readme"
    platform.kubectl("create", "namespace", namespace)
    context = ["config", "set-context", "--current", f"--namespace={namespace}"]
    platform.kubectl(*context)
    try:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            env=platform.environment() | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            check=False,
            timeout=150,
        )
    finally:
        platform.kubectl("config", "set-context", "--current", "--namespace=default")
    print(done.stdout)
    assert done.returncode == 0, done.stderr
    answer = httpx.post(
        f"http://{install.gateway_address(platform)}/v1/chat/completions",
        json={"model": f"{namespace}/hello", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 3},
        timeout=30,
    )
    assert answer.headers["x-tierwise-tier"] == "tiny"
    platform.kubectl("delete", "namespace", namespace, "--wait=false")


def test_a_bad_manifest_says_what_to_do(platform: Cluster) -> None:
    tier = support.in_cluster_tier("broken")
    tier["spec"]["inCluster"]["replicas"] = {"min": 3, "max": 1}
    with pytest.raises(Exception, match="lower min or raise max"):
        support.apply(platform, "default", tier)


def test_examples_become_ready_and_leave_nothing(platform: Cluster) -> None:
    examples = str(install.shared("examples"))
    before = support.names(platform, "demo", *CHILDREN)
    platform.kubectl("apply", "-f", f"{examples}/00-namespace.yaml")
    platform.kubectl("apply", "-n", "demo", "-f", examples)
    support.wait_ready(platform, "demo")
    table = platform.kubectl("get", "modeltiers,routingpolicies,namespacebudgets,hpa,deploy", "-n", "demo").stdout
    print(table)
    answer = httpx.post(
        f"http://{install.gateway_address(platform)}/v1/chat/completions",
        json={"model": "demo/assistant", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 3},
        timeout=30,
    )
    assert answer.status_code == 200, answer.text
    found = sorted(path for path in install.shared("examples").iterdir() if path.is_file())  # as kubectl reads a folder
    files = [str(path) for path in found if path.name != "00-namespace.yaml"]
    platform.kubectl("delete", "-n", "demo", *[part for path in files for part in ("-f", path)])

    def left() -> list[str]:
        return [
            name
            for name in support.names(platform, "demo", *CHILDREN, "modeltiers", "routingpolicies", "namespacebudgets")
            if name not in before and "kube-root-ca" not in name
        ]

    support.until(lambda: not left(), seconds=60, what=f"nothing of ours is left, but {left()}")
    platform.kubectl("delete", "-f", f"{examples}/00-namespace.yaml", "--wait=false")


def test_a_user_of_the_shell_gets_the_same(platform: Cluster, client: openai.OpenAI) -> None:
    assert client
    out = subprocess.run(
        [
            "curl", "-sS", "--max-time", "20", f"http://{install.gateway_address(platform)}/v1/chat/completions",
            "-H", "content-type: application/json",
            "-d", '{"model": "journey/to-small", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}',
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    ).stdout  # fmt: skip
    assert '"usage"' in out
