"""Limits of a class's requests: what is refused before any tier sees it, and what a tier is told instead."""

import asyncio
import json
import time

import pytest
from envoy_lab import external, in_cluster, policy, world

pytestmark = pytest.mark.asyncio(loop_scope="module")

FALLBACK = {"when": ["ServerError"], "attempts": 2}


def limited(a, x=None, *, limits, tiers=("compact",), **more):
    classes = [
        {"name": "vip", "match": {"headers": [{"name": "x-vip", "value": "1"}]}, "tiers": [{"name": "compact"}]},
        {"name": "all", "tiers": [{"name": name} for name in tiers], "limits": limits, **more},
    ]
    made = [in_cluster()]
    if x is not None:
        made.append(external(f"http://localhost:{x.port}/v1", allowPlaintext=True, clearance="Public"))
    return world(made, [policy(classes=classes)], {"legal/compact": [a.port]})


def body_of(text, model="legal/assistant"):
    return b'{"model":"' + model.encode() + b'"' + (b"," + text if text else b"") + b"}"


async def test_a_prompt_beyond_the_limit_is_refused_and_no_tier_sees_it(lab, upstream):
    a = await upstream("a")
    await lab.settle(limited(a, limits={"maxPromptTokens": 100}))

    def sized(count):
        head = b'{"model":"legal/assistant","x":"'
        return head + b"y" * (count - len(head) - 2) + b'"}'

    for path in ("chat/completions", "completions", "embeddings", "responses"):
        answer = await lab.ask(body=sized(403), path=f"/v1/{path}")
        assert answer.status == 200, path
    assert len(a.seen) == 4
    for path in ("chat/completions", "completions", "embeddings", "responses"):
        answer = await lab.ask(body=sized(404), path=f"/v1/{path}")
        error = answer.json["error"]
        assert (answer.status, error["code"], error["type"]) == (
            400,
            "context_length_exceeded",
            "invalid_request_error",
        )
        assert answer.headers["content-type"] == "application/json"
        for words in ("Class all of RoutingPolicy legal/assistant", "100 tokens", "maxPromptTokens", "404 bytes"):
            assert words in error["message"]

    async def pieces(size, *cuts):
        body, at = sized(size), 0
        for cut in (*cuts, size):
            yield body[at:cut]
            await asyncio.sleep(0.05)
            at = cut

    for cuts in ((), (10,), (1, 200, 402)):
        assert (await lab.ask(body=pieces(403, *cuts))).status == 200, "a body of no stated length is measured"
    for cuts in ((), (10,), (1, 200, 403)):
        assert (await lab.ask(body=pieces(404, *cuts))).json["error"]["code"] == "context_length_exceeded"
    assert len(a.seen) == 7
    assert (await lab.ask(body=sized(4000), headers={"x-vip": "1"})).status == 200, "another class's limit"
    assert (await lab.ask(body=sized(404), headers={"x-tierwise-bytes": "1"})).status == 400


CHAT, OLD, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
FITS = [b"", b"100", b"1", b"99.0", b"1e2", b"null"]
BEYOND = [b"101", b"100000", b"1e30", b"0", b"-1", b'"100"', b'"100000"', b"true", b"1.0e3", b"0.5"]
ALIASES = [b"max_completion_tokens", b"max_output_tokens", b"n_predict", b"max\\u005ftokens", b"\\u006dax_tokens"]


