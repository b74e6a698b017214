"""Token counters, exact, for streams and answers in one piece; and TLS to providers."""

import asyncio
import re
import ssl

import pytest
import trustme
from envoy_lab import external, in_cluster, policy, world

pytestmark = pytest.mark.asyncio(loop_scope="module")


def series(name, tier, *, kind="all", name_of_policy="assistant", **more):
    labels = {
        "tierwise_namespace": "legal",
        "tierwise_policy": name_of_policy,
        "tierwise_class": kind,
        "tierwise_tier": tier,
        # Nobody is asked who calls.
        **({"tierwise_consumer": "-"} if re.search("requests|tokens|attempts", name) else {}),
        **more,
    }
    return f"envoy_tierwise_{name}{{" + ",".join(f'{k}="{v}"' for k, v in labels.items()) + "}"


async def test_tokens_are_counted_exactly_by_tier_policy_namespace_and_class(lab, upstream):
    a = await upstream("a")
    b = await upstream("b")
    a.usage = {
        "prompt_tokens": 1_234_567,
        "completion_tokens": 89,
        "prompt_tokens_details": {"cached_tokens": 1_000_000},
    }
    b.usage = {"prompt_tokens": 11, "total_tokens": 11}  # as embeddings report it
    classes = [
        {"name": "b", "match": {"headers": [{"name": "x-b", "value": "1"}]}, "tiers": [{"name": "large"}]},
        {"name": "all", "tiers": [{"name": "compact"}]},
    ]
    ports = {"legal/compact": [a.port], "legal/large": [b.port]}
    await lab.settle(world([in_cluster(), in_cluster("large")], [policy(classes=classes)], ports))
    for _ in range(5):
        await lab.ask()
        await lab.ask(stream=True)
    await lab.ask(stream=True, stream_options={"include_usage": False})
    for _ in range(3):
        await lab.ask(headers={"x-b": "1"}, path="/v1/embeddings")
    a.fault = "400"
    await lab.ask()
    a.fault = ""
    a.usage = None
    await lab.ask()
    await lab.ask("legal/unknown")
    expected = {
        series("arrivals", "compact"): 13,
        series("arrivals", "large", kind="b"): 3,
        series("requests", "compact", code="200"): 12,
        series("requests", "compact", code="400"): 1,
        series("requests", "large", kind="b", code="200"): 3,
        series("usage_requests", "compact"): 11,
        series("usage_requests", "large", kind="b"): 3,
        series("prompt_tokens", "compact"): 11 * 1_234_567,
        series("prompt_tokens", "large", kind="b"): 33,
        series("completion_tokens", "compact"): 11 * 89,
        series("cached_prompt_tokens", "compact"): 11_000_000,
        # The answer without usage: `test_accounting_live` has bounds.
        series("estimated_attempts", "compact", reason="unreported"): 1,
        series("estimated_prompt_tokens", "compact", reason="unreported"): 556,
        series("estimated_completion_tokens", "compact", reason="unreported"): 55,
        series("unbounded_attempts", "compact", reason="unreported"): 0,
    }

    async def counters():
        found = await lab.metrics()
        return {k: v for k, v in found.items() if "duration" not in k and "ttfb" not in k}

    async def as_expected():
        return await counters() == expected

    try:
        await lab.eventually(as_expected, seconds=3)
    except AssertionError:
        assert await counters() == expected


async def test_arrivals_are_counted_once_and_before_the_answer_ends(lab, upstream):
    a = await upstream("a", chunk_gap=0.5, chunks=6)
    b = await upstream("b")
    tiers = [{"name": "compact", "weight": 100}, {"name": "large", "weight": 0}]
    fallback = {"when": ["ConnectFailure", "ServerError"], "attempts": 2}
    rule = policy("arriving", models=["arriving"], classes=[{"name": "c", "tiers": tiers, "fallback": fallback}])

    async def arrivals():
        found = await lab.metrics()
        return sum(v for k, v in found.items() if k.startswith("envoy_tierwise_arrivals{") and '"arriving"' in k)

    async def settle(compact, large):
        ports = {"legal/compact": compact, "legal/large": large}
        await lab.settle(world([in_cluster(), in_cluster("large")], [rule], ports))

    async def counted(expected):
        async def as_expected():
            return await arrivals() == expected

        await lab.eventually(as_expected, seconds=3)
        await asyncio.sleep(0.3)
        assert await arrivals() == expected

    await settle([a.port], [b.port])
    asking = asyncio.create_task(lab.ask("legal/arriving", stream=True))
    await counted(1)
    assert not asking.done(), "counted while the answer is under way"
    await asking
    await counted(1)
    a.fault = "500"
    assert (await lab.ask("legal/arriving")).headers["x-tierwise-tier"] == "large"
    await counted(2)
    await settle([1], [b.port])  # nobody listens there
    assert (await lab.ask("legal/arriving")).headers["x-tierwise-tier"] == "large"
    await counted(3)
    await settle([], [b.port])
    assert (await lab.ask("legal/arriving")).status == 200
    await counted(4)
    await settle([], [])
    assert (await lab.ask("legal/arriving")).status == 503
    await counted(5)


