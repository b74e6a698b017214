"""Providers' limits and pauses, kept by a real Envoy before a provider has to refuse."""

import asyncio
import itertools
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import aiohttp
import pytest
from envoy_lab import Lab, external, in_cluster, policy, world

pytestmark = pytest.mark.asyncio(loop_scope="module")

FALLBACK = {"when": ["RateLimited"], "attempts": 2}


SPOOFED = {
    "x-tierwise-provider": "sales/other@provider",
    "x-tierwise-token-units": "1000000000",
    "x-tierwise-request-units": "1000000000",
    "x-tierwise-route": "nonsense",
}
NUMBERS = itertools.count()


def provider(x, a=None, *, name=None, gateways=None, fallback=FALLBACK, **spec):
    """A provider that gets all, and a tier for what it does not take, if there is one.

    What the gateway knows of a provider it knows by its tier's name: each test has a tier of its own.
    """
    name = name or f"frontier-{next(NUMBERS)}"
    listed = [{"name": name, "weight": 100}, {"name": "compact", "weight": 0}][: 1 if a is None else 2]
    classes = [{"name": "all", "tiers": listed, "fallback": fallback}]
    url = f"http://localhost:{x.port}/v1"
    tiers = [external(url, name, allowPlaintext=True, clearance="Public", **spec), in_cluster()]
    status = None
    if gateways:
        counts = {"acknowledged": gateways, "refused": 0, "hash": "x", "lastTransitionTime": "2026-11-25T12:00:00Z"}
        status = {"gateways": [{"name": "operator-0", "connected": gateways, **counts}]}
    ports = {"legal/compact": [a.port]} if a is not None else {}
    return world(tiers, [policy(classes=classes, status=status)], ports)


async def burst(lab, count, **fields):
    answers = await asyncio.gather(*(lab.ask(**fields) for _ in range(count)))
    return Counter(each.by if each.status == 200 else each.status for each in answers), answers


async def test_no_more_requests_than_the_limit_and_the_rest_goes_elsewhere(lab, upstream):
    a, x = await upstream("a"), await upstream("x")
    await lab.settle(provider(x, a, limits={"requestsPerMinute": 600}))
    # 60 at once, and 9 a second more: never more than 600 in any minute.
    began = time.monotonic()
    found: Counter = Counter()
    for _ in range(10):
        found += (await burst(lab, 20))[0]
        await asyncio.sleep(0.1)
    most = 60 + 9 * (time.monotonic() - began) + 1
    print(f"provider got {found['x']} of 200 (at most {most:.0f}), the next tier {found['a']}")
    assert sum(found.values()) == found["x"] + found["a"] == 200, "every request is answered"
    assert 60 <= len(x.seen) == found["x"] <= most


async def test_all_worker_threads_share_the_limit(tmp_path, upstream):
    several = Lab(tmp_path)
    several.workers = 4
    try:
        await several.start()
        a, x = await upstream("a"), await upstream("x")
        await several.settle(provider(x, a, limits={"requestsPerMinute": 200}))
        found: Counter = Counter()
        began = time.monotonic()
        for _ in range(12):  # connections of its own each time, so that every worker gets some
            async with aiohttp.ClientSession() as several.http:
                found += (await burst(several, 20))[0]
        most = 20 + 3 * (time.monotonic() - began) + 1
        print(f"four workers let {found['x']} of 240 through, of a bucket of 20 (at most {most:.0f})")
        assert found["x"] + found["a"] == 240
        assert 20 <= found["x"] <= most
        several.http = aiohttp.ClientSession()
    finally:
        await several.stop()


async def test_tokens_are_counted_before_they_are_spent(lab, upstream):
    a, x = await upstream("a"), await upstream("x")
    await lab.settle(provider(x, a, limits={"tokensPerMinute": 100_000}))
    # 10,000 at once. A request costs a quarter of its bytes and what it may generate.
    found, _ = await burst(lab, 10, max_tokens=3000)
    assert found == {"x": 3, "a": 7}
    await lab.settle(provider(x, a, limits={"tokensPerMinute": 100_000}))
    found, _ = await burst(lab, 10, text="x" * 16_000)
    assert found == {"x": 2, "a": 8}, "4,000 for the prompt and 512 for an answer of unknown length"
    await lab.settle(provider(x, a, limits={"tokensPerMinute": 100_000}))
    found, _ = await burst(lab, 10, text="x" * 16_000, path="/v1/embeddings")
    assert found == {"x": 2, "a": 8}, "10,000 / 4,020"
    await lab.settle(provider(x, a, limits={"tokensPerMinute": 100_000}))
    escaped = b'{"model":"legal/assistant","messages":[],"max\\u005ftokens":3000}'
    found, _ = await burst(lab, 10, body=escaped)
    assert found == {"x": 3, "a": 7}, "a key is read as the provider reads it"
    await lab.settle(provider(x, a, limits={"tokensPerMinute": 100_000}))
    assert (await lab.ask(max_tokens=10**30)).by == "x", "a request that costs more than all waits for all"
    assert (await lab.ask(max_tokens=9000)).by == "a", "what flows in meanwhile is less than that"


