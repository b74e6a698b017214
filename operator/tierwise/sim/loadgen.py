"""An open-loop load generator: sends a trace to an OpenAI-compatible endpoint at its times, and measures each answer.

Open loop: a slow answer does not delay the next request. Two bounds keep it from harming whoever it measures: requests
in flight, and requests in all; what is not sent for that reason is a failed request with that reason, never left out.
"""

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import aiohttp

from tierwise.errors import TierwiseError
from tierwise.sim.outcome import Record
from tierwise.sim.traces import TraceRequest

_WORDS = ("the", "sum", "and", "how", "new", "two", "see", "all", "one", "may", "can", "day")
_TAIL_BYTES = 8192
"""End of a stream that is kept, for usage and end mark: both come last."""


class LoadError(TierwiseError):
    """A load that can not be sent as asked."""


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """Where and how to send.

    Attributes:
        url: up to and with `/v1`.
        model: name asked for.
        api_key: bearer key; None: none.
        tier_header: response header that names the tier.
        attempts_header: response header with the number of upstream attempts.
        class_header: request header that carries the class; None: the gateway tells by other means.
        headers: sent with every request.
        stream: server-sent events with usage; else one JSON body, and no time to first token.
        max_in_flight: bound on requests at one time.
        max_requests: bound on requests in all.
        timeout_seconds: for one request, whole.
        connect_timeout_seconds: for a connection.
    """

    url: str
    model: str
    api_key: str | None = None
    tier_header: str = "x-tierwise-tier"
    attempts_header: str = "x-tierwise-attempts"
    class_header: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    stream: bool = True
    max_in_flight: int = 512
    max_requests: int = 100_000
    timeout_seconds: float = 180.0
    connect_timeout_seconds: float = 5.0


def prompt_of(tokens: int, salt: int = 0) -> str:
    """A text of exactly `tokens` words of three letters: four bytes a token, as English text has on average."""
    length = len(_WORDS)
    return " ".join(_WORDS[(index * index + salt) % length] for index in range(tokens))


def body_of(request: TraceRequest, options: LoadOptions, index: int = 0) -> bytes:
    """The request's body: `max_tokens` with `ignore_eos`, as vLLM has it, sets the output's length."""
    body: dict[str, object] = {
        "model": options.model,
        "messages": [{"role": "user", "content": prompt_of(request.prompt_tokens, index)}],
        "max_tokens": request.output_tokens,
        "ignore_eos": True,
        "stream": options.stream,
    }
    if options.stream:
        body["stream_options"] = {"include_usage": True}
    return json.dumps(body, separators=(",", ":")).encode()


async def replay(
    trace: Sequence[TraceRequest],
    options: LoadOptions,
    on_record: Callable[[Record], None] | None = None,
) -> list[Record]:
    """Send a trace; returns one record per request, in the trace's order. Cancelling ends all requests.

    Raises:
        LoadError: when the trace is larger than `max_requests`.
    """
    if len(trace) > options.max_requests:
        raise LoadError(f"the trace has {len(trace)} requests, the bound is {options.max_requests}; clip or thin it")
    return await _Replay(trace, options, on_record).run()