@pytest.mark.parametrize("path", [CHAT, OLD, RESPONSES])
async def test_an_answer_beyond_the_limit_is_refused_however_it_is_asked_for(lab, upstream, path):
    a = await upstream("a")
    await lab.settle(limited(a, limits={"maxOutputTokens": 100}))
    refused = [b'"max_tokens":' + value for value in BEYOND]
    refused += [b'"' + key + b'":101' for key in ALIASES]
    refused += [
        b'"max_tokens":5,"max_tokens":101',
        b'"max_tokens":5,"max_completion_tokens":101',
        b'"max_tokens" : 101 ',
    ]
    for text in refused:
        answer = await lab.ask(body=body_of(text), path=path)
        assert answer.status == 400, text
        error = answer.json["error"]
        assert (error["code"], error["type"]) == ("max_output_tokens_exceeded", "invalid_request_error")
        assert "Class all of RoutingPolicy legal/assistant" in error["message"]
        assert "from 1 to 100" in error["message"]
    assert not a.seen
    for value in FITS:
        assert (await lab.ask(body=body_of(b'"max_tokens":' + value if value else b""), path=path)).status == 200, value
    assert len(a.seen) == len(FITS)
    assert (await lab.ask(body=body_of(b'"max_tokens":101'), headers={"x-tierwise-max-output": "1"})).status == 400
    assert (await lab.ask(body=body_of(b'"max_tokens":5000'), headers={"x-vip": "1"})).status == 200


async def test_requests_that_have_no_answer_to_bound_are_left_alone(lab, upstream):
    a = await upstream("a")
    await lab.settle(limited(a, limits={"maxOutputTokens": 100}))
    for path in ("embeddings", "rerank", "score"):
        assert (await lab.ask(body=body_of(b'"max_tokens":500'), path=f"/v1/{path}")).status == 200
        assert (await lab.ask(body=body_of(b""), path=f"/v1/{path}")).status == 200
    assert {seen.body for seen in a.seen} == {body_of(b'"max_tokens":500', "qwen3-8b"), body_of(b"", "qwen3-8b")}


@pytest.mark.parametrize(
    ("path", "key"), [(CHAT, b"max_tokens"), (OLD, b"max_tokens"), (RESPONSES, b"max_output_tokens")]
)
async def test_a_request_that_states_no_length_gets_the_classs(lab, upstream, path, key):
    a = await upstream("a")
    await lab.settle(limited(a, limits={"maxOutputTokens": 100}))
    bound = b'"' + key + b'":100,'
    other = b"max_output_tokens" if key == b"max_tokens" else b"max_tokens"
    cases = {
        b"": (b"{", b"{" + bound),
        b'"' + key + b'": null': (b"null", b"100"),
        b'"' + key + b'": 7': (b"", b""),
        b'"' + key + b'":9,"' + key + b'":null': (b"null", b"100"),
        b'"' + key + b'":null,"' + key + b'":9': (b"", b""),
        b'"n_predict":5': (b"{", b"{" + bound),
        # No number, and no text that is one: the tier would refuse it, or do as if nothing stood there.
        b'"' + key + b'": [100]': (b"]}", b"]," + bound[:-1] + b"}"),
        b'"' + key + b'": {"a": 5}': (b"}}", b"}," + bound[:-1] + b"}"),
        b'"' + other + b'":5': (b"{", b"{" + bound),
        b'"x":{"' + key + b'":5}': (b"{", b"{" + bound),
        b'"stream":true,"stream_options":{"include_usage":true}': (b"{", b"{" + bound),
    }
    if path == CHAT:
        cases[b'"max_completion_tokens":5'] = (b"", b"")
        cases[b'"max_completion_tokens":null'] = (b"{", b"{" + bound)
    for text, (before, after) in cases.items():
        assert (await lab.ask(body=body_of(text), path=path)).status == 200, text
        assert a.seen[-1].body == body_of(text, "qwen3-8b").replace(before, after, 1 if before else 0), text
        json.loads(a.seen[-1].body)
    await lab.ask(body=body_of(b'"stream":true'), path=path)
    forced = {} if path == RESPONSES else {"stream_options": {"include_usage": True}}
    assert a.seen[-1].json == {"model": "qwen3-8b", "stream": True, key.decode(): 100, **forced}
    await lab.ask(body=body_of(b""), path=path, headers={"x-vip": "1"})
    assert a.seen[-1].body == body_of(b"", "qwen3-8b"), "another class has no limit"


