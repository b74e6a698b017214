"""What a real Envoy does with a rendered world: where requests go, and what reaches the tiers."""

import asyncio
import json

import pytest
from envoy_lab import REFUSED_PORT, external, in_cluster, policy, world

pytestmark = pytest.mark.asyncio(loop_scope="module")

KEY = {"legal/provider-key": {"token": "sk-provider-1\n"}}
CREDENTIALS = {"name": "provider-key", "key": "token"}
CLIENT = {"authorization": "Bearer sk-client", "cookie": "session=1", "api-key": "k"}


def two_tiers(classes, a, x, *, endpoints=None, secrets=KEY, clearance="Public", **spec):
    provider = external(
        f"http://localhost:{x.port}/openai/v1",
        allowPlaintext=True,
        clearance=clearance,
        credentialsRef=CREDENTIALS,
        headers=[{"name": "x-provider-version", "value": "2026-01"}],
    )
    ports = endpoints if endpoints is not None else {"legal/compact": [a.port]}
    return world([in_cluster(), provider], [policy(classes=classes, **spec)], ports, secrets)


def split(a=50, x=50, **more):
    return [{"name": "all", "tiers": [{"name": "compact", "weight": a}, {"name": "frontier", "weight": x}], **more}]


FALLBACK = {"when": ["ConnectFailure", "ServerError", "RateLimited"], "attempts": 2}


async def test_weights_split_requests(lab, upstream):
    a, x = await upstream("a"), await upstream("x")
    await lab.settle(two_tiers(split(80, 20), a, x))
    found = await lab.count(400)
    assert set(found) == {"a", "x"}
    # Binomial(400, 0.8): 5 standard deviations are 40.
    assert abs(found["a"] - 320) <= 40


async def test_a_weight_of_zero_gets_nothing_and_status_outranks_the_spec(lab, upstream):
    a, x = await upstream("a"), await upstream("x")
    weights = [{"tier": "compact", "percent": 0}, {"tier": "frontier", "percent": 100}]
    status = {"classes": [{"name": "all", "weights": weights}]}
    await lab.settle(two_tiers(split(100, 0), a, x, status=status))
    assert await lab.count(40) == {"x": 40}


async def test_each_tier_sees_its_own_model_path_host_and_no_secret_of_the_client(lab, upstream):
    a, x = await upstream("a"), await upstream("x")
    await lab.settle(two_tiers(split(100, 0), a, x))
    await lab.ask(headers=CLIENT, path="/v1/chat/completions?trace=1")
    await lab.settle(two_tiers(split(0, 100), a, x))
    await lab.ask(headers=CLIENT)
    near, far = a.seen[0], x.seen[0]
    assert (near.path, near.host, near.json["model"]) == (
        "/v1/chat/completions",
        "compact.legal.svc",
        "qwen3-8b",
    )
    assert (far.path, far.host) == ("/openai/v1/chat/completions", f"localhost:{x.port}")
    assert far.json["model"] == "provider-large-1"
    assert far.headers["authorization"] == "Bearer sk-provider-1"
    assert far.headers["x-provider-version"] == "2026-01"
    for seen in (near, far):
        assert not {"cookie", "api-key", "x-forwarded-for", "x-tierwise-model", "x-envoy-original-host"} & {
            *seen.headers
        }
    assert not {"authorization", "x-provider-version"} & {*near.headers}


