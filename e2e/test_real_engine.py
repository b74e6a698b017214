"""A real engine with a real (270M) model behind the gateway: no simulator in the path, real tokens."""

import httpx
import openai
import pytest

import support
from tierwise.devcluster import install
from tierwise.devcluster.cluster import Cluster

pytest.importorskip("xllamacpp", reason="the optional group `engine` is not installed")

NAMESPACE = "real-engine"


@pytest.mark.timeout(240)
def test_a_real_model_answers_through_the_gateway(platform: Cluster) -> None:
    platform.kubectl("create", "namespace", NAMESPACE)
    tier = support.in_cluster_tier(
        "gemma",
        engine="LlamaCpp",
        image="ghcr.io/ggml-org/llama.cpp:server-b6000",
        env=[],
        args=["--ctx-size", "2048", "--parallel", "2"],
    )
    del tier["spec"]["inCluster"]["modelSource"]
    support.apply(platform, NAMESPACE, tier, support.policy("ask", [{"name": "gemma"}]))
    support.wait_ready(platform, NAMESPACE, seconds=150)
    address = install.gateway_address(platform)
    with openai.OpenAI(base_url=f"http://{address}/v1", api_key="none", max_retries=0, timeout=60) as client:
        raw = client.chat.completions.with_raw_response.create(
            model=f"{NAMESPACE}/ask",
            messages=[{"role": "user", "content": "Write one sentence about the sea."}],
            max_tokens=24,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
        assert raw.headers["x-tierwise-tier"] == "gemma"
        assert "x-tierwise-simulator" not in raw.headers
        chunks = list(raw.parse())
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    print(f"the model says: {text!r}")
    assert len(text.split()) > 3
    assert "simulated" not in text
    usage = chunks[-1].usage
    assert usage is not None
    # The engine's own counters, asked directly, agree with what went through the gateway.
    (pod,) = support.pods(platform, NAMESPACE, "tierwise.dev/tier=gemma")
    assert pod["spec"]["containers"][0]["image"].startswith("ghcr.io/ggml-org/llama.cpp")
    metrics = httpx.get(f"http://{platform.forward(NAMESPACE, 'gemma', 8080)}/metrics", timeout=10).text
    counted = [line.split()[-1] for line in metrics.splitlines() if line.startswith("llamacpp:tokens_predicted_total")]
    assert float(counted[0]) == usage.completion_tokens
    platform.kubectl("delete", "namespace", NAMESPACE, "--wait=false")
