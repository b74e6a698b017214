"""Requests of a simulated month on real connections: a stub of upstreams, and a client that adds up for itself.

Both are plain protocols, since most of the processor shall be the gateway's. A request's `user` field tells the stub
what to answer; the stub and the client each write down what they saw, and neither knows the ledger.
"""

import asyncio
import json
import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime

MARK = re.compile(rb'"user": ?"(\d+)\.(\d+)\.(\d+)\.([a-z]*)"')
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
STATUS = re.compile(rb"HTTP/1\.1 (\d+)")
PATIENCE_SECONDS = 20.0
EVENTS = 3
"""Events of a stream before the one with its usage."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One request.

    Attributes:
        kind: class, by its header. caller: consumer.
        prompt, cached, completion: tokens that whoever answers reports; cached ones are part of the prompt.
        fate: "" for an answer in one piece, "s" for a stream, "f" when `FAILING` answers 503.
    """

    kind: str
    caller: str
    prompt: int
    cached: int
    completion: int
    fate: str = ""


@dataclass(slots=True)
class Tokens:
    """Sums."""

    requests: int = 0
    prompt: int = 0
    cached: int = 0
    completion: int = 0

    def add(self, prompt: int, cached: int, completion: int) -> None:
        self.requests += 1
        self.prompt += prompt
        self.cached += cached
        self.completion += completion


FAILING = "frontier"
"""The tier that answers 503 to some."""


class Stub:
    """Answers for one tier, on as many ports as it may have replicas; keeps its own log."""

    def __init__(self, tier: str) -> None:
        self.tier = tier
        self.log = Tokens()
        self.failed = 0
        self.ports: list[int] = []
        self._servers: list[asyncio.Server] = []

    async def start(self, replicas: int = 1) -> "Stub":
        loop = asyncio.get_running_loop()
        for _ in range(replicas):
            server = await loop.create_server(lambda: _Answers(self), "127.0.0.1", 0)
            self._servers.append(server)
            self.ports.append(server.sockets[0].getsockname()[1])
        return self

    async def stop(self) -> None:
        for server in self._servers:
            server.close()


class _Answers(asyncio.Protocol):
    """One connection of the gateway."""

    def __init__(self, stub: Stub) -> None:
        self.stub = stub
        self.held = bytearray()

    def connection_made(self, transport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.held += data
        while (end := self._end()) is not None:
            request = bytes(self.held[:end])
            del self.held[:end]
            self.transport.write(self._answer(request))

    def _end(self) -> int | None:
        """Where the first request in hand ends; None: not here yet."""
        head = self.held.find(b"\r\n\r\n")
        if head < 0:
            return None
        length = LENGTH.search(self.held, 0, head)
        if length is not None:
            end = head + 4 + int(length[1])
            return end if len(self.held) >= end else None
        last = self.held.find(b"\r\n0\r\n\r\n", head)
        return last + 7 if last >= 0 else None

    def _answer(self, request: bytes) -> bytes:
        mark = MARK.search(request)
        if mark is None:
            return b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n"
        prompt, cached, completion = int(mark[1]), int(mark[2]), int(mark[3])
        fate = mark[4].decode()
        if fate == "f" and self.stub.tier == FAILING:
            self.stub.failed += 1
            return b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n"
        self.stub.log.add(prompt, cached, completion)
        usage = {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": cached},
        }
        if fate == "s":
            event = b'data: {"choices":[{"index":0,"delta":{"content":"one two three"}}]}\n\n'
            text = EVENTS * event + b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\n"
            text += b"data: [DONE]\n\n"
            return (
                b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
                + f"{len(text):x}\r\n".encode()
                + text
                + b"\r\n0\r\n\r\n"
            )
        body = json.dumps({"object": "chat.completion", "choices": [], "usage": usage}).encode()
        return (b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)) + body


@dataclass(slots=True)
class Refusal:
    """A 429 that does not say what it must."""

    body: str
    headers: dict[str, str]


@dataclass(slots=True)
class Seen:
    """What clients saw of some requests.

    Attributes:
        by_tier: tokens that answers reported, by the tier that they name.
        by_caller: the same by (class, tier, consumer).
        statuses: how often.
        refused: error code of a 429 -> how often; `mute`: those that lack the budget or when it resets.
        kept_out: prompt and completion tokens of refused requests, by class.
    """

    by_tier: dict[str, Tokens] = field(default_factory=lambda: defaultdict(Tokens))
    by_caller: dict[tuple[str, str, str], Tokens] = field(default_factory=lambda: defaultdict(Tokens))
    statuses: Counter = field(default_factory=Counter)
    refused: Counter = field(default_factory=Counter)
    mute: list[Refusal] = field(default_factory=list)
    kept_out: dict[str, Tokens] = field(default_factory=lambda: defaultdict(Tokens))
    lost: int = 0
    """Requests whose connection broke."""


