"""A tier that is saturated passes requests on at once, in a real Envoy: what upstreams have in flight, they count."""

import asyncio
import dataclasses
import re
import time
from collections import Counter

import aiohttp
import pytest
import pytest_asyncio
from envoy_lab import REFUSED_PORT, Lab, Upstream, external, in_cluster, policy, world

from tierwise.adapters.xds import server
from tierwise.api.model_tier import ModelTier
from tierwise.render.envoy.protos import RUNTIME

pytestmark = pytest.mark.asyncio(loop_scope="module")

FALLBACK = {"when": ["ConnectFailure", "ServerError", "Saturated"], "attempts": 2}
CONFIDENTIAL = {"x-tierwise-sensitivity": "Confidential"}


@dataclasses.dataclass
class Counting(Upstream):
    """Knows how many requests it has, and answers while its door is open."""

    now: int = 0
    most: int = 0
    door: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)

    async def _answer(self, request):
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await self.door.wait()
            return await super()._answer(request)
        finally:
            self.now -= 1

    def shut(self):
        self.door.clear()
        self.most = self.now


@pytest_asyncio.fixture(loop_scope="module")
async def counting(lab):  # noqa: ARG001 - asks for it so that upstreams end before the gateway
    made: list[Counting] = []

    async def make(name, *, open_=True, **fields):
        one = await Counting(name, **fields).start()
        if open_:
            one.door.set()
        made.append(one)
        return one

    yield make
    for one in made:
        one.door.set()
        await one.stop()


def tier(name, concurrent=None, clearance="Restricted", **spec):
    found = in_cluster(name, clearance=clearance, **spec)
    capacity = {"requestsPerSecond": "1", "provenance": "Measured", "concurrentRequests": concurrent}
    status = {"capacity": {key: value for key, value in capacity.items() if value is not None}}
    return ModelTier.parse(found.model_dump(by_alias=True, mode="json", exclude_none=True) | {"status": status})


def guarded(a, b, limit=2, *, names=("a", "b"), fallback=FALLBACK, gateways=1, others=(), **of_b):
    """All requests go to the first tier first."""
    first, second = names
    listed = [{"name": first, "weight": 100}, {"name": second, "weight": 0}]
    listed += [{"name": each.metadata.name, "weight": 0} for each, _ in others]
    counts = {"acknowledged": 1, "refused": 0, "hash": "x", "lastTransitionTime": "2026-11-25T12:00:00Z"}
    status = {"gateways": [{"name": "operator-0", "connected": gateways, **counts}]}
    ports = {f"legal/{first}": [a] if isinstance(a, int) else a, f"legal/{second}": [b]}
    ports |= {f"legal/{each.metadata.name}": [port] for each, port in others if port}
    return world(
        [tier(first, limit), tier(second, **of_b), *(each for each, _ in others)],
        [policy(classes=[{"name": "all", "tiers": listed, "fallback": fallback}], status=status)],
        ports,
    )


async def statistics(lab, cluster=None) -> Counter:
    """Envoy's own, of one cluster or of none."""
    async with lab.http.get(f"http://127.0.0.1:{lab.metrics_port}/stats/prometheus") as response:
        text = await response.text()
    kind, labels = ("cluster_", f'{{envoy_cluster_name="{cluster}"}}') if cluster else ("", "{}")
    found = re.findall(rf"^envoy_{kind}([a-z_0-9]+){re.escape(labels)} (\d+)$", text, re.MULTILINE)
    return Counter({name: int(value) for name, value in found})


async def loads(lab) -> int:
    """How often the gateway has taken a new runtime."""
    return (await statistics(lab))["runtime_load_success"]


async def settle(lab, new):
    """As `lab.settle`, limits too."""
    before, known = await loads(lab), lab.xds._limits.version
    await lab.settle(new)
    if lab.xds._limits.version != known:

        async def taken():
            return await loads(lab) > before

        await lab.eventually(taken)
        await lab.worked()


