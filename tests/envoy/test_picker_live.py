"""An endpoint picker, by the contract of the Gateway API Inference Extension, chooses the replica."""

import asyncio
import dataclasses
import json
import statistics
import time

import grpc
import pytest
import pytest_asyncio
from envoy_lab import external, in_cluster, policy, world

from tierwise.render.envoy.protos import message_class

pytestmark = pytest.mark.asyncio(loop_scope="module")

REQUEST = message_class("envoy.service.ext_proc.v3.ProcessingRequest")
RESPONSE = message_class("envoy.service.ext_proc.v3.ProcessingResponse")
DESTINATION = "x-gateway-destination-endpoint"
TIMEOUT = 0.3  # seconds
CHUNK = 62_000  # bytes


class Picker:
    """As the reference implementation does: it answers the headers when it has the whole body, and gives that back.

    `fault`: "silent", "refuses" (an answer of its own), "nothing" (names no replica), "error" (ends the call), "half"
    and "half silent" (ends the call, or says no more, when it has answered the headers).
    """

    def __init__(self):
        self.choice, self.seen, self.headers, self.more, self.fault, self.changed = "", [], [], {}, "", None

    async def start(self):
        self.server = grpc.aio.server()
        handler = grpc.stream_stream_rpc_method_handler(
            self.process, request_deserializer=REQUEST.FromString, response_serializer=RESPONSE.SerializeToString
        )
        name = "envoy.service.ext_proc.v3.ExternalProcessor"
        self.server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, {"Process": handler}),))
        self.port = self.server.add_insecure_port("127.0.0.1:0")
        await self.server.start()
        return self

    async def process(self, requests, context):
        body = b""
        async for request in requests:
            if request.WhichOneof("request") == "request_headers":
                self.headers.append(
                    {one.key: one.raw_value.decode() for one in request.request_headers.headers.headers}
                )
                continue
            body += request.request_body.body
            if not request.request_body.end_of_stream:
                continue
            self.seen.append(body)
            if self.fault == "silent":
                continue
            if self.fault == "error":
                await context.abort(grpc.StatusCode.INTERNAL, "out of order")
            if self.fault == "refuses":
                refusal = RESPONSE()
                refusal.immediate_response.status.code = 429
                refusal.immediate_response.body = b"by the picker"
                yield refusal
                continue
            answer = RESPONSE()
            named = {} if self.fault == "nothing" else {DESTINATION: self.choice, "content-length": str(len(body))}
            for key, value in (named | self.more).items():
                one = answer.request_headers.response.header_mutation.set_headers.add()
                one.header.key, one.header.raw_value = key, value.encode()
            answer.request_headers.response.clear_route_cache = True
            answer.dynamic_metadata.update({"envoy.lb": {DESTINATION: self.choice}})
            yield answer
            if self.fault == "half":
                await context.abort(grpc.StatusCode.INTERNAL, "out of order")
            if self.fault == "half silent":
                continue
            given = self.changed or body
            for at_byte in range(0, len(given), CHUNK):
                back = RESPONSE()
                streamed = back.request_body.response.body_mutation.streamed_response
                streamed.body, streamed.end_of_stream = given[at_byte : at_byte + CHUNK], at_byte + CHUNK >= len(given)
                yield back


@pytest_asyncio.fixture(loop_scope="module")
async def picker(lab):  # noqa: ARG001 - the gateway ends after it
    started = await Picker().start()
    yield started
    await started.server.stop(0)


def picked(replicas, x=None, *, mode="FailClose", weights=(100, 0), clearance="Restricted", **more):
    """Tier compact has a picker (none with mode ""), tier frontier, if any, is external."""
    ref = {"endpointPickerRef": {"name": "epp", "failureMode": mode, "timeout": f"{TIMEOUT}s"}} if mode else {}
    inside = {"engine": "VLLM", "image": "vllm/vllm-openai:v0.24.0", "replicas": {"min": 1, "max": 4}, **ref}
    listed = [{"name": "compact", "weight": weights[0]}, {"name": "frontier", "weight": weights[1]}]
    tiers = [in_cluster(inCluster=inside, clearance=clearance)]
    if x is not None:
        tiers.append(external(f"http://localhost:{x.port}/v1", allowPlaintext=True, clearance="Public"))
    classes = [{"name": "all", "tiers": listed if x is not None else [{"name": "compact"}], **more}]
    return world(tiers, [policy(classes=classes)], {"legal/compact": [each.port for each in replicas]})