class Clients:
    """Callers with their own connections, kept open; each is somewhere among the gateways that share the port."""

    def __init__(self, port: int, keys: dict[str, str], budget: str, connections: int = 12) -> None:
        self._port = port
        self._keys = keys
        self._budget = budget
        self._places: list[tuple[asyncio.StreamReader, asyncio.StreamWriter] | None] = [None] * connections

    async def send(self, asks: list[Ask], resets: str, into: Seen) -> None:
        """All of them, as fast as the connections carry them; `resets`: when the budget's period ends."""
        if not asks:
            return
        left = iter(asks)
        await asyncio.gather(
            *(self._work(place, left, resets, into) for place in range(min(len(self._places), len(asks))))
        )

    async def close(self) -> None:
        for place in self._places:
            if place is not None:
                place[1].close()

    async def reconnect(self) -> None:
        """Drop every connection, so that a gateway that is new gets its part of them."""
        await self.close()
        self._places = [None] * len(self._places)

    async def _work(self, place: int, left, resets: str, into: Seen) -> None:
        for ask in left:
            async with asyncio.timeout(PATIENCE_SECONDS):
                await self._one(place, ask, resets, into)

    async def _one(self, place: int, ask: Ask, resets: str, into: Seen) -> None:
        request = self._request(ask)
        for attempt in range(3):
            held = self._places[place]
            try:
                if held is None:
                    held = self._places[place] = await asyncio.open_connection("127.0.0.1", self._port)
                held[1].write(request)
                head, body = await _response(held[0])
            except (ConnectionError, asyncio.IncompleteReadError):
                # An idle connection that its gateway closed has carried nothing; it is no lost request.
                self._places[place] = None
                if attempt == 2:
                    into.lost += 1
                continue
            self._count(ask, head, body, resets, into)
            return

    def _request(self, ask: Ask) -> bytes:
        body = (
            b'{"model": "assistant", "max_tokens": %d, "user": "%d.%d.%d.%s", %s'
            b'"messages": [{"role": "user", "content": "%s"}]}'
            % (
                ask.completion * 5 // 4 + 16,
                ask.prompt,
                ask.cached,
                ask.completion,
                ask.fate.encode(),
                b'"stream": true, "stream_options": {"include_usage": true}, ' if ask.fate == "s" else b"",
                b"x" * (4 * ask.prompt),
            )
        )
        return (
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: gateway\r\ncontent-type: application/json\r\n"
            b"authorization: Bearer %s\r\nx-class: %s\r\ncontent-length: %d\r\n\r\n"
            % (self._keys[ask.caller].encode(), ask.kind.encode(), len(body))
        ) + body

    def _count(self, ask: Ask, head: dict[str, str], body: bytes, resets: str, into: Seen) -> None:
        status = int(head[":status"])
        into.statuses[status] += 1
        if status == 429:
            self._refusal(ask, head, body, resets, into)
        if status != 200:
            return
        if head["content-type"].startswith("text/event-stream"):
            events = [line[6:] for line in body.split(b"\n") if line.startswith(b"data: {")]
            usage = json.loads(events[-1])["usage"]
        else:
            usage = json.loads(body)["usage"]
        tier = head["x-tierwise-tier"]
        found = usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"], usage["completion_tokens"]
        into.by_tier[tier].add(*found)
        into.by_caller[ask.kind, tier, ask.caller].add(*found)

    def _refusal(self, ask: Ask, head: dict[str, str], body: bytes, resets: str, into: Seen) -> None:
        into.kept_out[ask.kind].add(ask.prompt, ask.cached, ask.completion)
        try:
            error = json.loads(body)["error"]
            code, text = error["code"], error["message"]
        except (ValueError, KeyError, TypeError):
            code, text = "unreadable", ""
        into.refused[code] += 1
        if self._budget not in text or resets not in text or not _when(head.get("retry-after", "")):
            into.mute.append(Refusal(body.decode(errors="replace")[:500], head))


def _when(text: str) -> bool:
    """Whether a Retry-After can be understood."""
    if text.isdigit():
        return True
    try:
        return parsedate_to_datetime(text) is not None
    except (TypeError, ValueError):
        return False


async def _response(reader: asyncio.StreamReader) -> tuple[dict[str, str], bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    first, *lines = head[:-4].split(b"\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.decode().partition(":") for line in lines)}
    status = STATUS.match(first)
    assert status is not None, first
    headers[":status"] = status[1].decode()
    if "content-length" in headers:
        return headers, await reader.readexactly(int(headers["content-length"]))
    body = b""
    while headers.get("transfer-encoding") == "chunked":
        size = int(await reader.readuntil(b"\r\n"), 16)
        chunk = await reader.readexactly(size + 2)
        if size == 0:
            break
        body += chunk[:-2]
    return headers, body