@pytest.mark.parametrize("fault", ["500", "503", "429", "reset", "refused"])
async def test_fallback_takes_the_other_tier_and_leaks_nothing(lab, upstream, fault):
    a, x = await upstream("a"), await upstream("x")
    classes = split(50, 50, fallback=FALLBACK)
    for broken, other in ((x, a), (a, x)):
        broken.fault, other.fault = ("" if fault == "refused" else fault), ""
        a.seen.clear()
        x.seen.clear()
        ports = {"legal/compact": [REFUSED_PORT if fault == "refused" and broken is a else a.port]}
        new = two_tiers(classes, a, x, endpoints=ports)
        if fault == "refused" and broken is x:
            provider = external(
                f"http://localhost:{REFUSED_PORT}/openai/v1",
                allowPlaintext=True,
                clearance="Public",
                credentialsRef=CREDENTIALS,
            )
            new = world([in_cluster(), provider], [policy(classes=classes)], ports, KEY)
        await lab.settle(new)
        assert await lab.count(24, headers=CLIENT) == {other.name: 24}
        assert len(other.seen) == 24
        if fault != "refused":
            assert 0 < len(broken.seen) < 24, (
                "the weighted first attempts of a half go to the broken tier, the others do not"
            )
        for seen in a.seen:
            assert "authorization" not in seen.headers
            assert (seen.path, seen.host, seen.json["model"]) == (
                "/v1/chat/completions",
                "compact.legal.svc",
                "qwen3-8b",
            )
        for seen in x.seen:
            assert seen.headers["authorization"] == "Bearer sk-provider-1"
            assert (seen.path, seen.json["model"]) == ("/openai/v1/chat/completions", "provider-large-1")


async def test_streams_fall_back_too_and_arrive_whole(lab, upstream):
    a, x = await upstream("a", fault="503"), await upstream("x")
    await lab.settle(two_tiers(split(100, 0, fallback=FALLBACK), a, x))
    answer = await lab.ask(stream=True)
    assert answer.status == 200
    assert (answer.tier, answer.headers["x-tierwise-attempts"]) == ("frontier", "2")
    assert answer.body.endswith(b"data: [DONE]\n\n")


async def test_three_tiers_are_tried_each_once(lab, upstream):
    a, b, x = await upstream("a", fault="503"), await upstream("b", fault="503"), await upstream("x", fault="503")
    tiers = [
        in_cluster(),
        in_cluster("large", model="qwen3-235b"),
        external(f"http://localhost:{x.port}/v1", allowPlaintext=True),
    ]
    names = ("compact", "large", "frontier")
    classes = [
        {
            "name": "all",
            "tiers": [{"name": n, "weight": w} for n, w in zip(names, (50, 30, 20), strict=True)],
            "fallback": {**FALLBACK, "attempts": 3},
        }
    ]
    await lab.settle(world(tiers, [policy(classes=classes)], {"legal/compact": [a.port], "legal/large": [b.port]}))
    for _ in range(30):
        answer = await lab.ask()
        assert answer.status == 503
    assert [len(u.seen) for u in (a, b, x)] == [30, 30, 30]


async def test_only_what_the_user_lists_falls_back(lab, upstream):
    a, x = await upstream("a"), await upstream("x")
    await lab.settle(two_tiers(split(100, 0, fallback={"when": ["RateLimited"], "attempts": 2}), a, x))
    for fault, status, by in (("429", 200, "x"), ("503", 503, None), ("400", 400, None)):
        a.fault = fault
        answer = await lab.ask()
        assert (answer.status, answer.by) == (status, by)
    await lab.settle(two_tiers(split(100, 0, fallback={"attempts": 1}), a, x))
    a.fault = "503"
    assert (await lab.ask()).status == 503


async def test_a_slow_tier_falls_back_only_when_asked_to(lab, upstream):
    a, x = await upstream("a", fault="slow"), await upstream("x")
    await lab.settle(two_tiers(split(100, 0, fallback={"when": ["Timeout"], "timeout": "200ms"}), a, x))
    answer = await lab.ask()
    assert (answer.by, answer.headers["x-tierwise-attempts"]) == ("x", "2")


async def test_a_tier_without_replicas_falls_back(lab, upstream):
    a, x = await upstream("a"), await upstream("x")
    await lab.settle(two_tiers(split(100, 0), a, x, endpoints={}))
    assert await lab.count(20) == {"x": 20}
    await lab.settle(two_tiers(split(0, 100), a, x, secrets={}))
    assert await lab.count(20) == {"a": 20}
    assert not x.seen[20:], "without its credential a provider is not even asked"