def ask(lab, count, **fields):
    return [asyncio.create_task(lab.ask(**fields)) for _ in range(count)]


async def answered(lab, asked, number):
    """So many answers, while others wait; these."""
    await lab.eventually(lambda: sum(task.done() for task in asked) >= number)
    done, waiting = await asyncio.wait(asked, timeout=0.3)
    assert len(done) == number
    return [task.result() for task in done], waiting


async def until(lab, upstream, number):
    await lab.eventually(lambda: upstream.now == number)


async def rest(upstream):
    """Nothing more comes."""
    await asyncio.sleep(0.3)
    return upstream.now


async def counts(lab, name):
    found = await lab.metrics()
    return Counter(
        {
            tier: int(
                sum(value for series, value in found.items() if f"{name}{{" in series and f'tier="{tier}"' in series)
            )
            for tier in ("a", "b", "x")
        }
    )


COUNTED = ("arrivals", "retries", "saturated")


async def attempts(lab):
    return {name: await counts(lab, f"envoy_tierwise_{name}") for name in COUNTED}


async def taken(lab, before):
    """Tier -> attempts that it took since, as the loop tells it from gateways' counters."""
    after = await attempts(lab)
    arrived, again, passed = ({tier: after[name][tier] - before[name][tier] for tier in "abx"} for name in COUNTED)
    return {tier: arrived[tier] + again[tier] - passed[tier] for tier in "abx"}, passed


async def test_no_more_than_the_limit_and_the_rest_is_answered_at_once(lab, counting):
    a, b = await counting("a", open_=False), await counting("b")
    await settle(lab, guarded(a.port, b.port, fallback={"when": ["Saturated"], "attempts": 2}))
    names = ("arrivals", "retries", "saturated", "requests", "estimated_attempts", "refused")
    before = {name: await counts(lab, f"envoy_tierwise_{name}") for name in names}
    asked = ask(lab, 5)
    passed, waiting = await answered(lab, asked, 3)
    assert [(one.status, one.by, one.tier, one.headers["x-tierwise-attempts"]) for one in passed] == [
        (200, "b", "b", "2")
    ] * 3
    assert all("x-tierwise-saturated" not in one.headers for one in passed)
    assert (a.now, a.most) == (2, 2)
    a.door.set()
    held = await asyncio.gather(*waiting)
    assert [(one.status, one.tier, one.headers["x-tierwise-attempts"]) for one in held] == [(200, "a", "1")] * 2
    assert a.seen[0].json["model"] == b.seen[0].json["model"] == "qwen3-8b"
    assert not [name for one in (a, b) for seen in one.seen for name in seen.headers if name.startswith("x-tierwise")]
    await asyncio.sleep(0.2)
    found = {name: await counts(lab, f"envoy_tierwise_{name}") - before[name] for name in names}
    assert found == {
        "arrivals": Counter(a=5),
        "retries": Counter(b=3),
        "saturated": Counter(a=3),
        "requests": Counter(a=2, b=3),
        "estimated_attempts": Counter(),
        "refused": Counter(),
    }


async def test_another_limit_drops_nothing_and_forgets_nothing_in_flight(lab, counting):
    a, b = await counting("a", open_=False, chunk_gap=0.05), await counting("b")
    await settle(lab, guarded(a.port, b.port, 2))
    hash_ = lab.config.namespaces["legal"].hash
    streams = ask(lab, 2, stream=True)
    await until(lab, a, 2)
    await settle(lab, guarded(a.port, b.port, 4))
    assert lab.config.namespaces["legal"].hash == hash_
    more = ask(lab, 3, stream=True)
    await until(lab, a, 4)
    assert await rest(a) == 4
    await settle(lab, guarded(a.port, b.port, 1))
    assert (await lab.ask()).by == "b"
    assert a.now == 4, "what is in flight stays"
    a.door.set()
    answers = await asyncio.gather(*streams, *more)
    assert all(one.status == 200 and one.body.endswith(b"data: [DONE]\n\n") for one in answers)
    assert {one.body.count(b"data: ") for one in answers} == {4}, "three pieces and the end"
    assert Counter(one.tier for one in answers) == {"a": 4, "b": 1}