async def test_every_attempt_and_the_copy_are_bounded(lab, upstream):
    a, x, s = await upstream("a"), await upstream("x", fault="503"), await upstream("s")
    new = limited(
        a,
        x,
        limits={"maxOutputTokens": 100},
        tiers=("frontier", "compact"),
        fallback=FALLBACK,
        shadow={"tier": "candidate", "percent": 100},
    )
    candidate = external(f"http://localhost:{s.port}/v1", name="candidate", allowPlaintext=True, clearance="Public")
    await lab.settle(world([*new.tiers.values(), candidate], new.policies.values(), {"legal/compact": [a.port]}))
    for text, most in ((b"", 100), (b'"max_completion_tokens":7', None), (b'"max_tokens":7', 7)):
        answer = await lab.ask(body=body_of(text))
        assert (answer.tier, answer.headers["x-tierwise-attempts"]) == ("compact", "2")
        await lab.eventually(lambda: len(s.seen) == len(a.seen))
        for each in (a, x, s):
            assert each.seen[-1].json.get("max_tokens") == most
    await lab.ask(body=body_of(b'"max_tokens":101'))
    await lab.ask(body=body_of(b"", "legal/assistant"), headers={"x-vip": "1"})
    await asyncio.sleep(0.2)
    assert (len(a.seen), len(x.seen), len(s.seen)) == (4, 3, 3)
    assert "max_tokens" not in a.seen[-1].json


async def test_time_is_up_whatever_the_tiers_do(lab, upstream):
    a, x = await upstream("a", fault="slow"), await upstream("x", fault="slow")
    slow = {"when": ["Timeout"], "attempts": 2, "timeout": "300ms"}
    await lab.settle(limited(a, x, limits={"timeout": "500ms"}, tiers=("compact", "frontier"), fallback=slow))
    began = time.monotonic()
    answer = await lab.ask()
    assert 0.45 <= time.monotonic() - began < 1.5
    error = answer.json["error"]
    assert (answer.status, error["code"], error["type"]) == (504, "timeout", "server_error")
    assert "RoutingPolicy legal/assistant, class all" in error["message"]
    assert "limits.timeout" in error["message"]
    assert (len(a.seen), len(x.seen)) == (1, 1)
    # Without the limit of the class the attempts' own are what is told.
    await lab.settle(limited(a, x, limits={"timeout": "60s"}, tiers=("compact", "frontier"), fallback=slow))
    answer = await lab.ask()
    assert (answer.status, answer.json["error"]["code"]) == (504, "timeout")
    assert "limits.timeout" not in answer.json["error"]["message"]


async def test_a_stream_ends_with_its_time_only_where_the_class_says_so(lab, upstream):
    a = await upstream("a", chunk_gap=0.2, chunks=6)
    await lab.settle(limited(a, limits={"timeout": "500ms"}))
    with pytest.raises(Exception, match=r"payload|closed|disconnected"):
        await lab.ask(stream=True)
    answer = await lab.ask(stream=True, headers={"x-vip": "1"})
    assert answer.body.endswith(b"data: [DONE]\n\n")


async def test_a_body_beyond_the_gateways_limit_is_413_with_and_without_a_length(lab, upstream):
    a = await upstream("a")
    await lab.settle(limited(a, limits={"maxOutputTokens": 100}))
    large = b'{"model":"legal/assistant","x":"' + b"y" * (17 << 20) + b'"}'

    async def pieces():
        for at in range(0, len(large), 1 << 20):
            yield large[at : at + (1 << 20)]

    for body in (large, pieces()):
        answer = await lab.ask(body=body)
        error = answer.json["error"]
        assert (answer.status, error["code"], error["type"]) == (413, "request_too_large", "invalid_request_error")
        assert answer.headers["content-type"] == "application/json"
    assert not a.seen


async def test_no_script_error_in_the_log(lab):
    await asyncio.sleep(0)
    assert "script log" not in lab.log()