async def test_no_tier_up_is_503_in_words(lab, upstream):
    a, x = await upstream("a"), await upstream("x")
    await lab.settle(two_tiers(split(50, 50), a, x, endpoints={}, secrets={}))
    answer = await lab.ask()
    assert answer.status == 503
    error = answer.json["error"]
    assert (error["type"], error["code"]) == ("server_error", "no_tier_available")
    assert "RoutingPolicy legal/assistant, class all" in error["message"]


async def test_another_replica_is_tried_when_there_is_no_other_tier(lab, upstream):
    a = await upstream("a")
    classes = [{"name": "all", "tiers": [{"name": "compact"}]}]
    await lab.settle(world([in_cluster()], [policy(classes=classes)], {"legal/compact": [a.port, REFUSED_PORT]}))
    assert await lab.count(40) == {"a": 40}


CLASSES = [
    {"name": "header", "match": {"headers": [{"name": "x-kind", "value": "legal"}]}, "tiers": [{"name": "t-header"}]},
    {"name": "prefix", "match": {"headers": [{"name": "x-kind", "prefix": "le"}]}, "tiers": [{"name": "t-prefix"}]},
    {
        "name": "pattern",
        "match": {"headers": [{"name": "x-kind", "pattern": "[0-9]+"}]},
        "tiers": [{"name": "t-pattern"}],
    },
    {"name": "model", "match": {"models": ["coder"]}, "tiers": [{"name": "t-model"}]},
    {"name": "large", "match": {"promptTokens": {"min": 2000}}, "tiers": [{"name": "t-large"}]},
    {"name": "middle", "match": {"promptTokens": {"min": 500, "max": 1999}}, "tiers": [{"name": "t-middle"}]},
    {"name": "nobody", "match": {"consumers": ["x"]}, "tiers": [{"name": "t-header"}]},
]
NAMES = ("t-header", "t-prefix", "t-pattern", "t-model", "t-large", "t-middle", "t-rest")


async def test_the_first_class_that_matches_takes_the_request(lab, upstream):
    tiers = [in_cluster(name) for name in NAMES]
    made = {name: await upstream(name) for name in NAMES}
    ports = {f"legal/{name}": [each.port] for name, each in made.items()}
    rest = {"name": "rest", "tiers": [{"name": "t-rest"}]}
    models = ["assistant", "coder"]
    await lab.settle(world(tiers, [policy(models=models, classes=[*CLASSES, rest])], ports))

    async def taken(**asked):
        return (await lab.ask(**asked)).tier

    def sized(count):
        head = json.dumps({"model": "legal/assistant", "messages": "", "x": ""}).encode()
        return head[:-2] + b"x" * (count - len(head)) + b'"}'

    assert await taken(headers={"x-kind": "legal"}, model="legal/coder") == "t-header"
    assert await taken(headers={"x-kind": "legacy"}) == "t-prefix"
    assert await taken(headers={"x-kind": "42"}) == "t-pattern"
    assert await taken(headers={"x-kind": "x42"}) == "t-rest", "a pattern is about the whole value"
    assert await taken(model="legal/coder") == "t-model"
    assert await taken(body=sized(1999)) == "t-rest"
    assert await taken(body=sized(2000)) == "t-middle"
    assert await taken(body=sized(7999)) == "t-middle"
    assert await taken(body=sized(8000)) == "t-large"
    assert await taken() == "t-rest"

    async def chunked(count):
        yield sized(count)[:50]
        await asyncio.sleep(0.05)
        yield sized(count)[50:]

    # A body that states no length is measured.
    for count, tier in ((1999, "t-rest"), (2000, "t-middle"), (7999, "t-middle"), (8000, "t-large")):
        assert await taken(body=chunked(count)) == tier
    spoofed = {
        "x-tierwise-bytes": "9000",
        "x-tierwise-model": "coder",
        "x-tierwise-scope": "n:x",
        "x-envoy-max-retries": "9",
    }
    assert await taken(headers=spoofed) == "t-rest"

    await lab.settle(world(tiers, [policy(models=models, classes=CLASSES)], ports))
    answer = await lab.ask()
    assert (answer.status, answer.json["error"]["code"]) == (400, "no_matching_class")
    assert "legal/assistant" in answer.json["error"]["message"]


