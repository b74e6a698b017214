"""What a real Envoy does by itself when nobody decides any more; no operator, no Python takes part in it."""

import asyncio

import pytest
from envoy_lab import in_cluster, policy, world

from tierwise.api.namespace_budget import NamespaceBudget
from tierwise.core.ceiling import Unattended
from tierwise.render.envoy import unattended

pytestmark = pytest.mark.asyncio(loop_scope="module")

NOW = "2026-11-25T12:00:00Z"
MINUTE_LESS = 58.5
"""Age at which a layer of a minute has a second and a half to live."""


def budget(policy_name="Closed", *, after="1m", action=None, ladder="Deny", exempt=()):
    told = {"since": NOW, "resetsAt": "2026-12-01T00:00:00Z", "action": action}
    return NamespaceBudget.parse(
        {
            "metadata": {"name": "ceiling", "namespace": "legal", "uid": "uid-ceiling"},
            "spec": {
                "ceiling": "100",
                "ladder": [{"atPercent": 100, "action": ladder}],
                "failurePolicy": policy_name,
                "failureAfter": after,
                "unpriced": "Allow",
                "exempt": list(exempt),
            },
            "status": {"enforcement": told} if action else {},
        }
    )


def one(upstream, *budgets):
    classes = [{"name": "all", "tiers": [{"name": "compact"}]}]
    return world([in_cluster()], [policy(classes=classes)], {"legal/compact": [upstream.port]}, budgets=budgets)


async def status(lab) -> int:
    return (await lab.ask()).status


async def holds(lab, wanted, seconds) -> float:
    async def seen():
        return await status(lab) == wanted

    return await lab.eventually(seen, seconds=seconds)


async def test_closed_denies_when_nobody_decides_and_answers_when_somebody_does(lab, upstream):
    compact = await upstream("compact")
    lab.xds.decided(0)
    await lab.settle(one(compact, budget()))
    await holds(lab, 200, 5)
    lab.xds.decided(MINUTE_LESS)
    assert await status(lab) == 200
    took = await holds(lab, 503, 5)
    print(f"denies {took:.2f} s after it was told that nobody had decided for {MINUTE_LESS} s")
    assert took < 3
    answer = await lab.ask()
    said = answer.json["error"]
    assert (said["code"], said["type"]) == ("budget_unattended", "server_error")
    assert "legal/ceiling" in said["message"]
    assert answer.headers["retry-after"] == "60"
    lab.xds.decided(0)
    assert await holds(lab, 200, 3) < 2


async def test_a_heartbeat_keeps_it_open_and_a_longer_patience_outlives_a_shorter(lab, upstream):
    compact = await upstream("compact")
    lab.xds.decided(0)
    await lab.settle(one(compact, budget()))
    await holds(lab, 200, 5)
    for _ in range(6):
        lab.xds.decided(MINUTE_LESS)
        await asyncio.sleep(0.5)
        assert await status(lab) == 200
    await holds(lab, 503, 4)
    await lab.settle(one(compact, budget(after="5m")))
    assert await status(lab) == 200
    lab.xds.decided(0)


async def test_open_lets_requests_through_again_and_a_rung_stays_until_then(lab, upstream):
    compact = await upstream("compact")
    lab.xds.decided(0)
    await lab.settle(one(compact, budget("Open", action="Deny")))
    await holds(lab, 429, 5)
    lab.xds.decided(MINUTE_LESS)
    await asyncio.sleep(0.5)
    assert await status(lab) == 429
    await holds(lab, 200, 4)
    lab.xds.decided(0)
    await holds(lab, 429, 3)


async def test_a_denial_stays_when_nobody_decides_and_the_policy_is_closed(lab, upstream):
    compact = await upstream("compact")
    lab.xds.decided(0)
    await lab.settle(one(compact, budget(action="Deny")))
    await holds(lab, 429, 5)
    lab.xds.decided(MINUTE_LESS)
    await asyncio.sleep(3)
    assert await status(lab) == 429
    lab.xds.decided(0)


async def test_exempt_classes_and_soft_ceilings_go_on(lab, upstream):
    compact = await upstream("compact")
    lab.xds.decided(MINUTE_LESS)
    for each in (budget(exempt=[{"policy": "assistant", "class": "all"}]), budget(ladder="Notify")):
        await lab.settle(one(compact, each))
        await asyncio.sleep(2)
        assert await status(lab) == 200
    lab.xds.decided(0)


async def test_it_holds_without_any_operator(lab, upstream):
    """The configuration server ends, and with it every stream: Envoy counts down alone."""
    compact = await upstream("compact")
    lab.xds.decided(0)
    await lab.settle(one(compact, budget()))
    await holds(lab, 200, 5)
    lab.xds.decided(MINUTE_LESS)
    await asyncio.sleep(0.3)
    await lab.xds.stop(0)
    assert await status(lab) == 200
    await holds(lab, 503, 5)


async def test_times_are_rounded_to_the_strict_side():

    def key(match):
        return match["runtime_fraction"]["runtime_key"].rsplit("_", 1)[1]

    for asked, closes, opens in ((1, 60, 60), (90, 60, 120), (600, 600, 600), (100_000, 86_400, 86_400)):
        assert key(unattended.closes(Unattended("b", asked))) == str(closes)
        assert key(unattended.still_denied(asked)) == str(opens)