class _Replay:
    def __init__(
        self, trace: Sequence[TraceRequest], options: LoadOptions, on_record: Callable[[Record], None] | None
    ) -> None:
        self._trace = trace
        self._options = options
        self._on_record = on_record
        self._records: dict[int, Record] = {}
        self._in_flight = 0
        self._loop = asyncio.get_running_loop()
        self._start = 0.0

    async def run(self) -> list[Record]:
        options = self._options
        headers = {"Content-Type": "application/json", **options.headers}
        if options.api_key is not None:
            headers["Authorization"] = f"Bearer {options.api_key}"
        timeout = aiohttp.ClientTimeout(total=options.timeout_seconds, sock_connect=options.connect_timeout_seconds)
        connector = aiohttp.TCPConnector(limit=options.max_in_flight)
        async with (
            aiohttp.ClientSession(connector=connector, timeout=timeout, headers=headers) as session,
            asyncio.TaskGroup() as group,
        ):
            self._start = self._loop.time()
            for index, request in enumerate(self._trace):
                delay = self._start + request.t_seconds - self._loop.time()
                if delay > 0:
                    await asyncio.sleep(delay)
                if self._in_flight >= options.max_in_flight:
                    self._note(Record(index, request.kind, request.t_seconds, error="not sent: too many in flight"))
                    continue
                self._in_flight += 1
                group.create_task(self._one(session, index, request))
        return [self._records[index] for index in range(len(self._trace))]

    def _note(self, record: Record) -> None:
        self._records[record.index] = record
        if self._on_record is not None:
            self._on_record(record)

    async def _one(self, session: aiohttp.ClientSession, index: int, request: TraceRequest) -> None:
        measured = _Measured()
        sent = self._loop.time()
        try:
            await self._send(session, index, request, measured)
        except TimeoutError:
            measured.error = "timeout"
        except aiohttp.ClientError as error:
            measured.error = type(error).__name__
        finally:
            self._in_flight -= 1
        latency = self._loop.time() - sent
        tokens = measured.completion_tokens
        gap = None
        if measured.first is not None and measured.last is not None and tokens is not None and tokens > 1:
            gap = (measured.last - measured.first) / (tokens - 1)
        self._note(
            Record(
                index=index,
                kind=request.kind,
                planned_seconds=request.t_seconds,
                sent_seconds=sent - self._start,
                status=measured.status,
                tier=measured.tier,
                ttft_seconds=None if measured.first is None else measured.first - sent,
                inter_token_seconds=gap,
                latency_seconds=latency,
                prompt_tokens=measured.prompt_tokens,
                completion_tokens=tokens,
                error=measured.error,
                response_id=measured.response_id,
                attempts=measured.attempts,
            )
        )

    async def _send(
        self, session: aiohttp.ClientSession, index: int, request: TraceRequest, measured: "_Measured"
    ) -> None:
        options = self._options
        headers = {} if options.class_header is None else {options.class_header: request.kind}
        url = f"{options.url.rstrip('/')}/chat/completions"
        async with session.post(url, data=body_of(request, options, index), headers=headers) as response:
            measured.status = response.status
            measured.tier = response.headers.get(options.tier_header)
            attempts = response.headers.get(options.attempts_header, "")
            measured.attempts = int(attempts) if attempts.isdecimal() else None
            if response.status != 200:
                await response.read()
                measured.error = f"status {response.status}"
            elif options.stream:
                async for chunk in response.content.iter_any():
                    measured.feed(chunk, self._loop.time())
                measured.end()
            else:
                measured.whole(await response.read())


@dataclass(slots=True)
class _Measured:
    """What is seen of one response while it comes in."""

    status: int = 0
    tier: str | None = None
    first: float | None = None
    last: float | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    error: str | None = None
    response_id: str | None = None
    attempts: int | None = None
    _tail: bytes = b""

    def feed(self, chunk: bytes, now: float) -> None:
        """Take in part of a stream. Only the beginning and the end are parsed: thousands of events pass a second."""
        self._tail += chunk
        if self.first is None:
            complete, _, _ = self._tail.rpartition(b"\n\n")
            if any(_has_text(event) for event in _events(complete)):
                self.first = now
        if self.first is not None:
            self.last = now
            self._tail = self._tail[-_TAIL_BYTES:]

    def end(self) -> None:
        """The stream is over: usage and end mark must be there."""
        if b"data: [DONE]" not in self._tail:
            self.error = "stream ended early"
        for event in _events(self._tail):
            self._take_usage(event)

    def whole(self, body: bytes) -> None:
        """Take in a response that is not a stream."""
        try:
            value = json.loads(body)
        except ValueError:
            self.error = "no JSON"
            return
        if isinstance(value, dict):
            self._take_usage(value)

    def _take_usage(self, value: Mapping[str, object]) -> None:
        usage = value.get("usage")
        identity = value.get("id")
        if isinstance(identity, str):
            self.response_id = identity
        if isinstance(usage, dict):
            self.prompt_tokens = usage.get("prompt_tokens")
            self.completion_tokens = usage.get("completion_tokens")
        if "error" in value:
            self.error = "error in stream"


def _events(data: bytes) -> list[dict[str, object]]:
    """The JSON objects of whole events; a first one that was cut off is skipped."""
    found = []
    for event in data.split(b"\n\n"):
        payload = event.removeprefix(b"data: ")
        if payload is event or not payload.startswith(b"{"):
            continue
        try:
            value = json.loads(payload)
        except ValueError:
            continue
        if isinstance(value, dict):
            found.append(value)
    return found


def _has_text(event: Mapping[str, object]) -> bool:
    choices = event.get("choices")
    if not isinstance(choices, list):
        return False
    for choice in choices:
        if isinstance(choice, dict):
            delta = choice.get("delta")
            if choice.get("text") or (isinstance(delta, dict) and (delta.get("content") or delta.get("reasoning"))):
                return True
    return False
