"""What clients get when every attempt fails, and that nothing is tried again after the first byte."""

import asyncio
import dataclasses
import json

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web
from envoy_lab import REFUSED_PORT, Seen, Upstream, external, in_cluster, policy, world

pytestmark = pytest.mark.asyncio(loop_scope="module")

EVERYTHING = {"when": ["ConnectFailure", "ServerError", "RateLimited", "Timeout", "LowConfidence"], "timeout": "300ms"}
PAGE = b"<html><body><h1>502 Bad Gateway</h1>at internal-host-7</body></html>"


@dataclasses.dataclass
class Scripted(Upstream):
    """Answers the same to everything; `pieces` are sent one by one, and `cut` ends the connection after them."""

    status: int = 200
    headers: dict = dataclasses.field(default_factory=dict)
    pieces: tuple = ()
    cut: bool = False

    async def _answer(self, request):
        body = await request.read()
        given = {name.lower(): value for name, value in request.headers.items()}
        self.seen.append(Seen(request.path_qs, request.host, given, body))
        if self.fault == "silent":
            await asyncio.sleep(5)
        if self.fault == "reset":
            request.transport.abort()
            return web.Response()
        response = web.StreamResponse(status=self.status, headers=self.headers)
        if not self.pieces:
            response.content_length = 0
        await response.prepare(request)
        for piece in self.pieces:
            await response.write(piece)
            await asyncio.sleep(0.05)
        if self.cut:
            await asyncio.sleep(0.05)
            request.transport.abort()
        return response


@pytest_asyncio.fixture(loop_scope="module")
async def scripted(lab):  # noqa: ARG001 - upstreams end before the gateway
    made = []

    async def make(name, **fields):
        made.append(await Scripted(name, **fields).start())
        return made[-1]

    yield make
    for each in made:
        await each.stop()


def three(*ports):
    names = ("first", "second", "third")[: len(ports)]
    one = {
        "name": "all",
        "tiers": [{"name": name} for name in names],
        "fallback": {**EVERYTHING, "attempts": len(ports)},
    }
    where = {f"legal/{name}": [port] for name, port in zip(names, ports, strict=True)}
    return world([in_cluster(name) for name in names], [policy(classes=[one])], where)


def shaped(answer, status, code, kind="server_error"):
    assert answer.status == status
    assert answer.headers["content-type"] == "application/json"
    error = answer.json["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["code"], error["type"]) == (code, kind)
    assert error["message"]
    return error


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("status", "headers", "pieces", "code", "kind"),
    [
        (500, {"content-type": "text/plain"}, (b"Internal Server Error",), "upstream_error", "server_error"),
        (502, {"content-type": "text/html; charset=utf-8"}, (PAGE, PAGE), "upstream_error", "server_error"),
        (503, {"content-type": "text/event-stream"}, (b"data: x\n\n",), "upstream_error", "server_error"),
        (500, {}, (), "upstream_error", "server_error"),
        (500, {"content-type": "text/plain"}, (), "upstream_error", "server_error"),
        (
            429,
            {"content-type": "text/plain", "retry-after": "7"},
            (b"slow",),
            "rate_limit_exceeded",
            "rate_limit_error",
        ),
        (404, {"content-type": "text/html"}, (PAGE,), "upstream_error", "invalid_request_error"),
        (401, {"content-type": "text/plain"}, (b"no",), "upstream_error", "invalid_request_error"),
        (
            500,
            {"content-type": "text/html", "content-encoding": "gzip"},
            (b"\x1f\x8b\0",),
            "upstream_error",
            "server_error",
        ),
    ],
)
async def test_an_error_that_is_no_json_is_told_as_openai_would(
    lab, scripted, stream, status, headers, pieces, code, kind
):
    made = [await scripted(name, status=status, headers=headers, pieces=pieces) for name in ("a", "b", "c")]
    await lab.settle(three(*(each.port for each in made)))
    answer = await lab.ask(stream=stream)
    error = shaped(answer, status, code, kind)
    retried = status in {429, 500, 502, 503}
    assert [len(each.seen) for each in made] == ([1, 1, 1] if retried else [1, 0, 0])
    last = "third" if retried else "first"
    assert (answer.tier, answer.headers["x-tierwise-attempts"]) == (last, "3" if retried else "1")
    assert f"ier {last}" in error["message"]
    assert str(status) in error["message"]
    assert b"internal-host" not in answer.body
    assert answer.headers.get("retry-after") == headers.get("retry-after")
    assert "content-encoding" not in answer.headers


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (500, "application/json"),
        (429, "application/json; charset=utf-8"),
        (400, "application/problem+json"),
        (418, "application/JSON"),
    ],
)
async def test_json_of_the_last_tier_passes_as_it_is(lab, scripted, status, kind):
    body = b'{ "error": {"message": "too fast", "type": "requests"} , "n":1.0}'
    headers = {"content-type": kind, "retry-after": "11", "x-ratelimit-remaining-requests": "0"}
    made = [await scripted(name, status=status, headers=headers, pieces=(body,)) for name in ("a", "b")]
    await lab.settle(three(*(each.port for each in made)))
    answer = await lab.ask()
    assert (answer.status, answer.body) == (status, body)
    assert answer.headers["content-type"] == kind
    assert answer.headers["retry-after"] == "11"
    assert answer.headers["x-ratelimit-remaining-requests"] == "0"
    retried = status in {429, 500}
    assert (answer.tier, answer.headers["x-tierwise-attempts"]) == (("second", "2") if retried else ("first", "1"))