async def test_who_may_see_only_this_tier_waits_for_it(lab, counting):
    a, b = await counting("a", open_=False), await counting("b")
    await settle(lab, guarded(a.port, b.port, clearance="Internal"))
    plain = ask(lab, 2)
    await until(lab, a, 2)
    secret = ask(lab, 4, headers=CONFIDENTIAL)
    await until(lab, a, 6)
    assert not b.seen
    assert (await lab.ask()).by == "b"
    a.door.set()
    answers = await asyncio.gather(*plain, *secret)
    assert Counter((one.status, one.tier) for one in answers) == {(200, "a"): 6}
    assert len(b.seen) == 1


async def test_limits_that_are_the_same_are_not_sent_again(lab, counting, monkeypatch):
    a, b = await counting("a"), await counting("b")
    await settle(lab, guarded(a.port, b.port, 2))
    sent = []
    plain = server._to_message
    monkeypatch.setattr(server, "_to_message", lambda response: sent.append(response) or plain(response))

    def layers():
        return [response for response in sent if response.type_url == RUNTIME]

    before = await loads(lab)
    await lab.settle(guarded(b.port, a.port, 2))  # other addresses, as many
    assert sent
    assert not layers()
    await lab.xds.stop(0)
    lab.xds = server.XdsServer("127.0.0.1", lab.xds_port, lab.material)
    await lab.publish(lab.world)
    await lab.xds.start(lab.changes.set)
    await lab.eventually(lambda: lab.xds.reports()["legal"].acknowledged == 1, seconds=10)
    await lab.eventually(lambda: all(stream.limits for stream in lab.xds._streams))
    assert not layers()
    assert await loads(lab) == before
    await settle(lab, guarded(a.port, b.port, 3))
    (response,) = layers()
    assert [resource.name for resource in response.resources] == ["tierwise-concurrency"]


async def test_without_a_known_limit_or_a_listed_reason_all_wait(lab, counting):
    a, b = await counting("a", open_=False), await counting("b")
    without = {**FALLBACK, "when": ["ConnectFailure", "ServerError"]}
    for each in (guarded(a.port, b.port, None), guarded(a.port, b.port, 2, fallback=without)):
        await settle(lab, each)
        a.shut()
        asked = ask(lab, 12)
        await until(lab, a, 12)
        a.door.set()
        assert {one.tier for one in await asyncio.gather(*asked)} == {"a"}
    assert not b.seen


async def test_from_one_guarded_tier_to_the_next_and_to_a_provider(lab, counting):
    a, b, x = await counting("a", open_=False), await counting("b", open_=False), await counting("x")
    provider = external(f"http://localhost:{x.port}/v1", "x", allowPlaintext=True, clearance="Public")
    fallback = {**FALLBACK, "attempts": 3}
    new = guarded(a.port, b.port, 2, fallback=fallback, others=[(provider, None)], concurrent=1)
    await settle(lab, new)
    before = await attempts(lab)
    asked = ask(lab, 6)
    passed, _ = await answered(lab, asked, 3)
    # Told before anything has ended at the two: what goes on from the second tier had not arrived there.
    assert await taken(lab, before) == ({"a": 2, "b": 1, "x": 3}, {"a": 4, "b": 3, "x": 0})
    assert Counter((one.tier, one.headers["x-tierwise-attempts"]) for one in passed) == {("x", "3"): 3}
    assert (a.most, b.most) == (2, 1)
    a.door.set()
    b.door.set()
    answers = await asyncio.gather(*asked)
    assert Counter(one.tier for one in answers) == {"a": 2, "b": 1, "x": 3}


