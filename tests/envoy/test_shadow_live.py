"""Copies of requests: what the shadow tier receives, what is counted, and that clients notice nothing."""

import asyncio
import json
import time

import pytest
from envoy_lab import REFUSED_PORT, budget, external, in_cluster, policy, world

from tierwise.render.envoy import lua, shadow

pytestmark = pytest.mark.asyncio(loop_scope="module")

KEY = {"legal/provider-key": {"token": "sk-provider-1"}, "legal/shadow-key": {"token": "sk-shadow-1"}}
CLIENT = {
    "authorization": "Bearer sk-client",
    "cookie": "session=1",
    "x-tierwise-shadow": "legal/compact",
    "x-tierwise-shadow-class": "forged",
    "x-tierwise-shadow-max-output": "1",
}


def provider(port, name="frontier", key="provider-key", clearance="Public", **more):
    return external(
        f"http://localhost:{port}/{name}/v1",
        name=name,
        model=f"model-of-{name}",
        clearance=clearance,
        allowPlaintext=True,
        credentialsRef={"name": key},
        headers=[{"name": f"x-{name}", "value": "1"}],
        **more,
    )


def shadowed(a, s, *, percent=100, tiers=("compact",), more_tiers=(), model="assistant", clearance="Public", **spec):
    weights = [{"name": name} for name in tiers]
    one = {"name": "all", "tiers": weights, "shadow": {"tier": "candidate", "percent": percent}, **spec.pop("cls", {})}
    rules = [policy(model, models=[model], classes=[one], **spec)]
    candidate = provider(s.port, "candidate", "shadow-key", clearance)
    return world([in_cluster(), candidate, *more_tiers], rules, {"legal/compact": [a.port]}, KEY)


async def received(lab, upstream, count):
    await lab.eventually(lambda: len(upstream.seen) >= count, seconds=5)
    await asyncio.sleep(0.1)
    assert len(upstream.seen) == count


async def counted(lab, name, **labels):
    found = await lab.metrics()
    wanted = [f'tierwise_{key}="{value}"' if key != "code" else f'code="{value}"' for key, value in labels.items()]
    return sum(v for k, v in found.items() if k.startswith(f"envoy_tierwise_{name}{{") and all(w in k for w in wanted))


async def test_a_copy_carries_the_shadow_tiers_own_name_path_host_and_key(lab, upstream):
    a, s = await upstream("a"), await upstream("s")
    await lab.settle(shadowed(a, s))
    for stream in (False, True):
        body = json.dumps({"model": "legal/assistant", "stream": stream, "messages": ["hi"], "z": 1.0}).encode()
        answer = await lab.ask(body=body, headers=CLIENT, path="/v1/chat/completions?api_key=sk-client")
        assert answer.tier == "compact"
        await received(lab, s, 1)
        (copy,), (real,) = s.seen, a.seen
        assert (copy.path, copy.host) == ("/candidate/v1/chat/completions", f"localhost:{s.port}")
        assert copy.json["model"] == "model-of-candidate"
        assert copy.json.get("stream_options") == ({"include_usage": True} if stream else None)
        assert copy.body.replace(b"model-of-candidate", b"qwen3-8b") == real.body
        assert copy.headers["authorization"] == "Bearer sk-shadow-1"
        assert copy.headers["x-candidate"] == "1"
        assert "authorization" not in real.headers
        for seen in (copy, real):
            assert not [name for name in seen.headers if name.startswith(("x-tierwise-", "x-forwarded", "cookie"))]
            assert b"sk-client" not in repr(seen).encode()
        a.seen.clear()
        s.seen.clear()


async def test_a_copy_of_a_request_that_fell_back_leaks_no_key_and_is_one(lab, upstream):
    """The router copies before or after attempts changed the shared headers: neither may show."""
    a, s, x = await upstream("a"), await upstream("s"), await upstream("x", fault="503")
    fallback = {"when": ["ServerError"], "attempts": 2}
    cls = {"fallback": fallback}
    await lab.settle(shadowed(a, s, tiers=("frontier", "compact"), more_tiers=[provider(x.port)], cls=cls))
    for _ in range(10):
        assert (await lab.ask(headers=CLIENT)).tier == "compact"
    await received(lab, s, 10)
    assert (len(a.seen), len(x.seen)) == (10, 10)
    for seen in s.seen:
        assert (seen.path, seen.json["model"]) == ("/candidate/v1/chat/completions", "model-of-candidate")
        assert seen.headers["authorization"] == "Bearer sk-shadow-1"
        assert "x-frontier" not in seen.headers
    for seen in (*a.seen, *x.seen):
        assert "sk-shadow" not in repr(seen)