async def test_the_last_answer_counts_not_the_worst(lab, scripted):
    a = await scripted("a", status=502, headers={"content-type": "text/html"}, pieces=(PAGE,))
    b = await scripted("b", status=429, headers={"content-type": "application/json"}, pieces=(b'{"error":{}}',))
    await lab.settle(three(a.port, b.port))
    answer = await lab.ask()
    assert (answer.status, answer.body, answer.tier) == (429, b'{"error":{}}', "second")
    await lab.settle(three(b.port, a.port))
    assert shaped(await lab.ask(), 502, "upstream_error")


@pytest.mark.parametrize("stream", [False, True])
async def test_nobody_there_resets_and_silence(lab, scripted, stream):
    await lab.settle(three(REFUSED_PORT, REFUSED_PORT, REFUSED_PORT))
    answer = await lab.ask(stream=stream)
    error = shaped(answer, 503, "no_tier_available")
    assert "RoutingPolicy legal/assistant, class all" in error["message"]
    assert (answer.tier, answer.headers["x-tierwise-attempts"]) == ("third", "3")
    a, b, c = [await scripted(name, fault="reset") for name in ("a", "b", "c")]
    await lab.settle(three(a.port, b.port, c.port))
    answer = await lab.ask(stream=stream)
    shaped(answer, 503, "no_tier_available")
    assert (answer.tier, answer.headers["x-tierwise-attempts"]) == ("third", "3")
    assert [len(each.seen) for each in (a, b, c)] == [1, 1, 1]
    for each in (a, b, c):
        each.fault = "silent"
        each.seen.clear()
    answer = await lab.ask(stream=stream)
    error = shaped(answer, 504, "timeout")
    assert "RoutingPolicy legal/assistant, class all" in error["message"]
    assert (answer.tier, answer.headers["x-tierwise-attempts"]) == ("third", "3")
    assert [len(each.seen) for each in (a, b, c)] == [1, 1, 1]