async def test_replicas_count_and_gateways_share(lab, counting):
    a, a2, b = await counting("a", open_=False), await counting("a", open_=False), await counting("b")
    await settle(lab, guarded([a.port, a2.port], b.port, 3, gateways=2))
    asked = ask(lab, 6)
    await lab.eventually(lambda: a.now + a2.now == 3)
    await asyncio.sleep(0.3)
    assert a.now + a2.now == 3
    assert {a.now, a2.now} == {1, 2}, "the least busy"
    a.door.set()
    a2.door.set()
    assert Counter(one.by for one in await asyncio.gather(*asked)) == {"a": 3, "b": 3}


async def test_saturation_ejects_no_replica(lab, counting):
    replicas = [await counting("a", open_=False) for _ in range(3)]
    b = await counting("b")
    await settle(lab, guarded([one.port for one in replicas], b.port, 1))
    asked = ask(lab, 3)
    await lab.eventually(lambda: sum(one.now for one in replicas) == 3)
    assert {one.by for one in await asyncio.gather(*ask(lab, 40))} == {"b"}
    await asyncio.sleep(2.5)  # longer than the interval of outlier detection
    found = await statistics(lab, "legal_a_limited")
    assert found["upstream_rq_active_overflow"] >= 40
    assert not found["outlier_detection_ejections_active"]
    assert not found["outlier_detection_ejections_enforced_total"]
    for one in replicas:
        one.door.set()
    await asyncio.gather(*asked)


async def test_a_replica_that_fails_is_left_out(lab, counting):
    replicas = [await counting("a") for _ in range(3)]
    b = await counting("b")
    await settle(lab, guarded([one.port for one in replicas], b.port, 10))
    replicas[0].fault = "500"
    for _ in range(40):
        assert (await lab.ask()).status == 200

    async def left_out():
        return (await statistics(lab, "legal_a_limited"))["outlier_detection_ejections_active"] == 1

    await lab.eventually(left_out)


async def test_what_fails_falls_back_as_without_a_guard(lab, counting):
    a, b = await counting("a"), await counting("b")
    await settle(lab, guarded(a.port, b.port))
    for fault in ("500", "503", "429", "reset"):
        a.fault = fault
        answer = await lab.ask()
        assert (answer.status, answer.by, answer.headers["x-tierwise-attempts"]) == (200, "b", "2"), fault
    await settle(lab, guarded(REFUSED_PORT, b.port))
    answer = await lab.ask()
    assert (answer.status, answer.by, answer.headers["x-tierwise-attempts"]) == (200, "b", "2")
    gone = guarded([], b.port)
    await settle(lab, gone)
    assert (await lab.ask()).by == "b"


@pytest.mark.parametrize("fault", ["429", "503", "reset"])
async def test_what_was_passed_on_waits_where_it_was_first_for_when_the_other_fails(lab, counting, fault):
    a, b = await counting("a", open_=False), await counting("b")
    await settle(lab, guarded(a.port, b.port, 1, fallback={"when": ["Saturated"], "attempts": 2}))
    b.fault = fault
    before = await attempts(lab)
    asked = ask(lab, 3)
    await until(lab, a, 3)
    assert await taken(lab, before) == ({"a": 3, "b": 2, "x": 0}, {"a": 2, "b": 0, "x": 0})
    a.door.set()
    answers = await asyncio.gather(*asked)
    assert {(one.status, one.by) for one in answers} == {(200, "a")}
    assert sorted(one.headers["x-tierwise-attempts"] for one in answers) == ["1", "3", "3"]


async def test_a_time_out_goes_on_too(lab, counting):
    a, b = await counting("a", open_=False), await counting("b")
    fallback = {"when": ["Timeout", "Saturated"], "timeout": "300ms", "attempts": 2}
    await settle(lab, guarded(a.port, b.port, fallback=fallback))
    assert {one.by for one in await asyncio.gather(*ask(lab, 2))} == {"b"}
    assert a.now == 2, "this upstream does not notice"
    asked = ask(lab, 2)
    await until(lab, a, 4)  # what timed out is in flight no more
    await asyncio.gather(*asked)