async def test_a_query_string_reaches_no_tier(lab, upstream):
    """It may hold a key: some clients put theirs there."""
    a = await upstream("a")
    classes = [{"name": "all", "tiers": [{"name": "compact"}]}]
    await lab.settle(world([in_cluster()], [policy(classes=classes)], {"legal/compact": [a.port]}))
    assert (await lab.ask(path="/v1/chat/completions?api_key=sk-client")).status == 200
    assert [seen.path for seen in a.seen] == ["/v1/chat/completions"]


async def test_the_usage_event_reaches_only_clients_that_asked_for_it(lab, upstream):
    a = await upstream("a")
    classes = [{"name": "all", "tiers": [{"name": "compact"}]}]
    await lab.settle(world([in_cluster()], [policy(classes=classes)], {"legal/compact": [a.port]}))
    for gap in (0.0, 0.02):
        a.chunk_gap = gap
        plain = await lab.ask(stream=True)
        refused = await lab.ask(stream=True, stream_options={"include_usage": False})
        asked = await lab.ask(stream=True, stream_options={"include_usage": True})
        for answer in (plain, refused):
            assert b"usage" not in answer.body
            assert answer.body.count(b"data: ") == 4
            assert answer.body.endswith(b"data: [DONE]\n\n")
        assert asked.body.count(b'"usage"') == 1
        assert asked.body.replace(asked.body.split(b"\n\n")[3] + b"\n\n", b"") == plain.body
    assert all(b'"include_usage": true' in s.body or b'"include_usage":true' in s.body for s in a.seen)


async def test_latency_of_answers_only_and_first_byte_before_the_last(lab, upstream):
    a = await upstream("a", chunk_gap=0.1, chunks=4)
    await lab.settle(
        world(
            [in_cluster()],
            [policy("slow", models=["slow"], classes=[{"name": "s", "tiers": [{"name": "compact"}]}])],
            {"legal/compact": [a.port]},
        )
    )
    await lab.ask("legal/slow", stream=True)
    a.fault = "500"
    await lab.ask("legal/slow", stream=True)
    label = {"kind": "s", "name_of_policy": "slow"}

    async def flushed():
        return (await lab.metrics()).get(series("duration_count", "compact", **label))

    await lab.eventually(flushed, seconds=8)
    found = await lab.metrics()
    assert found[series("duration_count", "compact", **label)] == 1, "an error is no latency"
    assert found[series("ttfb_count", "compact", **label)] == 1
    assert found[series("duration_sum", "compact", **label)] > 350
    assert found[series("ttfb_sum", "compact", **label)] < 150


@pytest.mark.parametrize(
    ("names", "trusted", "works"),
    [
        (("localhost",), True, True),
        (("other.example",), True, False),
        (("localhost",), False, False),
    ],
)
async def test_a_provider_is_verified_by_name_and_authority(lab, upstream, names, trusted, works):
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(*names).configure_cert(context)
    x = await upstream("x", context)
    bundle = (authority if trusted else trustme.CA()).cert_pem.bytes().decode()
    provider = external(
        f"https://localhost:{x.port}/v1", caBundle=bundle, clearance="Public", credentialsRef={"name": "k"}
    )
    secrets = {"legal/k": {"token": "sk-tls"}}
    await lab.settle(
        world([provider], [policy(classes=[{"name": "all", "tiers": [{"name": "frontier"}]}])], {}, secrets)
    )
    answer = await lab.ask()
    assert answer.status == (200 if works else 503)
    assert [seen.headers["authorization"] for seen in x.seen] == (["Bearer sk-tls"] if works else [])
    if works:
        rotated = world([provider], list(lab.world.policies.values()), {}, {"legal/k": {"token": "sk-new"}})
        await lab.publish(rotated)

        async def used():
            await lab.ask()
            return x.seen[-1].headers["authorization"] == "Bearer sk-new"

        await lab.eventually(used)
    await asyncio.sleep(0)


async def test_the_metrics_port_shows_metrics_and_readiness_only(lab):
    for path, status in (
        ("/ready", 200),
        ("/stats/prometheus", 200),
        ("/config_dump", 404),
        ("/quitquitquit", 404),
        ("/stats/prometheus/../config_dump", 404),
    ):
        async with lab.http.get(f"http://127.0.0.1:{lab.metrics_port}{path}") as response:
            assert response.status == status, path