async def test_the_limit_is_shared_among_gateways_and_outlives_other_changes(lab, upstream):
    a, x = await upstream("a"), await upstream("x")
    same = {"gateways": 3, "limits": {"requestsPerMinute": 600}, "name": "shared"}
    await lab.settle(provider(x, a, **same))
    began = time.monotonic()

    def flow():
        """What has come into a third of the bucket since."""
        return 3 * (time.monotonic() - began) + 1

    found, _ = await burst(lab, 50)
    assert 20 <= found["x"] <= 20 + flow(), "a third of 60"
    await lab.settle(provider(x, a, fallback={**FALLBACK, "attempts": 3}, **same))
    found, _ = await burst(lab, 50)
    assert len(x.seen) <= 20 + flow(), "new routes do not fill the bucket"
    await lab.settle(provider(x, a, headers=[{"name": "x-version", "value": "2"}], **same))
    found, _ = await burst(lab, 50)
    assert len(x.seen) <= 20 + flow(), "nor do new clusters"


async def test_without_another_tier_the_client_is_told_who_held_it_back(lab, upstream):
    x = await upstream("x")
    await lab.settle(provider(x, limits={"requestsPerMinute": 10}))
    assert (await lab.ask()).by == "x"
    answer = await lab.ask()
    assert answer.status == 429
    assert 1 <= int(answer.headers["retry-after"]) <= 7
    assert answer.headers["x-tierwise-held"] == "limit"
    assert answer.headers["content-type"] == "application/json"
    error = answer.json["error"]
    assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
    assert "RoutingPolicy legal/assistant, class all, may answer (limit:" in error["message"]
    assert len(x.seen) == 1


@pytest.mark.parametrize("status", ["429", "503"])
@pytest.mark.parametrize("form", ["seconds", "date"])
async def test_a_pause_that_the_provider_asks_for_is_kept(lab, upstream, status, form):
    till = datetime.now(UTC) + timedelta(seconds=3)
    said = {"seconds": "2", "date": format_datetime(till, usegmt=True)}[form]
    a, x = await upstream("a"), await upstream("x", fault=status, fault_headers={"retry-after": said})
    await lab.settle(provider(x, a, fallback={"when": ["RateLimited", "ServerError"], "attempts": 2}))
    began = time.monotonic()
    assert (await lab.ask()).by == "a"
    x.fault = ""
    asked = 1
    while time.monotonic() - began < 1.6:
        assert (await lab.ask()).by == "a"
        asked += 1
    assert len(x.seen) == 1, "one request found out; none was sent after it"
    came_back = await lab.eventually(lambda: answers(lab, "x"), seconds=4)
    print(f"{status} {form}: 1 of {asked} requests reached the provider in its pause of {1.6 + came_back:.2f} s")
    assert (await lab.count(10)) == {"x": 10}


async def answers(lab, name):
    return (await lab.ask()).by == name


async def test_a_pause_is_told_to_a_client_that_no_other_tier_can_answer(lab, upstream):
    x = await upstream("x", fault="429", fault_headers={"retry-after": "86400"})
    await lab.settle(provider(x, fallback={"attempts": 1}))
    first = await lab.ask()
    assert (first.status, first.headers["retry-after"], first.json) == (429, "86400", {"error": {"message": "x"}})
    answer = await lab.ask()
    assert (answer.status, answer.headers["x-tierwise-held"]) == (429, "retry-after")
    assert 590 < int(answer.headers["retry-after"]) <= 600, "ten minutes at most, then it is asked again"
    assert answer.json["error"]["code"] == "rate_limit_exceeded"
    assert "RoutingPolicy legal/assistant, class all, may answer (retry-after:" in answer.json["error"]["message"]
    assert len(x.seen) == 1


