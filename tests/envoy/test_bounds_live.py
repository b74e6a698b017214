"""Bounds of what upstreams do not report, one stream at a time: what stands in it, how it is cut, and who leaves."""

import asyncio
import contextlib
import json
from collections import Counter

import aiohttp
import pytest
import pytest_asyncio
from accounting_lab import Scripted, counted
from envoy_lab import external, in_cluster, policy, world

pytestmark = pytest.mark.asyncio(loop_scope="module")


def events(*texts, key="content"):
    """A stream of chat events as raw JSON texts, the quotes not included."""
    frame = '{"id":"chatcmpl-1","object":"chunk","choices":[{"index":0,"delta":{"%s":"%s"},"finish_reason":null}]}'
    return "".join(f"data: {frame % (key, text)}\n\n" for text in texts)


# What stands in the stream, and the most tokens that it can be: bytes of text, and events that have none.
STREAMS = {
    "events without text": (events("a", "", "", "bc"), 5),
    "reasoning": (events("abcdef", key="reasoning_content"), 6),
    "a key that nobody knows": (events("abcdef", "xy", key="thinking"), 8),
    "UTF-8": (events("ü", "中", "🚀"), 9),
    "escapes": (events(r"\n", r"\"\"", r"\u00fc", r"\ud83d\ude80"), 1 + 2 + 3 + 6),
    "escaped backslashes": (events(r"\\u0041\\u0041", r"\\\\", r"\\\u0041"), 12 + 2 + 4),
    "a new frame": (events("abc") + events("defg", key="refusal") + events("hi"), 9),
    "two choices in an event": ('data: {"choices":[{"delta":{"content":"abc"}},{"delta":{"content":"de"}}]}\n\n', 5),
    "spaces, CRLF, comments": (': ping\r\n\r\nevent: x\r\ndata: {"delta" : { "content" : "abc" } }\r\n\r\n', 3),
    "a tool's arguments": (
        r'data: {"choices":[{"delta":{"tool_calls":[{"id":"call_1","type":"function","function":'
        r'{"name":"find","arguments":"{\"a\":1}"}}]}}]}' + "\n\n",
        4 + 7,
    ),
    "no end of the line": ('data: {"delta":"abcd"}', 4),
    "no end of the text": ('data: {"delta":"abcd', 4),
}


@pytest_asyncio.fixture(loop_scope="module")
async def scripted(lab):
    upstream = await Scripted().start()
    rule = policy("scripted", models=["scripted"], classes=[{"name": "all", "tiers": [{"name": "compact"}]}])
    await lab.settle(world([in_cluster()], [rule], {"legal/compact": [upstream.port]}))
    yield upstream
    await upstream.stop()


async def added(lab, name, reason, ask):
    """By how much one request raises a counter."""

    async def now(name, reason=""):
        series = await counted(lab)
        return sum(
            n for who, of in series.items() for key, n in of.items() if who[1] == "scripted" and key == (name, reason)
        )

    before, ended = await now(name, reason), await now("requests")
    await ask()

    async def over():
        return await now("requests") == ended + 1

    await lab.eventually(over)
    return await now(name, reason) - before


@pytest.mark.parametrize("size", [1_000_000, 40, 7])
@pytest.mark.parametrize("name", STREAMS)
async def test_a_stream_is_bounded_by_its_text_however_it_is_cut(lab, scripted, name, size):
    text, tokens = STREAMS[name]
    raw = text.encode()
    scripted.pieces = [raw[at : at + size] for at in range(0, len(raw), size)]

    async def ask():
        assert (await lab.ask("legal/scripted", stream=True)).body == raw

    assert await added(lab, "estimated_completion_tokens", "unreported", ask) == tokens


@pytest.mark.parametrize("size", [1 << 20, 16_384])
async def test_an_event_that_is_too_long_to_keep_counts_by_its_bytes(lab, scripted, size):
    raw = events("x" * 300_000, "y").encode()
    scripted.pieces = [raw[at : at + size] for at in range(0, len(raw), size)]
    bound = await added(
        lab, "estimated_completion_tokens", "unreported", lambda: lab.ask("legal/scripted", stream=True)
    )
    assert 300_001 <= bound <= len(raw)


async def test_usage_is_found_in_a_long_last_event(lab, scripted):
    response = {"output": ["x" * 500_000], "usage": {"input_tokens": 1, "output_tokens": 4321}}
    raw = f"data: {json.dumps({'type': 'response.completed', 'response': response})}\n\n".encode()
    scripted.pieces = [raw[at : at + 16_384] for at in range(0, len(raw), 16_384)]

    async def ask():
        await lab.ask("legal/scripted", path="/v1/responses", stream=True)

    assert await added(lab, "completion_tokens", "", ask) == 4321