async def test_an_in_cluster_shadow_sees_no_key_at_all(lab, upstream):
    a, s = await upstream("a"), await upstream("s")
    one = {"name": "all", "tiers": [{"name": "candidate"}], "shadow": {"tier": "compact", "percent": 100}}
    await lab.settle(
        world([in_cluster(), provider(s.port, "candidate")], [policy(classes=[one])], {"legal/compact": [a.port]}, KEY)
    )
    assert (await lab.ask(headers=CLIENT)).tier == "candidate"
    await received(lab, a, 1)
    (copy,) = a.seen
    assert (copy.path, copy.host, copy.json["model"]) == ("/v1/chat/completions", "compact.legal.svc", "qwen3-8b")
    assert not {"authorization", "x-candidate", "cookie"} & {*copy.headers}


async def test_the_share_that_is_copied_is_the_same_for_every_tier(lab, upstream):
    """One random number of Envoy's picks the tier and decides about the copy."""
    a, s, b = await upstream("a"), await upstream("s"), await upstream("b")
    cls = {"tiers": [{"name": "compact", "weight": 50}, {"name": "large", "weight": 50}]}
    new = shadowed(a, s, percent=30, more_tiers=[in_cluster("large")], cls=cls)
    ports = {"legal/compact": [a.port], "legal/large": [b.port]}
    await lab.settle(world(new.tiers.values(), new.policies.values(), ports, KEY))
    asked = {"compact": 0, "large": 0}
    for number in range(400):
        answer = await lab.ask(n=number)
        asked[answer.tier] += 1
    await lab.eventually(lambda: len(s.seen) > 60)
    await asyncio.sleep(0.3)
    numbers = {seen.json["n"] for seen in s.seen}
    copied = {
        "compact": len(numbers & {x.json["n"] for x in a.seen}),
        "large": len(numbers & {x.json["n"] for x in b.seen}),
    }
    for name, times in asked.items():
        # Binomial(200, 0.3): 5 standard deviations are 32.
        assert abs(copied[name] - 0.3 * times) <= 32, (copied, asked)


async def test_copies_are_counted_by_themselves_and_exactly(lab, upstream):
    a, s = await upstream("a"), await upstream("s")
    s.usage = {"prompt_tokens": 1_234_567, "completion_tokens": 11, "prompt_tokens_details": {"cached_tokens": 5}}
    await lab.settle(shadowed(a, s, model="counted"))
    for stream in (False, True, True):
        await lab.ask("legal/counted", stream=stream)
    await received(lab, s, 3)
    s.fault = "500"
    await lab.ask("legal/counted")
    await received(lab, s, 4)
    mine = {"policy": "counted", "namespace": "legal", "class": "all", "tier": "candidate"}

    async def all_in():
        return (
            await counted(lab, "shadow_requests", **mine) == 4 and await counted(lab, "shadow_ttfb_count", **mine) == 3
        )

    await lab.eventually(all_in, seconds=8)
    expected = {"requests": 4, "usage_requests": 3, "prompt_tokens": 3 * 1_234_567, "completion_tokens": 33}
    for name, value in {**expected, "cached_prompt_tokens": 15, "duration_count": 3}.items():
        assert await counted(lab, f"shadow_{name}", **mine) == value, name
    assert await counted(lab, "shadow_requests", code="500", **mine) == 1
    # What the loop reads knows nothing of them.
    real = {"policy": "counted", "tier": "compact"}
    assert await counted(lab, "requests", **real) == await counted(lab, "requests", policy="counted") == 4
    assert await counted(lab, "arrivals", policy="counted") == 4
    assert await counted(lab, "prompt_tokens", policy="counted") == 4 * 7
    for name in ("requests", "arrivals", "prompt_tokens", "completion_tokens", "usage_requests", "duration_count"):
        assert await counted(lab, name, policy="counted", tier="candidate") == 0, name