async def test_affinity_sends_a_session_to_one_replica(lab, upstream):
    replicas = [await upstream(name) for name in "abc"]
    classes = [{"name": "all", "tiers": [{"name": "compact"}], "affinity": {"header": "x-session-id"}}]
    ports = {"legal/compact": [each.port for each in replicas]}
    await lab.settle(world([in_cluster()], [policy(classes=classes)], ports))
    homes = set()
    for session in range(12):
        found = await lab.count(6, headers={"x-session-id": str(session)})
        assert len(found) == 1, "all requests of a session reach one replica"
        homes |= set(found)
    assert len(homes) > 1


async def test_sensitivity_is_never_relaxed(lab, upstream):
    a, x = await upstream("a"), await upstream("x")
    classes = split(10, 90, fallback=FALLBACK)
    for sensitivity, header, outside in (
        ("Public", None, True),
        ("Public", "internal", True),
        ("Public", "Confidential", False),
        ("Public", "restricted", False),
        ("Public", "secret!", False),
        ("Public", "", False),
        ("Public", "public, internal", False),
        ("Confidential", None, False),
        ("Confidential", "Public", False),
        ("Restricted", "Internal", False),
    ):
        await lab.settle(two_tiers(classes, a, x, clearance="Internal", sensitivity=sensitivity))
        a.fault = ""
        a.seen.clear()
        x.seen.clear()
        headers = {"x-tierwise-sensitivity": header} if header is not None else {}
        await lab.count(12, headers=headers)
        a.fault = "503"
        answer = await lab.ask(headers=headers)
        assert bool(x.seen) is outside, (sensitivity, header)
        assert answer.status == (200 if outside else 503)


async def test_no_cleared_tier_is_403_in_words(lab, upstream):
    a, x = await upstream("a"), await upstream("x")
    classes = [{"name": "all", "tiers": [{"name": "frontier"}]}]
    await lab.settle(two_tiers(classes, a, x, clearance="Internal"))
    answer = await lab.ask(headers={"x-tierwise-sensitivity": "Confidential"})
    assert (answer.status, answer.json["error"]["code"]) == (403, "no_cleared_tier")
    assert (
        "class all in RoutingPolicy legal/assistant is cleared for requests that are" in answer.json["error"]["message"]
    )
    assert (await lab.ask()).by == "x"
    assert len(x.seen) == 1


async def test_who_is_asked_for_hostnames_namespaces_and_unknown_names(lab, upstream):
    a, b = await upstream("a"), await upstream("b")
    one = [{"name": "all", "tiers": [{"name": "compact"}]}]
    policies = [
        policy(classes=one, hostnames=["legal.llm.example", "legal"]),
        policy(
            "other", namespace="sales", classes=one, models=["assistant", "seller"], hostnames=["sales.llm.example"]
        ),
    ]
    tiers = [in_cluster(), in_cluster(namespace="sales")]
    await lab.settle(world(tiers, policies, {"legal/compact": [a.port], "sales/compact": [b.port]}))

    async def answered(model, host=None):
        return await lab.ask(model, headers={"host": host} if host else {})

    assert (await answered("legal/assistant")).by == "a"
    assert (await answered("sales/assistant")).by == "b"
    assert (await answered("assistant", "Legal.LLM.example:8443")).by == "a"
    assert (await answered("assistant", "legal")).by == "a"
    assert (await answered("seller", "sales.llm.example")).by == "b"
    for model, host in (
        ("seller", "legal.llm.example"),
        ("sales", "legal"),
        ("assistant", "nobody.example"),
        ("legal/x", None),
        ("a/legal/assistant", None),
        ("legal/assistant/x", None),
        ("x y", "legal"),
        (7, "legal"),
    ):
        answer = await answered(model, host)
        assert (answer.status, answer.json["error"]["code"]) == (404, "model_not_found"), (model, host)
    for body, code in ((b"{", "invalid_json"), (b"[]", "invalid_json"), (b'{"messages":[]}', "missing_model")):
        answer = await lab.ask(body=body)
        assert answer.status == 400, body
        assert answer.json["error"]["code"] in {code, "missing_model"}, body
    assert (await lab.ask(path="/v1/load_lora_adapter")).json["error"]["code"] == "unknown_endpoint"
    assert (await lab.ask(path="/v1/chat/completions/../../metrics")).status == 404

    async def models(host):
        url = f"http://127.0.0.1:{lab.options.port}/v1/models"
        async with lab.http.get(url, headers={"host": host}) as response:
            return [each["id"] for each in (await response.json())["data"]]

    assert await models("sales.llm.example") == ["assistant", "seller"]
    assert await models("localhost") == ["legal/assistant", "sales/assistant", "sales/seller"]