@pytest.mark.parametrize(("events_seen", "choices", "limit"), [(0, 1, None), (10, 1, None), (40, 3, None), (40, 3, 20)])
async def test_a_stream_that_is_left_allows_for_tokens_in_flight(lab, scripted, events_seen, choices, limit):
    scripted.pieces, scripted.hold = [events("x").encode()] * events_seen, True
    asked = {"stream": True, "n": choices} | ({"max_tokens": limit} if limit else {})

    async def ask():
        url = f"http://127.0.0.1:{lab.options.port}/v1/chat/completions"
        async with lab.http.post(url, json={"model": "legal/scripted", "messages": [], **asked}) as response:
            seen = 0
            while seen < events_seen:
                seen += (await response.content.readany()).count(b"data: ")
            response.close()

    bound = await added(lab, "estimated_completion_tokens", "aborted", ask)
    if limit:
        assert bound == limit * choices
    else:
        most = events_seen + 64 * choices
        assert most <= bound <= most * 1.125 + 1


async def test_running_usage_of_a_stream_that_is_left_is_not_the_whole(lab, scripted):
    """Some upstreams report in every event what came so far."""
    event = {"choices": [{"delta": {"content": "x"}}], "usage": {"prompt_tokens": 5, "completion_tokens": 1}}
    scripted.pieces, scripted.hold = [f"data: {json.dumps(event)}\n\n".encode()], True

    async def leave():
        url = f"http://127.0.0.1:{lab.options.port}/v1/chat/completions"
        async with lab.http.post(url, json={"model": "legal/scripted", "messages": [], "stream": True}) as response:
            await response.content.readany()
            response.close()

    assert await added(lab, "estimated_completion_tokens", "aborted", leave) >= 64
    assert await added(lab, "estimated_prompt_tokens", "aborted", leave) == 0
    scripted.hold = False

    async def stay():
        await lab.ask("legal/scripted", stream=True)

    for reason in ("aborted", "unreported"):
        assert await added(lab, "estimated_completion_tokens", reason, stay) == 0


async def test_the_bounds_travel_with_the_request_and_reach_no_tier(lab):
    """Envoy's log of an attempt sees the request's headers only: theirs have names that HTTP/1.1 does not send."""
    heads = []

    async def answer(reader, writer):
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    rule = policy("scripted", models=["scripted"], classes=[{"name": "all", "tiers": [{"name": "compact"}]}])
    await lab.settle(world([in_cluster()], [rule], {"legal/compact": [port]}))

    async def ask():
        assert (await lab.ask("legal/scripted", max_tokens=1)).status == 200

    assert await added(lab, "estimated_completion_tokens", "unreported", ask) == 1
    names = [line.split(b":")[0].lower() for line in heads[0].split(b"\r\n")[1:] if line]
    assert b"" not in names
    assert not [name for name in names if b"tierwise" in name], names
    server.close()


async def test_a_limit_that_nothing_can_generate_is_no_bound(lab, scripted):
    """One request with a made-up number must not empty a budget."""
    scripted.pieces, scripted.hold = [], True

    async def leave():
        url = f"http://127.0.0.1:{lab.options.port}/v1/chat/completions"
        body = {"model": "legal/scripted", "messages": [], "n": 1_000_000, "max_tokens": 10**15, "stream": True}
        async with lab.http.post(url, json=body) as response:
            response.close()

    assert 0 < await added(lab, "estimated_completion_tokens", "aborted", leave) < 20_000


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("outside", [False, True])
async def test_what_a_class_has_no_time_for_counts_once(lab, scripted, begun, outside):
    """Envoy ends the request, before an answer or in the middle of one. The class's limit bounds what it can cost."""
    url = f"http://127.0.0.1:{scripted.port}/v1"
    tier = external(url, name="compact", allowPlaintext=True) if outside else in_cluster()
    kind = {"name": "all", "tiers": [{"name": "compact"}], "limits": {"timeout": "1s", "maxOutputTokens": 50}}
    rule = policy("scripted", models=["scripted"], classes=[kind])
    await lab.settle(world([tier], [rule], {"legal/compact": [scripted.port]}))
    scripted.pieces, scripted.hold, scripted.silent = [events("abc").encode()], True, not begun

    async def now():
        series = await counted(lab)
        return Counter(
            {key: n for who, of in series.items() if who[1] == "scripted" for key, n in of.items() if key[1]}
        )

    before = await now()

    async def ask():
        with contextlib.suppress(aiohttp.ClientPayloadError):
            assert (await lab.ask("legal/scripted", stream=True, n=2)).status == 504

    assert await added(lab, "estimated_attempts", "aborted", ask) == 1
    found = {key: n for key, n in (await now() - before).items() if key[0] != "estimated_prompt_tokens"}
    assert found == {("estimated_attempts", "aborted"): 1, ("estimated_completion_tokens", "aborted"): 100}