def at(port):
    """The picker's name is one of the cluster's DNS: here it is a port on loopback."""

    def change(config):
        cluster = config.namespaces["legal"].clusters["legal/compact@picker"]
        address = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]["address"]["socket_address"]
        assert address == {"address": "epp.legal.svc.cluster.local", "port_value": 9002}
        address |= {"address": "127.0.0.1", "port_value": port}
        return config

    return change


@pytest.mark.parametrize("mode", ["FailOpen", "FailClose"])
async def test_the_replica_that_it_names_takes_the_request(lab, upstream, picker, mode):
    replicas = [await upstream(name) for name in "abc"]
    await lab.settle(picked(replicas, mode=mode), at(picker.port))
    for chosen in (*replicas, replicas[1]):
        picker.choice = f"127.0.0.1:{chosen.port}"
        spoofed = {DESTINATION: "127.0.0.1:1", "x-tierwise-picker": "other/x@picker", "authorization": "Bearer mine"}
        assert await lab.count(10, headers=spoofed) == {chosen.name: 10}
    assert json.loads(picker.seen[0]) == {"model": "qwen3-8b", "messages": []}, "it sees what the replica will"
    assert picker.headers[0][":path"] == "/v1/chat/completions"
    assert not [name for name in picker.headers[0] if name.startswith(("x-tierwise", "x-gateway", "authorization"))]
    seen = replicas[1].seen[0]
    assert (seen.path, seen.host) == ("/v1/chat/completions", "compact.legal.svc")
    assert not [name for name in seen.headers if name.startswith(("x-tierwise", "x-gateway"))]
    large = await lab.ask(text="x" * (2 << 20))
    assert large.by == "b"
    assert len(picker.seen[-1]) > 2 << 20


async def test_a_stream_may_last_longer_than_the_picker_may_take(lab, upstream, picker):
    a = await upstream("a", chunk_gap=TIMEOUT / 2, chunks=6)
    picker.choice = f"127.0.0.1:{a.port}"
    await lab.settle(picked([a]), at(picker.port))
    began = time.monotonic()
    answer = await lab.ask(stream=True)
    assert time.monotonic() - began > 2 * TIMEOUT
    assert (answer.tier, answer.body.count(b"data: "), answer.body.endswith(b"data: [DONE]\n\n")) == (
        "compact",
        7,
        True,
    )
    a.fault = "slow"
    began = time.monotonic()
    assert (await lab.ask()).by == "a"
    assert time.monotonic() - began > 10 * TIMEOUT, "nor has the replica to begin its answer in that time"


async def test_it_chooses_a_replica_and_nothing_else(lab, upstream, picker):
    a, x = await upstream("a"), await upstream("x")
    picker.more = {
        "x-tierwise-pick": "legal/frontier@provider",
        "x-tierwise-provider": "legal/frontier@provider",
        "authorization": "Bearer stolen",
    }
    for mode in ("FailOpen", "FailClose"):
        picker.choice = f"127.0.0.1:{x.port}"  # is no replica of the tier
        await lab.settle(picked([a], x, mode=mode), at(picker.port))
        assert await lab.count(10) == {"a": 10}
        picker.choice = f"127.0.0.1:{a.port},127.0.0.1:{x.port}"
        assert await lab.count(10) == {"a": 10}
    assert "authorization" not in a.seen[0].headers
    assert not x.seen
    picker.changed = b'{"model":"an-adapter","messages":[]}'
    assert (await lab.ask()).by == "a"
    assert a.seen[-1].json["model"] == "an-adapter", "as inference extensions name adapters"


