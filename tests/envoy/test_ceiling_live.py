"""What a budget decides is in force on a real Envoy within 100 ms: Downgrade and Deny, and what they leave alone."""

import time
from email.utils import parsedate_to_datetime

import pytest
from envoy_lab import budget, external, in_cluster, policy, world

pytestmark = pytest.mark.asyncio(loop_scope="module")

IN_FORCE_SECONDS = 0.1
"""The issue's bound, from the decision (a status that the operator has) to what clients see."""
CLASSES = [
    {"name": "vital", "match": {"headers": [{"name": "x-vital", "value": "1"}]}, "tiers": [{"name": "large"}]},
    {
        "name": "all",
        "tiers": [{"name": "large", "weight": 100}, {"name": "compact", "weight": 0}],
        "fallback": {"when": ["ConnectFailure", "ServerError"], "attempts": 2},
    },
]
VITAL = {"x-vital": "1"}
EXEMPT = [{"policy": "assistant", "class": "vital"}]


def spent(large, compact, *budgets, classes=CLASSES, **more):
    return world(
        [in_cluster("large"), in_cluster()],
        [policy(classes=classes, **more)],
        {"legal/large": [large.port], "legal/compact": [compact.port]},
        budgets=budgets,
    )


async def in_force(lab, new, holds) -> float:
    """Seconds from the decision until clients see it."""
    await lab.publish(lab.world)  # nothing else is under way
    began = time.monotonic()
    await lab.publish(new)
    while not await holds():
        assert time.monotonic() - began < 5
    return time.monotonic() - began


async def test_deny_answers_in_openais_shape_and_says_until_when(lab, upstream):
    large, compact = await upstream("large"), await upstream("compact")
    free = spent(large, compact, budget(exempt=EXEMPT))
    await lab.settle(free)
    assert (await lab.ask()).by == "large"
    denied = spent(large, compact, budget(exempt=EXEMPT, action="Deny"))

    async def refused():
        return (await lab.ask()).status == 429

    async def answered():
        return (await lab.ask()).status == 200

    took = [await in_force(lab, new, holds) for _ in range(5) for new, holds in ((denied, refused), (free, answered))]
    assert sorted(took)[len(took) // 2] < IN_FORCE_SECONDS, took
    await lab.settle(denied)
    large.seen.clear()
    for fields in ({}, {"stream": True}):
        answer = await lab.ask(headers={"x-tierwise-sensitivity": "Restricted"}, **fields)
        said = answer.json["error"]
        assert (answer.status, said["code"], said["type"]) == (429, "budget_exceeded", "insufficient_quota")
        assert "legal/ceiling" in said["message"]
        assert "2026-12-01T00:00:00Z" in said["message"]
        assert parsedate_to_datetime(answer.headers["retry-after"]).isoformat() == "2026-12-01T00:00:00+00:00"
        assert answer.headers["x-should-retry"] == "false"
        assert answer.headers["content-type"] == "application/json"
    assert not large.seen
    assert not compact.seen
    assert (await lab.ask(headers=VITAL)).by == "large"


async def test_deny_cuts_no_stream_that_is_under_way(lab, upstream):
    large, compact = await upstream("large", chunks=10, chunk_gap=0.05), await upstream("compact")
    await lab.settle(spent(large, compact, budget()))
    url = f"http://127.0.0.1:{lab.options.port}/v1/chat/completions"
    async with lab.http.post(url, json={"model": "legal/assistant", "messages": [], "stream": True}) as response:
        assert await response.content.readline()
        await lab.settle(spent(large, compact, budget(action="Deny")))
        assert (await lab.ask()).status == 429
        rest = await response.read()
    assert rest.endswith(b"data: [DONE]\n\n")


async def test_downgrade_prefers_the_tiers_that_it_names_and_keeps_the_others_for_failures(lab, upstream):
    large, compact = await upstream("large"), await upstream("compact")
    await lab.settle(spent(large, compact, budget()))
    cheap = spent(large, compact, budget(exempt=EXEMPT, action="Downgrade", tiers=["compact"]))

    async def moved():
        return (await lab.ask()).by == "compact"

    assert await in_force(lab, cheap, moved) < 1
    await lab.settle(cheap)
    assert await lab.count(30) == {"compact": 30}
    assert (await lab.ask(headers=VITAL)).by == "large"
    compact.fault = "503"
    assert await lab.count(10) == {"large": 10}


async def test_downgrade_never_sends_a_request_where_its_sensitivity_forbids(lab, upstream):
    large, x = await upstream("large"), await upstream("x")
    provider = external(f"http://localhost:{x.port}/v1", name="cheap", clearance="Public", allowPlaintext=True)
    rule = policy(classes=[{"name": "all", "tiers": [{"name": "cheap"}, {"name": "large"}]}])
    down = budget(action="Downgrade", tiers=["cheap"])
    await lab.settle(world([in_cluster("large"), provider], [rule], {"legal/large": [large.port]}, budgets=[down]))
    assert (await lab.ask()).by == "x"
    for _ in range(20):
        assert (await lab.ask(headers={"x-tierwise-sensitivity": "Internal"})).by == "large"


async def test_of_several_budgets_the_strictest_holds(lab, upstream):
    large, compact = await upstream("large"), await upstream("compact")
    both = [
        budget("a", exempt=EXEMPT, action="Downgrade", tiers=["compact"]),
        budget("b", exempt=EXEMPT, action="Deny", resetsAt="2026-11-27T00:00:00Z"),
        budget("c", action="Deny", resetsAt="2026-11-26T00:00:00Z"),
    ]
    await lab.settle(spent(large, compact, *both))
    for headers, name in (({}, "legal/b"), (VITAL, "legal/c")):
        answer = await lab.ask(headers=headers)
        assert answer.status == 429
        assert name in answer.json["error"]["message"]
