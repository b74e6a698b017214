"""Gateways and replicas in several zones, at a real Envoy: near ones first, equal load, no request lost."""

import asyncio
import dataclasses
from collections import Counter

import pytest
import pytest_asyncio
from envoy_lab import Lab, in_cluster, policy, world

from tierwise.core.world import Endpoint, Key
from tierwise.render.envoy import bootstrap, endpoints
from tierwise.render.envoy.protos import ENDPOINTS

pytestmark = pytest.mark.asyncio(loop_scope="module")

ASKED = 200
SLOW_START_SECONDS = 1.0
ONE_EACH = {"a": 1, "b": 1}
"""Gateways by zone."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lab(tmp_path_factory):
    started = Lab(tmp_path_factory.mktemp("lab"))
    started.options = dataclasses.replace(started.options, slow_start_seconds=SLOW_START_SECONDS)
    started.zone = "a"
    try:
        yield await started.start()
    finally:
        await started.stop()


def placed(found, gateways, name, **spec):
    """A world with these replicas, each an upstream and its zone, and so many gateways by zone."""
    only = [{"name": "all", "tiers": [{"name": name}], "fallback": {"attempts": 1}, **spec}]
    made = world([in_cluster(name)], [policy(classes=only)], gateway_zones=gateways)
    addresses = tuple(Endpoint("127.0.0.1", each.port, True, True, False, zone) for each, zone in found)
    return dataclasses.replace(made, endpoints={Key("legal", name): addresses})


async def gateway_in(lab, zone):
    """One in this zone takes the place of the last one."""
    if lab.zone != zone:
        await lab.end(lab.envoys[-1])
        lab.zone = zone
        await lab.envoy(f"gateway-{len(lab.envoys)}")


async def shares(lab, found, gateways, name):
    await lab.settle(placed(found, gateways, name))
    await asyncio.sleep(SLOW_START_SECONDS + 0.1)
    return await lab.count(ASKED)


@pytest.mark.parametrize(
    ("zones", "gateways", "least", "most"),
    [
        (["a", "b"], ONE_EACH, ASKED, ASKED),
        (["a", "a", "b"], ONE_EACH, ASKED, ASKED),
        # A third of the replicas for half of the gateways: two thirds of the requests stay.
        (["a", "b", "b"], ONE_EACH, 110, 157),
        (["a", "b", None], ONE_EACH, 110, 157),
        (["a", "b"], {"a": 2}, 75, 125),  # no gateway is where the other half is
        (["a", "b"], {}, 75, 125),  # where gateways are is not known
        (["a", "b"], {"": 2}, 75, 125),
        (["b", "b"], ONE_EACH, 0, 0),
        ([None, None], ONE_EACH, 0, 0),
    ],
)
async def test_what_the_zone_is_too_small_for_goes_elsewhere(lab, upstream, zones, gateways, least, most):
    replicas = [(await upstream(f"{zone}{number}"), zone) for number, zone in enumerate(zones)]
    await gateway_in(lab, "a")
    name = "-".join(["spill", *(zone or "none" for zone in zones), *(f"{zone}{n}" for zone, n in gateways.items())])
    found = await shares(lab, replicas, gateways, name)
    print(zones, gateways, dict(found))
    assert least <= sum(found[each.name] for each, zone in replicas if zone == "a") <= most
    assert sum(found[each.name] for each, _ in replicas) == ASKED, "every one is answered"


@pytest.mark.parametrize("zones", [["a", "b"], ["a", "b", "b"], ["b", "c"], ["a", "b", "c"]], ids="".join)
async def test_gateways_of_two_zones_load_all_replicas_equally(lab, upstream, zones):
    replicas = [(await upstream(f"{zone}{number}"), zone) for number, zone in enumerate(zones)]
    total: Counter = Counter()
    for zone in ("a", "b") if lab.zone == "a" else ("b", "a"):
        await gateway_in(lab, zone)
        found = await shares(lab, replicas, ONE_EACH, f"equal-{'-'.join(zones)}")
        print(f"from {zone}: {dict(found)}")
        total += found
    even = 2 * ASKED / len(zones)
    assert sum(total.values()) == 2 * ASKED
    assert all(0.75 * even <= total[each.name] <= 1.25 * even for each, _ in replicas), total


async def test_a_gateway_that_does_not_know_its_zone_prefers_none(lab, upstream):
    near, far = await upstream("near"), await upstream("far")
    await gateway_in(lab, "")
    found = await shares(lab, [(near, "a"), (far, "b")], ONE_EACH, "nowhere")
    print(dict(found))
    assert found["near"] + found["far"] == ASKED
    assert 75 <= found["near"] <= 125


async def test_replicas_of_the_zone_that_vanish_and_come_back_under_load_cost_no_request(lab, upstream):
    near, far = await upstream("near", chunks=10, chunk_gap=0.01), await upstream("far", chunks=10, chunk_gap=0.01)
    await gateway_in(lab, "a")
    both, rest = placed([(near, "a"), (far, "b")], ONE_EACH, "vanish"), placed([(far, "b")], ONE_EACH, "vanish")
    await lab.settle(both)
    streams, over = [], asyncio.Event()

    async def ask():
        while not over.is_set():
            streams.append(asyncio.create_task(lab.ask(stream=True)))
            await asyncio.sleep(0.01)

    asking = asyncio.create_task(ask())
    seen = []
    for step in (both, rest, both):
        await lab.settle(step)
        before = len(near.seen), len(far.seen)
        await asyncio.sleep(0.5)
        seen.append((len(near.seen) - before[0], len(far.seen) - before[1]))
    over.set()
    await asking
    answers = await asyncio.gather(*streams)
    whole = sum(each.status == 200 and each.body.endswith(b"data: [DONE]\n\n") for each in answers)
    print(f"{whole} of {len(answers)} streams whole; near and far, before, without and with near ones: {seen}")
    assert whole == len(answers) > 60
    assert seen[0][0] > 10 >= seen[0][1], "at most what was under way"
    assert seen[1][1] > 10 >= seen[1][0]
    assert seen[2][0] > 10 >= seen[2][1]


async def test_a_replica_of_the_zone_that_fails_is_left_out_and_far_ones_answer(lab, upstream):
    bad = await upstream("bad", fault="503")
    far = [await upstream("far-0"), await upstream("far-1")]
    await gateway_in(lab, "a")
    await lab.settle(placed([(bad, "a"), *((each, "b") for each in far)], {"a": 1, "b": 2}, "ejected"))
    await lab.count(20)
    await lab.eventually(lambda: len(bad.seen) <= 6)
    await asyncio.sleep(2.2)  # the detector's interval
    found = await lab.count(60)
    print(dict(found), f"{len(bad.seen)} to the one that fails")
    assert set(found) == {"far-0", "far-1"}


async def test_a_tier_without_replicas_falls_back_to_the_next(lab, upstream):
    far = await upstream("far")
    await gateway_in(lab, "a")
    names = ["empty", "backup"]
    classes = [{"name": "all", "tiers": [{"name": each} for each in names], "fallback": {"attempts": 2}}]
    made = world([in_cluster(each) for each in names], [policy(classes=classes)], gateway_zones=ONE_EACH)
    there = (Endpoint("127.0.0.1", far.port, True, True, False, "b"),)
    await lab.settle(dataclasses.replace(made, endpoints={Key("legal", "backup"): there}))
    assert await lab.count(30) == {"far": 30}


async def test_a_new_replica_of_the_zone_comes_to_its_share_slowly(lab, upstream):
    old, new, far = await upstream("old"), await upstream("new"), await upstream("far")
    await gateway_in(lab, "a")
    await shares(lab, [(old, "a"), (far, "b")], ONE_EACH, "slow")
    await lab.settle(placed([(old, "a"), (new, "a"), (far, "b")], ONE_EACH, "slow"))
    early = await lab.count(40)
    await asyncio.sleep(SLOW_START_SECONDS)
    late = await lab.count(ASKED)
    print(f"of 40 at first {early['new']}, of {ASKED} later {late['new']}")
    assert early["new"] < 14
    assert 70 <= late["new"] <= 130
    assert early["far"] == late["far"] == 0


async def test_a_session_has_one_replica_whatever_the_zone(lab, upstream):
    """Affinity goes before nearness: a cache that is warm is worth more than a short way."""
    replicas = [(await upstream(f"{zone}{number}"), zone) for number, zone in enumerate(["a", "a", "b"])]
    made = placed(replicas, ONE_EACH, "sticky", affinity={"header": "x-session"})
    answered = {}
    for zone in ("a", "b", "a"):
        await gateway_in(lab, zone)
        await lab.settle(made)
        for number in range(30):
            answer = await lab.ask(headers={"x-session": f"session-{number}"})
            answered.setdefault(number, set()).add(answer.by)
    assert all(len(each) == 1 for each in answered.values()), answered
    assert set.union(*answered.values()) == {"a0", "a1", "b2"}


async def test_gateways_of_another_version_than_the_operator_work_without_a_preference(lab, upstream, monkeypatch):
    """An upgrade replaces operators first, a roll-back gateways last: neither may stop requests."""
    near, far = await upstream("near"), await upstream("far")
    await gateway_in(lab, "a")
    made = placed([(near, "a"), (far, "b")], ONE_EACH, "versions")

    def of_an_older_operator(config):
        return dataclasses.replace(
            config, shared={url: found for url, found in config.shared.items() if url != ENDPOINTS}
        )

    await lab.settle(made, of_an_older_operator)
    await lab.end(lab.envoys[-1])
    await lab.envoy("newer-gateway")
    await asyncio.sleep(SLOW_START_SECONDS)
    newer = await lab.count(ASKED)
    await lab.end(lab.envoys[-1])

    def of_an_older_gateway(options, made=bootstrap.files):
        found = made(options)
        del found[bootstrap.BOOTSTRAP_FILE]["cluster_manager"]
        static = found[bootstrap.BOOTSTRAP_FILE]["static_resources"]
        static["clusters"] = [each for each in static["clusters"] if each["name"] != endpoints.GATEWAYS]
        return found

    monkeypatch.setattr(bootstrap, "files", of_an_older_gateway)
    await lab.publish(made)
    await lab.envoy("older-gateway")
    await asyncio.sleep(SLOW_START_SECONDS)
    older = await lab.count(ASKED)
    await lab.publish(placed([(near, "a")], ONE_EACH, "moved"))
    await lab.eventually(lambda: only(lab, "near"))
    print(f"newer gateway {dict(newer)}, older gateway {dict(older)}")
    for found in (newer, older):
        assert found["near"] + found["far"] == ASKED
        assert 75 <= found["near"] <= 125


async def only(lab, name):
    return set(await lab.count(5)) == {name}