@pytest.mark.parametrize("status", ["200", "404"])
async def test_no_host_says_that_it_is_saturated(lab, counting, status):
    a, b = await counting("a"), await counting("b")
    only = {"when": ["Saturated"], "attempts": 2}
    await settle(lab, guarded(a.port, b.port, fallback=only))
    a.fault, a.fault_headers = status, {"x-tierwise-saturated": "true", "x-tierwise-unreached": "UC"}
    before = await counts(lab, "envoy_tierwise_saturated")
    answer = await lab.ask(headers={"x-tierwise-guard": "legal/b@limited", "x-tierwise-saturated": "true"})
    assert (answer.status, answer.headers["x-tierwise-attempts"]) == (int(status), "1")
    assert not {"x-tierwise-saturated", "x-tierwise-unreached"} & {*answer.headers}
    assert "x-tierwise-guard" not in a.seen[0].headers
    assert not b.seen
    assert await counts(lab, "envoy_tierwise_saturated") == before


async def test_a_large_body_is_passed_on_whole(lab, counting):
    a, b = await counting("a", open_=False), await counting("b")
    await settle(lab, guarded(a.port, b.port, 1))
    first = ask(lab, 1)
    await until(lab, a, 1)
    text = "x" * (6 << 20)
    answers = await asyncio.gather(*(lab.ask(messages=[{"role": "user", "content": text}]) for _ in range(4)))
    assert {one.by for one in answers} == {"b"}
    assert all(len(seen.body) > len(text) for seen in b.seen)
    a.door.set()
    await asyncio.gather(*first)


async def test_a_gateway_that_comes_later_has_the_limit_and_keeps_it_without_an_operator(tmp_path, counting):
    a, b = await counting("a", open_=False), await counting("b")
    late = Lab(tmp_path)
    late.world = guarded(a.port, b.port, 2)
    try:
        await late.start()
        await late.settle(late.world)
        await late.xds.stop(0)
        asked = ask(late, 5)
        await late.eventually(lambda: sum(task.done() for task in asked) == 3)
        assert (a.now, len(b.seen)) == (2, 3)
        a.door.set()
        await asyncio.gather(*asked)
    finally:
        await late.stop()


async def test_what_it_costs(lab, counting):
    a, b = await counting("a"), await counting("b")

    async def median(expected):
        took = []
        for _ in range(150):
            began = time.perf_counter()
            assert (await lab.ask(messages=[{"role": "user", "content": "x" * 1000}])).tier == expected
            took.append(time.perf_counter() - began)
        return round(1000 * sorted(took)[75], 2)

    plain = {**FALLBACK, "when": ["ConnectFailure", "ServerError"]}
    found: dict[str, list[float]] = {"plain": [], "guarded": [], "passed on": []}
    for _ in range(3):
        for name, fallback in (("plain", plain), ("guarded", FALLBACK)):
            await settle(lab, guarded(a.port, b.port, 10, fallback=fallback))
            found[name].append(await median("a"))
        await settle(lab, guarded(a.port, b.port, 1))
        a.shut()
        held = ask(lab, 1)
        await until(lab, a, 1)
        found["passed on"].append(await median("b"))
        a.door.set()
        await asyncio.gather(*held)
    print(f"milliseconds (p50): {found}")
    assert min(found["guarded"]) < min(found["plain"]) + 5


async def test_all_workers_share_the_limit(tmp_path, counting):
    a, b = await counting("a", open_=False), await counting("b")
    several = Lab(tmp_path)
    several.workers = 4
    several.world = guarded(a.port, b.port, 8)
    try:
        await several.start()
        await several.settle(several.world)
        asked = []
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as several.http:
            for _ in range(40):
                asked += ask(several, 1)
                await asyncio.sleep(0.01)
            await several.eventually(lambda: sum(task.done() for task in asked) >= 32)
            assert (a.most, len(b.seen)) == (8, 32)
            a.door.set()
            await asyncio.gather(*asked)
    finally:
        await several.stop()
