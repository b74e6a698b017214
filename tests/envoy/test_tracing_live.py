"""Request ids and spans: what a collector receives, and what tiers continue."""

import asyncio
import contextlib
import dataclasses
import json
import re
import struct
import uuid
from dataclasses import dataclass, field

import grpc
import pytest
from envoy_lab import Lab, external, free_port, in_cluster, policy, world

from tierwise.render.envoy import bootstrap
from tierwise.render.envoy.options import Tracing

pytestmark = pytest.mark.asyncio(loop_scope="module")

UUID = re.compile(r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")


def fields(data: bytes):
    """(number, value) of a protobuf message: integers, and bytes for everything with a length."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if not byte & 0x80:
                return value

    while at < len(data):
        number, kind = divmod(varint(), 8)
        if kind == 0:
            yield number, varint()
        elif kind == 1:
            yield number, struct.unpack_from("<Q", data, at)[0]
            at += 8
        elif kind == 2:
            length = varint()
            yield number, data[at : at + length]
            at += length
        else:
            assert kind == 5, kind
            yield number, struct.unpack_from("<I", data, at)[0]
            at += 4


def first(data: bytes, number: int, default=b""):
    return next((value for found, value in fields(data) if found == number), default)


def repeated(data: bytes, number: int) -> list[bytes]:
    return [value for found, value in fields(data) if found == number]


def attributes(data: bytes, number: int) -> dict:
    found = {}
    for entry in repeated(data, number):
        ((kind, value),) = fields(first(entry, 2))
        found[first(entry, 1).decode()] = value.decode() if kind == 1 else value
    return found


@dataclass
class Span:
    trace: str
    id: str
    parent: str
    name: str
    attributes: dict


@dataclass
class Collector:
    """Takes OTLP over gRPC, as a collector does."""

    raw: list[bytes] = field(default_factory=list)

    async def start(self) -> int:
        self.server = grpc.aio.server()

        async def export(request: bytes, _context) -> bytes:
            self.raw.append(request)
            return b""

        service = "opentelemetry.proto.collector.trace.v1.TraceService"
        handler = grpc.unary_unary_rpc_method_handler(export)
        self.server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {"Export": handler}),))
        port = self.server.add_insecure_port("127.0.0.1:0")
        await self.server.start()
        return port

    @property
    def resources(self) -> list[dict]:
        return [attributes(first(spans, 1), 1) for each in self.raw for spans in repeated(each, 1)]

    @property
    def spans(self) -> list[Span]:
        return [
            Span(
                first(span, 1).hex(),
                first(span, 2).hex(),
                first(span, 4).hex(),
                first(span, 5).decode(),
                attributes(span, 9),
            )
            for request in self.raw
            for of_resource in repeated(request, 1)
            for of_scope in repeated(of_resource, 2)
            for span in repeated(of_scope, 2)
        ]


class Prompt(Lab):
    """Its Envoy hands over spans at once, not every five seconds."""

    def start_files(self, name, **given):
        folder = super().start_files(name, **given)
        file = folder / bootstrap.BOOTSTRAP_FILE
        config = json.loads(file.read_text())
        layer = {"name": "test", "static_layer": {"tracing.opentelemetry.flush_interval_ms": 100}}
        config["layered_runtime"]["layers"].insert(0, layer)
        file.write_text(json.dumps(config))
        return folder


@contextlib.asynccontextmanager
async def traced(tmp_path, percent=100.0):
    collector = Collector()
    port = await collector.start()
    lab = Prompt(tmp_path, tracing=Tracing("127.0.0.1", port, percent))
    try:
        yield await lab.start(), collector
    finally:
        await lab.stop()
        await collector.server.stop(0)


def one(port, **more):
    classes = [{"name": "all", "tiers": [{"name": "compact"}]}]
    return world([in_cluster()], [policy(classes=classes)], {"legal/compact": [port]}, **more)


def two(a, b):
    tiers = [{"name": "compact", "weight": 100}, {"name": "large", "weight": 0}]
    classes = [{"name": "all", "tiers": tiers, "fallback": {"attempts": 2, "when": ["ServerError"]}}]
    ports = {"legal/compact": [a.port], "legal/large": [b.port]}
    return world([in_cluster(), in_cluster("large")], [policy(classes=classes)], ports)


def lines(lab) -> list[dict]:
    """The access log: every line of it that is no message of Envoy's own has to be JSON."""
    return [json.loads(line) for line in lab.log().splitlines() if line and not line.startswith("[20")]


async def logged(lab, number: int, since: int) -> list[dict]:
    """As many lines as there were requests since then; it is written out ten times a second."""
    await lab.eventually(lambda: len(lines(lab)) >= since + number)
    return lines(lab)[since:]


async def settled(lab, new) -> int:
    """Serve it; lines of the log until now."""
    await lab.settle(new)
    await asyncio.sleep(0.3)
    return len(lines(lab))


PROMPT = "a prompt that nobody else shall read"


@pytest.mark.parametrize("stream", [False, True])
async def test_spans_tell_model_tier_and_tokens_and_tiers_continue_them(tmp_path, upstream, stream):
    a, b = await upstream("a", fault="503"), await upstream("b")
    async with traced(tmp_path) as (lab, collector):
        await lab.settle(two(a, b))
        trace, parent = "ab" * 16, "cd" * 8
        answer = await lab.ask(
            path="/v1/chat/completions?key=in-the-query",
            headers={"traceparent": f"00-{trace}-{parent}-01"},
            stream=stream,
            messages=[{"role": "user", "content": PROMPT}],
        )
        assert answer.status == 200
        await lab.eventually(lambda: len(collector.spans) == 3, seconds=15)
        server = next(span for span in collector.spans if span.parent == parent)
        attempts = {s.attributes["tierwise.tier"]: s for s in collector.spans if s.parent == server.id}
        assert {span.trace for span in collector.spans} == {trace}
        # Each tier continues the span of its own attempt.
        for each, tier in ((a, "compact"), (b, "large")):
            assert each.seen[-1].headers["traceparent"] == f"00-{trace}-{attempts[tier].id}-01"
        assert server.name == "chat legal/assistant"
        assert (attempts["compact"].name, attempts["large"].name) == ("chat compact", "chat large")
        expected = {
            "gen_ai.operation.name": "chat",
            "gen_ai.request.model": "legal/assistant",
            "gen_ai.usage.input_tokens": 7,
            "gen_ai.usage.output_tokens": 3,
            "server.address": "large.legal.svc",
            "tierwise.namespace": "legal",
            "tierwise.policy": "assistant",
            "tierwise.class": "all",
            "tierwise.tier": "large",
            "tierwise.attempts": 2,
            "url.path": "/v1/chat/completions",
            "http.status_code": "200",
            "guid:x-request-id": answer.headers["x-request-id"],
        }
        assert {key: server.attributes.get(key) for key in expected} == expected
        assert attempts["compact"].attributes["http.status_code"] == "503"
        assert "gen_ai.usage.input_tokens" not in attempts["compact"].attributes
        assert collector.resources[0]["service.name"] == "tierwise-gateway"
        received = b"".join(collector.raw)
        for secret in (PROMPT, "in-the-query", '"by"'):
            assert secret.encode() not in received


async def test_a_provider_continues_the_span_of_its_attempt(tmp_path, upstream):
    """The way to it leads through a listener inside of Envoy."""
    a, x = await upstream("a", fault="503"), await upstream("x")
    async with traced(tmp_path) as (lab, collector):
        provider = external(f"http://localhost:{x.port}/v1", "large", allowPlaintext=True, clearance="Public")
        await lab.settle(dataclasses.replace(two(a, x), tiers=world([in_cluster(), provider]).tiers))
        assert (await lab.ask()).by == "x"
        await lab.eventually(lambda: len(collector.spans) == 3, seconds=15)
        (server,) = (span for span in collector.spans if span.parent == "")
        (attempt,) = (span for span in collector.spans if span.name == "chat large")
        assert x.seen[-1].headers["traceparent"] == f"00-{server.trace}-{attempt.id}-01"
        assert x.seen[-1].headers["x-request-id"] == server.attributes["guid:x-request-id"]
        assert server.attributes["server.address"] == "localhost"


async def test_what_the_gateway_answers_itself_has_a_span_too(tmp_path):
    async with traced(tmp_path) as (lab, collector):
        await lab.settle(world())
        assert (await lab.ask("no/" + "x" * 5000, path="/v1/embeddings?q=in-the-query")).status == 404
        async with lab.http.get(f"http://127.0.0.1:{lab.options.port}/{'y' * 5000}?q=in-the-query"):
            pass
        await lab.eventually(lambda: len(collector.spans) == 2, seconds=15)
        known, other = collector.spans
        assert known.name == "embeddings no/" + "x" * 253
        assert known.parent == ""
        assert other.name.startswith("_OTHER")
        assert len(other.attributes["url.path"]) == 256
        assert b"in-the-query" not in b"".join(collector.raw)


@pytest.mark.parametrize(("percent", "least", "most"), [(0.0, 0, 0), (50.0, 20, 80), (100.0, 100, 100)])
async def test_as_many_are_traced_as_is_set_whatever_ids_clients_choose(tmp_path, upstream, percent, least, most):
    up = await upstream("up")
    async with traced(tmp_path, percent) as (lab, collector):
        await lab.settle(one(up.port))
        for number in range(100):
            # Ids by which Envoy would decide, and the header by which it would be told.
            chosen = str(uuid.UUID(int=number << 96))
            await lab.ask(headers={"x-request-id": chosen, "x-client-trace-id": "1", "x-envoy-force-trace": "1"})
        # One whose caller traces, so that there is something to wait for.
        await lab.ask(headers={"traceparent": f"00-{'ab' * 16}-{'cd' * 8}-01"})
        await lab.eventually(lambda: any(span.trace == "ab" * 16 for span in collector.spans), seconds=15)
        found = {span.trace for span in collector.spans} - {"ab" * 16}
        print(f"{percent:g}%: {len(found)} of 100 requests traced")
        assert least <= len(found) <= most


async def test_a_collector_that_is_gone_costs_nobody_an_answer(tmp_path, upstream):
    up = await upstream("up")
    lab = Prompt(tmp_path, tracing=Tracing("127.0.0.1", free_port(), 100.0))
    try:
        await lab.start()
        await lab.settle(one(up.port))
        assert await lab.count(100) == {"up": 100}
    finally:
        await lab.stop()


async def test_without_tracing_traceparent_passes_through(lab, upstream):
    up = await upstream("up")
    await lab.settle(one(up.port))
    given = f"00-{'ab' * 16}-{'cd' * 8}-01"
    await lab.ask(headers={"traceparent": given})
    assert up.seen[-1].headers["traceparent"] == given
    await lab.ask()
    assert "traceparent" not in up.seen[-1].headers


@pytest.mark.parametrize("given", [str(uuid.UUID(int=1)), "req_011CaBc", 'a"b\\c{}%d', "x" * 128])
async def test_a_clients_request_id_is_kept_passed_on_and_told_back(lab, upstream, given):
    a, b = await upstream("a", fault="503"), await upstream("b")
    before = await settled(lab, two(a, b))
    answer = await lab.ask(headers={"x-request-id": given})
    assert answer.headers["x-request-id"] == given
    assert [seen.headers["x-request-id"] for up in (a, b) for seen in up.seen] == [given, given]
    refused = await lab.ask("legal/unknown", headers={"x-request-id": given})
    assert (refused.status, refused.headers["x-request-id"]) == (404, given)
    assert [line["request_id"] for line in await logged(lab, 2, before)] == [given, given]


async def test_without_one_it_is_made(lab, upstream):
    up = await upstream("up")
    await lab.settle(one(up.port))
    made = {(await lab.ask()).headers["x-request-id"] for _ in range(5)}
    assert len(made) == 5
    assert all(UUID.match(each) for each in made)
    assert {seen.headers["x-request-id"] for seen in up.seen} == made


async def test_nothing_that_a_client_sends_breaks_the_log(lab, upstream):
    """Lines stay lines of JSON, of bounded length: ids, models and paths are the client's."""
    up = await upstream("up")
    before = await settled(lab, one(up.port))
    long = await lab.ask(headers={"x-request-id": "i" * 20_000})
    assert long.headers["x-request-id"] == "i" * 128
    assert (await lab.ask("m" * 4_000)).status == 404
    assert (await lab.ask('x"}\n{"forged": 1}')).status == 404
    await lab.ask(path="/v1/" + "p" * 20_000)
    raw = b"\xff\xfe\x01\"}{'forged': 1}"
    reader, writer = await asyncio.open_connection("127.0.0.1", lab.options.port)
    writer.write(b"GET /v1/models HTTP/1.1\r\nhost: x\r\nconnection: close\r\nx-request-id: " + raw + b"\r\n\r\n")
    await reader.read()
    writer.close()
    found = await logged(lab, 5, before)
    assert len(found) == 5
    assert not any("forged" in line for line in found)
    assert all(len(json.dumps(line)) < 1500 for line in found)
