"""What a budget decides, on a real Envoy: Downgrade, Throttle and Deny, and what they leave alone.

`make bench-ceiling` prints how long each takes from the decision to what clients see.
"""

import os
import time
from email.utils import parsedate_to_datetime

import pytest
from envoy_lab import budget, external, in_cluster, policy, world

pytestmark = pytest.mark.asyncio(loop_scope="module")

IN_FORCE_SECONDS = 1.0
"""Far above what is measured (see docs/gateway.md): a machine may be busy."""
TIMES = int(os.environ.get("TIERWISE_CEILING_TIMES", "3"))
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


async def measured(what, lab, new, holds, old, held) -> None:
    took = []
    for _ in range(TIMES):
        took.append(await in_force(lab, new, holds))
        await in_force(lab, old, held)
    took.sort()
    print(
        f"{what} in force after {1000 * took[len(took) // 2]:.0f} ms, the median of {TIMES}; "
        f"at most {1000 * took[-1]:.0f} ms"
    )
    assert took[-1] < IN_FORCE_SECONDS


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

    await measured("Deny", lab, denied, refused, free, answered)
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

    async def back():
        return (await lab.ask()).by == "large"

    free = spent(large, compact, budget())
    await measured("Downgrade", lab, cheap, moved, free, back)
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


async def rates(lab, seconds, **asked) -> tuple[int, int]:
    """Answers and refusals in so many seconds, asked one after the other."""
    until, answered, refused = time.monotonic() + seconds, 0, 0
    while time.monotonic() < until:
        answer = await lab.ask(**asked)
        answered += answer.status == 200
        refused += answer.status == 429
        if answer.status == 429:
            said = answer.json["error"]
            assert (said["code"], said["type"]) == ("budget_throttled", "rate_limit_error")
            assert (
                "NamespaceBudget legal/ceiling is nearly exhausted until it resets at 2026-12-01T00:00:00Z"
                in said["message"]
            )
            assert int(answer.headers["retry-after"]) >= 1
    return answered, refused


async def test_throttled_requests_per_second_hold_whatever_else_changes(lab, upstream):
    large, compact = await upstream("large"), await upstream("compact")
    slow = budget(exempt=EXEMPT, action="Throttle", requestsPerSecond="20")
    await lab.settle(spent(large, compact, slow))
    await rates(lab, 0.5)  # what the bucket held when it began
    answered, refused = await rates(lab, 2)
    assert refused > 10
    assert 36 <= answered <= 44
    # Weights move ten times a second, and the rate is decided anew: a bucket that they refilled would show.
    until, answered, step = time.monotonic() + 2, 0, 0
    while time.monotonic() < until:
        step += 1
        classes = [
            CLASSES[0],
            {**CLASSES[1], "tiers": [{"name": "large", "weight": 100 - step}, {"name": "compact", "weight": step}]},
        ]
        again = budget(
            exempt=EXEMPT, action="Throttle", requestsPerSecond=f"20.{step}", since=f"2026-11-25T12:00:{step:02}Z"
        )
        await lab.settle(spent(large, compact, again, classes=classes))
        answered += (await rates(lab, 0.1))[0]
    assert step >= 3
    assert answered <= 2.3 * 21 + 2
    assert (await rates(lab, 0.3, headers=VITAL))[1] == 0


async def test_throttled_tokens_per_second_count_prompt_and_answer(lab, upstream):
    large, compact = await upstream("large"), await upstream("compact")
    await lab.settle(spent(large, compact, budget(action="Throttle", tokensPerSecond="20000")))
    text = "x" * 36_000  # about 9,000 tokens, and 1,000 of the answer
    await rates(lab, 1.0, prompt=text, max_tokens=1000)
    answered, refused = await rates(lab, 3, prompt=text, max_tokens=1000)
    assert refused > 5
    assert 5 <= answered <= 7