FAULTS = ["down", "silent", "error", "refuses", "nothing", "half", "half silent"]


async def broken(picker, how):
    picker.fault = how
    if how == "down":
        await picker.server.stop(0)


@pytest.mark.parametrize("how", FAULTS)
async def test_fail_open_lets_the_least_busy_replica_answer(lab, upstream, picker, how):
    a, x = await upstream("a"), await upstream("x")
    picker.choice = f"127.0.0.1:{a.port}"
    await broken(picker, how)
    # No reason to fall back, and one attempt: neither is needed.
    once = {"fallback": {"attempts": 1, "when": ["ServerError"]}}
    await lab.settle(picked([a], x, mode="FailOpen", **once), at(picker.port))
    before = await lab.metrics()
    began = time.monotonic()
    assert await lab.count(4) == {"a": 4}
    each = (time.monotonic() - began) / 4
    print(f"{how}, FailOpen: {each * 1000:.0f} ms a request")
    assert each < TIMEOUT + 0.3
    answer = await lab.ask(text="x" * (1 << 20))
    assert (answer.by, answer.headers["x-tierwise-attempts"]) == ("a", "1")
    assert len(a.seen[-1].body) > 1 << 20, "the body is sent again as a whole"
    stream = await lab.ask(stream=True)
    assert (stream.tier, stream.body.endswith(b"data: [DONE]\n\n")) == ("compact", True)
    counted = [
        (await lab.metrics())[name] - before.get(name, 0)
        for name in await lab.metrics()
        if name.startswith("envoy_tierwise_usage_requests") and 'tierwise_tier="compact"' in name
    ]
    assert sum(counted) == 6, "the tokens of each request are counted once"


@pytest.mark.parametrize("how", FAULTS)
async def test_fail_close_counts_as_a_tier_that_was_not_reached(lab, upstream, picker, how):
    a, x = await upstream("a"), await upstream("x")
    picker.choice = f"127.0.0.1:{a.port}"
    await broken(picker, how)
    await lab.settle(picked([a], x, fallback={"attempts": 2, "when": ["ConnectFailure"]}), at(picker.port))
    began = time.monotonic()
    assert await lab.count(4) == {"x": 4}
    each = (time.monotonic() - began) / 4
    print(f"{how}, FailClose: {each * 1000:.0f} ms a request")
    assert each < TIMEOUT + 0.3
    assert len(json.loads(x.seen[-1].body)) == 2
    assert (await lab.ask(text="x" * (1 << 20))).by == "x"
    await lab.settle(picked([a], fallback={"attempts": 1}), at(picker.port))
    answer = await lab.ask()
    assert (answer.status, answer.json["error"]["code"]) == (503, "no_tier_available")
    assert "RoutingPolicy legal/assistant, class all" in answer.json["error"]["message"]
    assert not [one for one in a.seen if how not in ("half", "half silent")], "no replica was asked"


async def test_what_is_no_reason_to_fall_back_is_none_with_a_picker(lab, upstream, picker):
    a, x = await upstream("a", fault="503"), await upstream("x")
    picker.choice = f"127.0.0.1:{a.port}"
    for mode in ("FailOpen", "FailClose"):
        a.seen.clear()
        await lab.settle(picked([a], x, mode=mode, fallback={"when": ["ConnectFailure"]}), at(picker.port))
        assert await lab.count(2) == {503: 2}
        assert len(a.seen) == 2, "a replica's own error is not tried again"
        await lab.settle(picked([a], x, mode=mode, fallback={"when": ["ServerError"]}), at(picker.port))
        assert await lab.count(2) == {"x": 2}
        assert len(a.seen) == 4


