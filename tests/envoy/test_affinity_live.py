"""Sessions and equal prompts stay where they are, at a tier and at a replica, while weights move."""

import pytest
from envoy_lab import external, in_cluster, policy, world

pytestmark = pytest.mark.asyncio(loop_scope="module")

SESSIONS = 1000
NAMES = ("compact", "large", "frontier")


def three_tiers(weights, near, far, more=(), **given):
    """Two in-cluster tiers, the first with as many replicas as `near`, and an external one."""
    tiers = [
        in_cluster(),
        in_cluster("large", model="qwen3-235b"),
        external(f"http://localhost:{far.port}/v1", allowPlaintext=True, clearance="Public"),
    ]
    listed = [{"name": name, "weight": weights[name]} for name in NAMES if name in weights]
    given = {"affinity": {"header": "x-session-id"}, **given}
    classes = [{"name": "all", "tiers": listed, **given}]
    ports = {"legal/compact": [each.port for each in near], "legal/large": [each.port for each in more]}
    return world(tiers, [policy(classes=classes)], ports)


async def homes(lab, count=SESSIONS):
    """Session -> upstream that answered."""
    return {
        number: (await lab.ask(headers={"x-session-id": f"session-{number}"})).by or "nobody" for number in range(count)
    }


def moved(before, after):
    """Share of the sessions that are elsewhere now, percent."""
    return 100 * sum(before[each] != after[each] for each in before) / len(before)


async def test_a_session_stays_at_its_tier_and_its_replica(lab, upstream):
    near, x = [await upstream(name) for name in "abc"], await upstream("x")
    await lab.settle(three_tiers({"compact": 60, "frontier": 40}, near, x))
    first = await homes(lab, 100)
    assert set(first.values()) == {"a", "b", "c", "x"}
    for _ in range(4):
        assert await homes(lab, 100) == first


@pytest.mark.parametrize(
    ("weights", "then", "percent", "most"),
    [
        ({"compact": 80, "frontier": 20}, {"compact": 75, "frontier": 25}, 5, 7.5),
        # Of three tiers the one in the middle is pushed along.
        ({"compact": 50, "large": 30, "frontier": 20}, {"compact": 45, "large": 30, "frontier": 25}, 5, 13),
        ({"compact": 50, "large": 30, "frontier": 20}, {"compact": 45, "large": 35, "frontier": 20}, 5, 7.5),
    ],
)
async def test_when_weights_move_few_sessions_do(lab, upstream, weights, then, percent, most):
    near, x = [await upstream(name) for name in "abc"], await upstream("x")
    large = [await upstream("l")]
    await lab.settle(three_tiers(weights, near, x, large))
    before = await homes(lab)
    assert abs(sum(home == "x" for home in before.values()) - 10 * weights["frontier"]) < 60
    await lab.settle(three_tiers(then, near, x, large))
    after = await homes(lab)
    share = moved(before, after)
    print(f"{weights} -> {then}: {share:.1f}% of {SESSIONS} sessions moved")
    assert 0.4 * percent <= share <= most


async def test_a_session_whose_tier_fails_is_answered_elsewhere_and_comes_back(lab, upstream):
    a, x = await upstream("a"), await upstream("x")
    await lab.settle(three_tiers({"compact": 50, "frontier": 50}, [a], x))
    before = await homes(lab, 60)
    a.fault = "503"
    assert set((await homes(lab, 60)).values()) == {"x"}
    a.fault = ""
    assert await homes(lab, 60) == before


async def test_requests_without_a_session_are_spread(lab, upstream):
    a, x = await upstream("a"), await upstream("x")
    await lab.settle(three_tiers({"compact": 50, "frontier": 50}, [a], x))
    found = await lab.count(200)
    assert abs(found["a"] - 100) < 36