async def test_providers_errors_are_told_as_those_of_tiers_in_the_cluster(lab, scripted):
    """Their answers, and those that the way to them gives in their place, come through another listener."""
    a = await scripted("a", status=502, headers={"content-type": "text/html"}, pieces=(PAGE,))

    def providers(*ports):
        made = [
            external(f"http://localhost:{port}/v1", name=name, allowPlaintext=True, clearance="Public")
            for name, port in zip(("first", "second"), ports, strict=True)
        ]
        one = {"name": "all", "tiers": [{"name": "first"}, {"name": "second"}], "fallback": EVERYTHING}
        return world(made, [policy(classes=[one])])

    await lab.settle(providers(a.port, a.port))
    answer = await lab.ask()
    shaped(answer, 502, "upstream_error")
    assert (answer.tier, answer.headers["x-tierwise-attempts"], len(a.seen)) == ("second", "2", 2)
    await lab.settle(providers(REFUSED_PORT, REFUSED_PORT))
    answer = await lab.ask()
    assert "RoutingPolicy legal/assistant, class all" in shaped(answer, 503, "no_tier_available")["message"]
    assert (answer.tier, answer.headers["x-tierwise-attempts"]) == ("second", "2")
    assert not [
        n for n in answer.headers if n.startswith("x-tierwise-") and n not in {"x-tierwise-tier", "x-tierwise-attempts"}
    ]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_cascade_delivers_the_last_answer_when_none_is_confident(lab, scripted, stream):
    doubtful = {"x-low-confidence": "true", "content-type": "text/event-stream" if stream else "application/json"}
    pieces = {
        name: tuple(f"data: {name}{n}\n\n".encode() for n in range(2)) if stream else (f'{{"by":"{name}"}}'.encode(),)
        for name in "abc"
    }
    made = [await scripted(name, headers=doubtful, pieces=pieces[name]) for name in "abc"]
    await lab.settle(three(*(each.port for each in made)))
    answer = await lab.ask(stream=stream)
    assert (answer.status, answer.tier, answer.headers["x-tierwise-attempts"]) == (200, "third", "3")
    assert answer.body == b"".join(pieces["c"])
    assert answer.headers["x-low-confidence"] == "true"
    assert [len(each.seen) for each in made] == [1, 1, 1]
    made[1].headers = {**doubtful, "x-low-confidence": "false"}
    answer = await lab.ask(stream=stream)
    assert (answer.body, answer.tier) == (b"".join(pieces["b"]), "second")


@pytest.mark.parametrize("pieces", [2, 1, 0])
async def test_nothing_is_tried_again_after_the_first_byte_of_a_stream(lab, scripted, pieces):
    """Of its body, or of its headers alone: what the client has begun to read can not be taken back."""
    sent = (b'data: {"choices":[{}]}\n\n',) * pieces
    a = await scripted("a", headers={"content-type": "text/event-stream"}, pieces=sent or (b"",), cut=True)
    b = await scripted("b", headers={"content-type": "text/event-stream"}, pieces=(b"data: b\n\n",))
    await lab.settle(three(a.port, b.port))
    url, got = f"http://127.0.0.1:{lab.options.port}/v1/chat/completions", b""
    with pytest.raises(aiohttp.ClientError):
        async with lab.http.post(url, json={"model": "legal/assistant", "stream": True}) as response:
            assert response.status == 200
            assert response.headers["x-tierwise-tier"] == "first"
            async for piece in response.content.iter_any():
                got += piece
    assert got == b"".join(sent)
    await asyncio.sleep(0.2)
    assert (len(a.seen), len(b.seen)) == (1, 0)


async def test_an_answer_in_one_piece_that_breaks_off_is_an_error_and_not_tried_again(lab, scripted):
    """The gateway holds it until its token counts are read, so that the client has seen nothing of it."""
    a = await scripted("a", headers={"content-type": "application/json"}, pieces=(b'{"choices"',), cut=True)
    b = await scripted("b", headers={"content-type": "application/json"}, pieces=(b"{}",))
    await lab.settle(three(a.port, b.port))
    answer = await lab.ask()
    shaped(answer, 503, "no_tier_available")
    assert (answer.tier, answer.headers["x-tierwise-attempts"]) == ("first", "1")
    await asyncio.sleep(0.2)
    assert (len(a.seen), len(b.seen)) == (1, 0)


async def test_answers_that_are_no_errors_are_left_alone(lab, scripted):
    a = await scripted("a", headers={"content-type": "text/plain"}, pieces=(b"plain ", b"words"))
    await lab.settle(three(a.port))
    answer = await lab.ask()
    assert (answer.status, answer.body, answer.headers["content-type"]) == (200, b"plain words", "text/plain")


async def test_the_gateways_own_refusals_are_left_alone(lab, scripted):
    a = await scripted("a", headers={"content-type": "application/json"}, pieces=(b"{}",))
    await lab.settle(three(a.port))
    for model, status, code in (("legal/x", 404, "model_not_found"), ("", 404, "model_not_found")):
        answer = await lab.ask(model)
        assert (answer.status, answer.json["error"]["code"]) == (status, code)
        assert "RoutingPolicy" in answer.json["error"]["message"]
    assert json.loads((await lab.ask(body=b"{")).body)["error"]["code"] == "invalid_json"


async def test_no_script_error_in_the_log(lab):
    await asyncio.sleep(0)
    assert "script log" not in lab.log()