FORCED = '"stream_options":{"include_usage":true},'


async def test_copies_that_report_no_usage_are_bounded(lab, upstream):
    a, s = await upstream("a"), await upstream("s")
    s.usage = None
    await lab.settle(shadowed(a, s, model="silent"))
    sizes = 0
    for stream, most in ((False, {}), (False, {"max_tokens": 9}), (True, {"max_tokens": 9})):
        await lab.ask("legal/silent", stream=stream, **most)
        sizes += len(a.seen[-1].body) - len("qwen3-8b") + len("legal/silent") - (len(FORCED) if stream else 0)
    await received(lab, s, 3)
    s.fault = "500"  # costs nothing
    await lab.ask("legal/silent")
    await received(lab, s, 4)  # a copy arrives when it does, not with the answer
    s.fault = "reset"  # may have cost something
    await lab.ask("legal/silent", max_tokens=9)
    sizes += len(a.seen[-1].body) - len("qwen3-8b") + len("legal/silent")
    await lab.ask("legal/silent")
    sizes += len(a.seen[-1].body) - len("qwen3-8b") + len("legal/silent")
    await received(lab, s, 6)
    mine = {"policy": "silent", "namespace": "legal", "class": "all", "tier": "candidate"}

    async def all_in():
        return await counted(lab, "shadow_requests", **mine) == 6

    await lab.eventually(all_in, seconds=8)
    whole = len(json.dumps({"object": "chat.completion", "by": "s", "usage": None}))
    for name, expected in {
        "usage_requests": 0,
        "estimated_attempts": 5,
        "estimated_completion_tokens": whole + 9 + 9 + 9,
        "unbounded_attempts": 1,
    }.items():
        assert await counted(lab, f"shadow_{name}", **mine) == expected, name
    # Bytes of the bodies, and what chat templates add to each.
    assert await counted(lab, "shadow_estimated_prompt_tokens", **mine) == sizes + 5 * lua.TEMPLATE_TOKENS


@pytest.mark.parametrize("trouble", ["slow", "500", "reset", "refused", "gone"])
async def test_a_shadow_in_trouble_changes_nothing_for_clients(lab, upstream, trouble):
    a, s = await upstream("a"), await upstream("s", fault="" if trouble in {"refused", "gone"} else trouble)
    new = shadowed(a, s)
    if trouble == "refused":
        s.port = REFUSED_PORT
        new = shadowed(a, s)
    if trouble == "gone":  # no credential: the tier's cluster has no host
        new = world(new.tiers.values(), new.policies.values(), {"legal/compact": [a.port]}, {})
    await lab.settle(new)
    began = time.monotonic()
    for stream in (False, True) * 10:
        answer = await lab.ask(stream=stream)
        assert (answer.status, answer.tier, answer.headers["x-tierwise-attempts"]) == (200, "compact", "1")
        assert not [name for name in answer.headers if "shadow" in name]
        if stream:
            assert answer.body.endswith(b"data: [DONE]\n\n")
    assert time.monotonic() - began < 3
    assert len(a.seen) == 20


async def test_a_shadow_that_hangs_holds_a_bounded_number_of_copies(lab, upstream):
    a, s = await upstream("a"), await upstream("s")
    over, answer = asyncio.Event(), s._answer

    async def held(request):
        response = await answer(request)  # it has seen the copy
        await over.wait()
        return response

    s._answer = held
    await s.stop()
    await s.start()
    await lab.settle(shadowed(a, s))
    for _ in range(6):
        answers = await asyncio.gather(*(lab.ask() for _ in range(60)))
        assert {each.status for each in answers} == {200}
    assert len(a.seen) == 360
    await lab.eventually(lambda: len(s.seen) >= shadow.MOST_AT_ONCE)
    await asyncio.sleep(0.2)
    assert len(s.seen) == shadow.MOST_AT_ONCE
    url = f"http://127.0.0.1:{lab.metrics_port}/stats/prometheus"
    async with lab.http.get(url) as response:
        lines = (await response.text()).splitlines()
    name = 'envoy_cluster_upstream_rq_pending_overflow{envoy_cluster_name="tierwise_shadow"}'
    (dropped,) = [float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name)]
    assert dropped == 360 - shadow.MOST_AT_ONCE - shadow.MOST_WAITING
    over.set()
    await lab.eventually(lambda: len(s.seen) == shadow.MOST_AT_ONCE + shadow.MOST_WAITING, seconds=8)