async def test_prompts_of_other_tiers_do_not_reach_it(lab, upstream, picker):
    a, x = await upstream("a"), await upstream("x")
    picker.choice = f"127.0.0.1:{a.port}"
    await lab.settle(picked([a], x, weights=(50, 50)), at(picker.port))
    found = await lab.count(40)
    assert set(found) == {"a", "x"}
    assert len(picker.seen) == found["a"]
    picker.seen.clear()
    raised = {"x-tierwise-sensitivity": "Restricted"}  # frontier may not see it
    assert await lab.count(10, headers=raised) == {"a": 10}
    lowered = picked([a], x, clearance="Public")
    await lab.settle(lowered, at(picker.port))
    picker.seen.clear()
    assert await lab.count(4, headers=raised) == {403: 4}
    assert not picker.seen, "what the tier may not see, its picker may not either"


async def test_many_at_once_while_it_fails_in_every_way(lab, upstream, picker):
    a = await upstream("a")
    picker.choice = f"127.0.0.1:{a.port}"
    await lab.settle(picked([a], mode="FailOpen"), at(picker.port))
    for how in FAULTS[1:]:
        picker.fault = how
        answers = await asyncio.gather(*(lab.ask(text="x" * (1 << 18), stream=n % 2 == 0) for n in range(20)))
        assert [each.status for each in answers] == [200] * 20, how
    assert lab.envoys[0].returncode is None


async def test_a_client_that_leaves_ends_the_call(lab, upstream, picker):
    a = await upstream("a")
    picker.choice, picker.fault = f"127.0.0.1:{a.port}", "silent"
    await lab.settle(picked([a], mode="FailOpen"), at(picker.port))
    body = json.dumps({"model": "legal/assistant", "messages": []}).encode()
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(lab.ask(body=body), TIMEOUT / 3)
    await asyncio.sleep(1.5 * TIMEOUT)
    assert not a.seen, "nobody waits for the answer"
    picker.fault = ""
    assert (await lab.ask()).by == "a"


async def test_sessions_stay_at_their_tier(lab, upstream, picker):
    a, x = await upstream("a"), await upstream("x")
    picker.choice = f"127.0.0.1:{a.port}"
    await lab.settle(picked([a], x, weights=(50, 50), affinity={"header": "x-session-id"}), at(picker.port))

    async def homes():
        return [(await lab.ask(headers={"x-session-id": f"session-{number}"})).by for number in range(30)]

    first = await homes()
    assert set(first) == {"a", "x"}
    assert await homes() == first


async def test_copies_are_picked_too(lab, upstream, picker):
    a, b, x = await upstream("a"), await upstream("b"), await upstream("x")
    picker.choice = f"127.0.0.1:{b.port}"
    copied = picked([a, b], x)
    classes = [{"name": "all", "tiers": [{"name": "frontier"}], "shadow": {"tier": "compact", "percent": 100}}]
    await lab.settle(
        dataclasses.replace(copied, policies=world((), [policy(classes=classes)]).policies), at(picker.port)
    )
    assert await lab.count(5) == {"x": 5}
    await lab.eventually(lambda: len(b.seen) == 5)
    assert (len(picker.seen), a.seen) == (5, [])


async def test_a_tier_without_replicas_falls_back_with_a_picker_too(lab, upstream, picker):
    x = await upstream("x")
    picker.choice = "127.0.0.1:1"
    for mode in ("FailOpen", "FailClose"):
        await lab.settle(picked([], x, mode=mode), at(picker.port))
        assert await lab.count(5) == {"x": 5}


async def test_what_it_costs(lab, upstream, picker):
    a = await upstream("a")
    picker.choice = f"127.0.0.1:{a.port}"
    taken = {"": [], "FailClose": [], "FailOpen": []}
    for _ in range(3):
        for mode, times in taken.items():
            await lab.settle(picked([a], mode=mode), at(picker.port) if mode else None)
            await lab.count(10, text="x" * 1024)
            for _ in range(60):
                began = time.perf_counter()
                assert (await lab.ask(text="x" * 1024)).by == "a"
                times.append(1000 * (time.perf_counter() - began))
    p50 = {mode or "none": round(statistics.median(times), 2) for mode, times in taken.items()}
    print(f"p50 of a request of 1 KB in ms, by picker: {p50}; its own share included, which is Python here")
    assert p50["FailOpen"] < p50["none"] + 20