@pytest.mark.parametrize("said", ["soon", "0", "-1", "Sun, 06 Nov 1994 08:49:37 GMT", ""])
async def test_words_that_ask_for_no_pause_make_none(lab, upstream, said):
    a, x = await upstream("a"), await upstream("x", fault="429", fault_headers={"retry-after": said})
    await lab.settle(provider(x, a))
    assert await lab.count(3) == {"a": 3}
    assert len(x.seen) == 3


@pytest.mark.parametrize("when", ["ConnectFailure", "ServerError", "Timeout"])
@pytest.mark.parametrize("fault", ["reset", "refused"])
async def test_a_provider_that_can_not_be_reached_falls_back_as_any_tier(lab, upstream, when, fault):
    a, x = await upstream("a"), await upstream("x", fault="reset")
    if fault == "refused":
        await x.stop()
    await lab.settle(provider(x, a, fallback={"when": [when], "attempts": 2}))
    assert await lab.count(5) == {"a": 5}
    await lab.settle(provider(x, a, fallback={"when": ["RateLimited"], "attempts": 2}))
    answer = await lab.ask()
    assert answer.status == 503
    assert "RoutingPolicy legal/assistant, class all" in answer.json["error"]["message"]


@pytest.mark.parametrize("path", ["chat/completions", "completions", "embeddings", "responses"])
async def test_every_endpoint_reaches_a_provider(lab, upstream, path):
    x = await upstream("x")
    await lab.settle(provider(x, limits={"tokensPerMinute": 1_000_000}))
    answer = await lab.ask(path=f"/v1/{path}", headers=SPOOFED)
    assert answer.by == "x"
    (seen,) = x.seen
    assert (seen.path, seen.json["model"]) == (f"/v1/{path}", "provider-large-1")
    assert [name for name in seen.headers if name.startswith(("x-tierwise", "x-forwarded"))] == []
    assert "x-envoy-internal" not in seen.headers


async def test_a_stream_through_the_relay_arrives_whole_and_ends_with_its_client(lab, upstream):
    x = await upstream("x", chunks=200, chunk_gap=0.002)
    await lab.settle(provider(x))
    answer = await lab.ask(stream=True)
    assert answer.body.count(b"data: ") == 201
    assert answer.body.endswith(b"data: [DONE]\n\n")


async def test_what_a_provider_refuses_is_counted_for_the_loop(lab, upstream):
    a, x = await upstream("a"), await upstream("x", fault="429")
    await lab.settle(provider(x, a, name="counted"))
    assert await lab.count(6) == {"a": 6}
    x.fault_headers = {"retry-after": "60"}
    assert await lab.count(4) == {"a": 4}
    assert len(x.seen) == 7, "three of the last were held back"

    async def counted():
        found = await lab.metrics()
        return sum(
            value for name, value in found.items() if "tierwise_refused" in name and 'tierwise_tier="counted"' in name
        )

    await lab.eventually(lambda: until(counted, 10))


async def until(counted, wanted):
    return await counted() == wanted


FORCED = b'"stream_options":{"include_usage":true},'


async def test_stream_options_are_taken_out_for_a_provider_that_refuses_them(lab, upstream):
    x = await upstream("x")
    model = b'"model":"legal/assistant"'
    for sent, seen in {
        b'{"a":[{"stream_options":1}],"stream":true,%s}': b'{"a":[{"stream_options":1}],"stream":true,%s}',
        b'{%s,"stream":true,"stream_options":{"include_usage":true}}': b'{%s,"stream":true}',
        b'{"stream_options" : {"x":[1,{"y":"}"}]} , "stream":true,%s}': b'{"stream":true,%s}',
        b'{%s, "stream_options": null}': b"{%s}",
        b'{%s,"messages":"\\"stream_options\\":{}"}': b'{%s,"messages":"\\"stream_options\\":{}"}',
    }.items():
        await lab.settle(provider(x, streamUsage="Always"))
        assert (await lab.ask(body=sent % model)).status == 200
        assert x.seen[-1].body == seen % b'"model":"provider-large-1"'
    await lab.settle(provider(x, limits={"tokensPerMinute": 1_000_000}))
    assert (await lab.ask(body=b'{"stream":true,%s}' % model)).status == 200
    assert x.seen[-1].body == b"{" + FORCED + b'"stream":true,"model":"provider-large-1"}'