async def test_a_shadow_that_reads_nothing_holds_nobody_up(lab, upstream):
    a, s = await upstream("a"), await upstream("s")

    async def deaf(reader, writer):  # noqa: ARG001 - it reads nothing, that is the point
        await over.wait()
        writer.close()

    over = asyncio.Event()
    server = await asyncio.start_server(deaf, "127.0.0.1", 0, limit=1024)
    s.port = server.sockets[0].getsockname()[1]
    await lab.settle(shadowed(a, s))
    body = b'{"model":"legal/assistant","x":"' + b"y" * (4 << 20) + b'"}'
    for _ in range(4):
        answer = await lab.ask(body=body)  # a client waits for 10 s
        assert (answer.status, answer.tier) == (200, "compact")
    assert [len(seen.body) for seen in a.seen] == [len(body) - len("legal/assistant") + len("qwen3-8b")] * 4
    over.set()
    server.close()


async def test_large_bodies_are_copied_whole(lab, upstream):
    a, s = await upstream("a"), await upstream("s")
    await lab.settle(shadowed(a, s))
    body = b'{"model":"legal/assistant","x":"' + b"y" * (15 << 20) + b'"}'
    assert (await lab.ask(body=body)).tier == "compact"
    await received(lab, s, 1)
    assert s.seen[0].body == body.replace(b"legal/assistant", b"model-of-candidate")


async def test_no_copy_reaches_a_tier_that_is_not_cleared(lab, upstream):
    a, s = await upstream("a"), await upstream("s")
    for sensitivity, header, copied in (
        ("Public", None, True),
        ("Public", "Internal", True),
        ("Public", "Confidential", False),
        ("Public", "nonsense", False),
        ("Public", "", False),
        ("Confidential", None, False),
        ("Confidential", "Public", False),
    ):
        await lab.settle(shadowed(a, s, clearance="Internal", sensitivity=sensitivity))
        s.seen.clear()
        headers = {"x-tierwise-sensitivity": header} if header is not None else {}
        for _ in range(3):
            assert (await lab.ask(headers=headers)).tier == "compact"
        if copied:
            await received(lab, s, 3)
        else:
            await asyncio.sleep(0.2)
            assert not s.seen, (sensitivity, header)


async def test_a_budget_that_holds_something_back_ends_copies_first(lab, upstream):
    a, s = await upstream("a"), await upstream("s")
    new = shadowed(a, s)
    exempt = [{"policy": "assistant", "class": "all"}]
    for decided, copied in (
        (budget(), True),
        (budget(action="Downgrade", tiers=["compact"]), False),
        (budget(action="Downgrade", tiers=["compact"], exempt=exempt), True),
        (budget(action="Throttle", requestsPerSecond="1000"), False),
    ):
        await lab.settle(
            world(new.tiers.values(), new.policies.values(), {"legal/compact": [a.port]}, KEY, budgets=[decided])
        )
        s.seen.clear()
        assert (await lab.ask()).tier == "compact"
        if copied:
            await received(lab, s, 1)
        else:
            await asyncio.sleep(0.2)
            assert not s.seen


async def test_nothing_is_copied_of_what_the_gateway_refuses(lab, upstream):
    a, s = await upstream("a"), await upstream("s")
    await lab.settle(shadowed(a, s))
    assert (await lab.ask("legal/unknown")).status == 404
    assert (await lab.ask(path="/v1/other")).status == 404
    assert (await lab.ask(body=b"{")).status == 400
    # A client can not name a cluster: what it sends is removed.
    one = {"name": "all", "tiers": [{"name": "compact"}]}
    await lab.settle(world(lab.world.tiers.values(), [policy(classes=[one])], {"legal/compact": [a.port]}, KEY))
    assert (await lab.ask(headers={"x-tierwise-shadow": "legal/candidate"})).tier == "compact"
    await asyncio.sleep(0.2)
    assert not s.seen


async def test_no_script_error_and_no_key_in_the_log(lab):
    await asyncio.sleep(0)
    log = lab.log()
    assert "script log" not in log
    assert "non-number" not in log
    assert "sk-" not in log
