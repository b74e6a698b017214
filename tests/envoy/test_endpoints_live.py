"""Replicas that come, go, fail and recover, at a real Envoy: no stream is cut, and who is gone gets nothing."""

import asyncio
import dataclasses
import re
import time
from collections import Counter

import pytest
import pytest_asyncio
from envoy_lab import Lab, in_cluster, policy, world

from tierwise.core.world import Endpoint, Key

pytestmark = pytest.mark.asyncio(loop_scope="module")

SLOW_START_SECONDS = 4.0
ONLY = [{"name": "all", "tiers": [{"name": "compact"}], "fallback": {"attempts": 1}}]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lab(tmp_path_factory):
    started = Lab(tmp_path_factory.mktemp("lab"))
    started.options = dataclasses.replace(started.options, slow_start_seconds=SLOW_START_SECONDS)
    try:
        yield await started.start()
    finally:
        await started.stop()


def replicas(*found, name="compact"):
    """A tier with these replicas: an upstream that is ready, or with what it is instead."""
    tier = Key("legal", name)
    classes = [{**ONLY[0], "tiers": [{"name": name}]}]
    made = world([in_cluster(name)], [policy(classes=classes)])
    states = {"ready": (True, True, False), "terminating": (False, True, True), "starting": (False, False, False)}
    pairs = [one if isinstance(one, tuple) else (one, "ready") for one in found]
    endpoints = tuple(Endpoint("127.0.0.1", each.port, *states[state]) for each, state in pairs)
    return dataclasses.replace(made, endpoints={tier: endpoints} if endpoints else {})


@pytest.mark.parametrize("gone", ["terminating", "removed"])
async def test_a_replica_that_leaves_gets_nothing_new_and_its_streams_go_on(lab, upstream, gone):
    a, b = await upstream("a", chunks=60, chunk_gap=0.02), await upstream("b")
    name = f"leaving-{gone}"
    await lab.settle(replicas(a, name=name))
    streams = [asyncio.create_task(lab.ask(stream=True)) for _ in range(20)]
    await lab.eventually(lambda: len(a.seen) == 20)
    await lab.settle(replicas(b, (a, "terminating"), name=name) if gone == "terminating" else replicas(b, name=name))
    assert await lab.count(40) == {"b": 40}
    assert not any(stream.done() for stream in streams), "the test was too slow to say anything"
    answers = await asyncio.gather(*streams)
    assert [each.body.count(b"data: ") for each in answers] == [61] * 20
    assert all(each.body.endswith(b"data: [DONE]\n\n") for each in answers)
    assert len(a.seen) == 20


async def test_a_rollout_under_load_cuts_and_fails_nothing(lab, upstream):
    """Each replica is replaced by a new one, a stream per 10 ms meanwhile: new first, then the old one terminates."""
    current = [await upstream(f"old-{number}", chunks=20, chunk_gap=0.01) for number in range(3)]
    await lab.settle(replicas(*current, name="rollout"))
    streams = []
    over = asyncio.Event()

    async def ask():
        while not over.is_set():
            streams.append(asyncio.create_task(lab.ask(stream=True)))
            await asyncio.sleep(0.01)

    asking = asyncio.create_task(ask())
    for number in range(3):
        old = current.pop(0)
        current.append(await upstream(f"new-{number}", chunks=20, chunk_gap=0.01))
        await lab.settle(replicas(old, *current, name="rollout"))
        await lab.settle(replicas((old, "terminating"), *current, name="rollout"))
        taken = len(old.seen)
        await asyncio.sleep(0.3)
        assert len(old.seen) <= taken + 1, "at most what was under way"
        await lab.settle(replicas(*current, name="rollout"))
    over.set()
    await asking
    answers = await asyncio.gather(*streams)
    whole = sum(each.status == 200 and each.body.endswith(b"data: [DONE]\n\n") for each in answers)
    print(f"{whole} of {len(answers)} streams arrived whole during the roll-out of three replicas")
    assert whole == len(answers) > 60


async def test_a_replica_that_fails_is_ejected_and_comes_back(lab, upstream):
    a, b, bad = await upstream("a"), await upstream("b"), await upstream("bad", fault="503")
    await lab.settle(replicas(a, b, bad, name="ejected"))
    began = time.monotonic()
    found: Counter = Counter()
    while found[503] < 3:
        found += await lab.count(1)
    await lab.eventually(lambda: quiet(lab, bad), seconds=5)
    sent = len(bad.seen)
    assert set(await lab.count(60)) == {"a", "b"}
    assert len(bad.seen) == sent <= 6
    bad.fault = ""
    await lab.eventually(lambda: came(lab, bad, sent), seconds=30)
    print(f"ejected after {sent} failures, back {time.monotonic() - began:.0f} s after the first")


async def quiet(lab, upstream):
    before = len(upstream.seen)
    await lab.count(20)
    return len(upstream.seen) == before


async def came(lab, upstream, before):
    await lab.ask()
    return len(upstream.seen) > before


async def test_a_new_replica_comes_to_its_share_slowly(lab, upstream):
    a, b = await upstream("a"), await upstream("b")
    await lab.settle(replicas(a, name="slow"))
    await asyncio.sleep(SLOW_START_SECONDS)  # until the first one has its full share
    await lab.settle(replicas(a, b, name="slow"))
    early = await lab.count(200)
    await asyncio.sleep(SLOW_START_SECONDS)
    late = await lab.count(200)
    print(f"share of the new replica: {early['b'] / 2:.0f}% at first, {late['b'] / 2:.0f}% later")
    assert early["b"] < 60
    assert 70 <= late["b"] <= 130


class Patient:
    """An engine that never closes a connection itself, and notes how long one stayed open after its last answer."""

    def __init__(self):
        self.idle = asyncio.get_running_loop().create_future()

    async def start(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def _serve(self, reader, writer):
        answered = None
        while head := await self._head(reader):
            length = re.search(rb"(?i)content-length: (\d+)", head)
            await reader.readexactly(int(length[1]) if length is not None else 0)
            body = b'{"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}'
            kind = b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
            writer.write(b"HTTP/1.1 200 OK\r\n" + kind + body)
            await writer.drain()
            answered = time.monotonic()
        if answered is not None and not self.idle.done():
            self.idle.set_result(time.monotonic() - answered)
        writer.close()

    @staticmethod
    async def _head(reader):
        try:
            return await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return b""

    async def stop(self):
        self._server.close()


@pytest.mark.parametrize("saturates", [False, True])
async def test_an_idle_connection_is_closed_before_engines_close_it(lab, saturates):
    """After five seconds they do, also under the next request."""
    engine = await Patient().start()
    when = ["ConnectFailure", "Saturated"] if saturates else ["ConnectFailure"]
    entry = {"name": "all", "tiers": [{"name": "kept"}, {"name": "other"}], "fallback": {"when": when, "attempts": 2}}
    made = world([in_cluster("kept"), in_cluster("other")], [policy(classes=[entry])], {"legal/kept": [engine.port]})
    await lab.settle(made)
    answer = await lab.ask()
    assert answer.status == 200
    try:
        assert 3.0 < await asyncio.wait_for(engine.idle, 8) < 4.9
    finally:
        await engine.stop()