async def test_bodies_keep_every_other_byte(lab, upstream):
    a, x = await upstream("a"), await upstream("x")
    await lab.settle(two_tiers(split(100, 0), a, x))
    forced = b'"stream_options":{"include_usage":true}'
    cases = {
        # What the client sends, and what is inserted; the model's name is replaced in each.
        b'{"n": 1234567890123456789, "model" : "NAME" ,"z":1,"a":[{"model":"keep"}]}': (b"", b""),
        '{"t":"a \\"model\\": \\"x\\" é \\u00e9","model":"NAME"}'.encode(): (b"", b""),
        b'{"model":"NAME","stream":false}': (b"", b""),
        b'{"model":"NAME","stream":true}': (b"{", b"{" + forced + b","),
        b'{"stream":true,"stream_options":{"include_usage":false,"x":1},"model":"NAME"}': (b"false", b"true"),
        b'{"stream":true,"stream_options": {} ,"model":"NAME"}': (b"{}", b'{"include_usage":true}'),
        b'{"stream":true,"stream_options":{"x":1},"model":"NAME"}': (b'{"x"', b'{"include_usage":true,"x"'),
        b'{"stream":true,"stream_options":null,"model":"NAME"}': (b"null", b'{"include_usage":true}'),
        b'{"stream":true,' + forced + b',"model":"NAME"}': (b"", b""),
        # An escaped key is a key: it must neither choose the tier's model nor hide a stream from the counters.
        b'{"mod\\u0065l":"NAME"}': (b"", b""),
        b'{"str\\u0065a\\u006D":true,"model":"NAME"}': (b"{", b"{" + forced + b","),
    }
    for given, (before, after) in cases.items():
        sent = given.replace(b"NAME", b"legal/assistant")
        expected = given.replace(b"NAME", b"qwen3-8b").replace(before, after, 1 if before else 0)
        assert (await lab.ask(body=sent)).status == 200
        assert a.seen[-1].body == expected
    # Where a string ends: any number of backslashes before a quote in it, or at its end.
    for text in ("\\" * number + end for number in range(7) for end in ("", '"', '"}', '","model":"x","y":"z')):
        sent = json.dumps({"a": text, "model": "legal/assistant"}).encode()
        assert (await lab.ask(body=sent)).status == 200
        assert a.seen[-1].body == sent.replace(b"legal/assistant", b"qwen3-8b")
    long = b'{"model":"legal/assistant","x":"' + b"y" * (3 << 20) + b'"}'
    assert (await lab.ask(body=long)).status == 200
    assert a.seen[-1].body == long.replace(b"legal/assistant", b"qwen3-8b")
    too_long = b'{"model":"legal/assistant","x":"' + b"y" * (17 << 20) + b'"}'
    answer = await lab.ask(body=too_long)
    assert (answer.status, answer.json["error"]["code"]) == (413, "request_too_large")


async def test_no_script_error_and_no_prompt_in_the_log(lab):
    await asyncio.sleep(0)
    log = lab.log()
    assert "script log" not in log
    assert "non-number" not in log
    assert "sk-" not in log
    assert "messages" not in log