async def test_a_request_that_states_no_length_is_charged_its_classs(lab, upstream):
    large, compact = await upstream("large"), await upstream("compact")
    classes = [{"name": "all", "tiers": [{"name": "large"}], "limits": {"maxOutputTokens": 10_000}}]
    await lab.settle(spent(large, compact, budget(action="Throttle", tokensPerSecond="20000"), classes=classes))
    await rates(lab, 1.0)
    answered, refused = await rates(lab, 3)
    assert refused > 5
    assert 5 <= answered <= 7


async def test_a_throttle_is_in_force_at_once_and_lets_little_through(lab, upstream):
    large, compact = await upstream("large"), await upstream("compact")
    await lab.settle(spent(large, compact, budget()))
    assert (await rates(lab, 0.3))[1] == 0
    tight = budget("tight", action="Throttle", requestsPerSecond="0.01")

    async def refused():
        return (await lab.ask()).status == 429

    took = await in_force(lab, spent(large, compact, tight), refused)
    print(f"Throttle in force after {1000 * took:.0f} ms")
    assert took < IN_FORCE_SECONDS


async def test_several_gateways_share_a_rate(lab, upstream):
    large, compact = await upstream("large"), await upstream("compact")
    shared = {
        "gateways": [
            {"name": "operator-0", "connected": 1, "acknowledged": 1},
            {"name": "operator-1", "connected": 3, "acknowledged": 3},
        ]
    }
    slow = budget(action="Throttle", requestsPerSecond="40")
    await lab.settle(spent(large, compact, slow, status=shared))
    await rates(lab, 0.5)
    answered, _ = await rates(lab, 2)
    assert 17 <= answered <= 23


async def test_a_throttle_without_a_rate_denies(lab, upstream):
    large, compact = await upstream("large"), await upstream("compact")
    await lab.settle(spent(large, compact, budget(action="Throttle", requestsPerSecond="0")))
    assert (await lab.ask()).json["error"]["code"] == "budget_exceeded"


async def test_a_tier_without_a_price_is_in_no_route_of_a_namespace_that_has_a_ceiling(lab, upstream):
    """Neither by weight, nor by fallback, nor by a copy, nor by a downgrade."""
    priced, free, euros = await upstream("priced"), await upstream("free"), await upstream("euros")

    def tiers():
        price = {"perReplicaHour": "1"}
        made = {name: in_cluster(name) for name in ("priced", "free", "euros")}
        for name, more in (("priced", price), ("euros", {**price, "currency": "EUR"})):
            body = {"model": "m", "inCluster": {"image": "i", "replicas": {"min": 1, "max": 2}, "price": more}}
            metadata = {"name": name, "namespace": "legal", "uid": f"uid-{name}"}
            made[name] = type(made[name]).parse({"metadata": metadata, "spec": body})
        return list(made.values())

    addresses = {"legal/priced": [priced.port], "legal/free": [free.port], "legal/euros": [euros.port]}
    one = {
        "name": "all",
        "tiers": [{"name": "free", "weight": 60}, {"name": "euros", "weight": 30}, {"name": "priced", "weight": 10}],
        "fallback": {"when": ["ConnectFailure", "ServerError"], "attempts": 3},
        "shadow": {"tier": "free", "percent": 100},
    }

    async def serve(*budgets, classes=(one,)):
        await lab.settle(world(tiers(), [policy(classes=list(classes))], addresses, budgets=budgets))

    await serve(budget(unpriced="Deny"), budget("soft", unpriced="Allow"))
    assert await lab.count(20) == {"priced": 20}
    priced.fault = "503"
    assert set(await lab.count(5)) == {503}
    priced.fault = ""
    await serve(budget(unpriced="Deny", action="Downgrade", tiers=["free"]))
    assert await lab.count(5) == {"priced": 5}
    assert not free.seen
    assert not euros.seen
    only = {**one, "tiers": [{"name": "free"}]}
    await serve(budget(unpriced="Deny"), classes=(only,))
    answer = await lab.ask()
    assert (answer.status, answer.json["error"]["code"]) == (403, "no_priced_tier")
    assert "legal/ceiling" in answer.json["error"]["message"]
    await serve(budget(unpriced="Allow"))
    found = await lab.count(40)
    assert found["free"] > 5
