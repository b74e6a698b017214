"""Who may call what, on a real Envoy: API keys and signed tokens, namespaces, and what callers try to forge."""

import base64
import dataclasses
import json
import time
from datetime import timedelta

import pytest
import pytest_asyncio
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from envoy_lab import NOW, Lab, consumer, external, in_cluster, policy, world

from tierwise.core.world import Key
from tierwise.render.envoy.options import Authentication, JwtIssuer

pytestmark = pytest.mark.asyncio(loop_scope="module")

ISSUER = "https://login.example/realm"
SIGNING_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
OTHER_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
APP, TOOL, RIVAL = (f"tw-{name}-{'0123456789' * 3}" for name in ("app", "tool", "rival"))


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _number(value: int) -> str:
    return _b64(value.to_bytes((value.bit_length() + 7) // 8, "big"))


def jwks(key=SIGNING_KEY) -> str:
    numbers = key.public_key().public_numbers()
    return json.dumps(
        {"keys": [{"kty": "RSA", "alg": "RS256", "kid": "k1", "n": _number(numbers.n), "e": _number(numbers.e)}]}
    )


def token(subject="mobile-app", *, key=SIGNING_KEY, algorithm="RS256", **claims) -> str:
    given = {"iss": ISSUER, "aud": "tierwise", "sub": subject, "exp": int(time.time()) + 600, **claims}
    given = {name: value for name, value in given.items() if value is not None}
    header = _b64(json.dumps({"alg": algorithm, "kid": "k1"}).encode())
    signed = f"{header}.{_b64(json.dumps(given).encode())}"
    if algorithm == "none":
        return f"{signed}."
    return f"{signed}.{_b64(key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256()))}"


def bearer(value: str) -> dict[str, str]:
    return {"authorization": f"Bearer {value}"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lab(tmp_path_factory):
    issuer = JwtIssuer(name="login", issuer=ISSUER, audiences=("tierwise",), jwks=jwks())
    started = Lab(tmp_path_factory.mktemp("consumers"), authentication=Authentication((issuer,)))
    try:
        yield await started.start()
    finally:
        await started.stop()


SECRETS = {
    "legal/app-key": {"token": APP + "\n"},
    "legal/tool-key": {"token": TOOL},
    "rival/app-key": {"token": RIVAL},
}
CLASSES = [{"name": "all", "tiers": [{"name": "compact"}]}]


def two_namespaces(a, b, *consumers, classes=None, secrets=None, **more):
    return world(
        [in_cluster(), in_cluster(namespace="rival")],
        [policy(classes=classes or CLASSES), policy(namespace="rival", models=["assistant", "own"], classes=CLASSES)],
        {"legal/compact": [a.port], "rival/compact": [b.port]},
        SECRETS | (secrets or {}),
        consumers or [consumer(), consumer("tool"), consumer(namespace="rival")],
        **more,
    )


async def test_a_key_reaches_its_own_namespace_and_no_other(lab, upstream):
    a, b = await upstream("a"), await upstream("b")
    await lab.settle(two_namespaces(a, b))
    for key, by in ((APP, "a"), (TOOL, "a"), (RIVAL, "b")):
        for headers in (bearer(key), {"api-key": key}, {"x-api-key": key}):
            answer = await lab.ask("assistant", headers=headers)
            assert (answer.status, answer.by) == (200, by)
    assert (await lab.ask("rival/assistant", headers=bearer(RIVAL))).by == "b"
    for model in ("rival/assistant", "rival/own", "own", "nobody/assistant", "legal/assistant/x", "a,legal"):
        a.seen.clear()
        b.seen.clear()
        answer = await lab.ask(model, headers=bearer(APP))
        assert (answer.status, answer.json["error"]["code"]) == (404, "model_not_found"), model
        assert not a.seen
        assert not b.seen


async def test_nobody_without_a_credential_gets_anywhere(lab, upstream):
    a, b = await upstream("a"), await upstream("b")
    await lab.settle(two_namespaces(a, b))
    attempts = [
        {},
        bearer("wrong-" + APP),
        bearer(APP[:-1]),
        bearer(""),
        {"authorization": f"Basic {APP}"},
        # What the gateway's own filters set: a client's is stripped.
        {"x-tierwise-client": "legal/app"},
        {"x-tierwise-subject": "mobile-app", "x-tierwise-issuer": ISSUER},
        {"x-tierwise-identity": "legal/app", "x-tierwise-scope": "c:legal/app", "x-tierwise-consumer": "app"},
        {"x-tierwise-scope": "n:legal", "x-tierwise-model": "assistant"},
    ]
    for headers in attempts:
        for model in ("assistant", "legal/assistant"):
            answer = await lab.ask(model, headers=headers)
            refused = answer.status == 401 and answer.json["error"]["code"] == "invalid_api_key"
            assert refused, (headers, answer.status, answer.body)
            assert answer.headers["content-type"] == "application/json"
    assert not a.seen
    assert not b.seen


async def test_forged_headers_beside_a_key_change_nothing(lab, upstream):
    a, b = await upstream("a"), await upstream("b")
    classes = [{"name": "tool", "match": {"consumers": ["tool"]}, "tiers": [{"name": "compact"}]}]
    await lab.settle(two_namespaces(a, b, classes=classes))
    forged = {
        "x-tierwise-client": "legal/tool",
        "x-tierwise-identity": "legal/tool",
        "x-tierwise-consumer": "tool",
        "x-tierwise-scope": "c:rival/app",
        "x-tierwise-subject": "mobile-app",
        "x-tierwise-issuer": ISSUER,
    }
    assert (await lab.ask("assistant", headers=bearer(TOOL))).by == "a"
    answer = await lab.ask("assistant", headers=bearer(APP) | forged)
    assert (answer.status, answer.json["error"]["code"]) == (400, "no_matching_class")
    assert len(a.seen) == 1
    assert not b.seen


async def test_what_proves_who_calls_reaches_no_tier(lab, upstream):
    a, b = await upstream("a"), await upstream("b")
    people = [consumer(jwt=[{"issuer": ISSUER, "subject": "mobile-app"}], apiKeys=[{"name": "app-key"}])]
    await lab.settle(two_namespaces(a, b, *people))
    signed = token()
    for headers in (bearer(APP), {"x-api-key": APP}, bearer(signed)):
        assert (await lab.ask("assistant", headers=headers)).by == "a"
    for seen in a.seen:
        text = json.dumps(seen.headers) + seen.body.decode()
        assert APP not in text
        assert signed not in text
        assert not any(name.startswith("x-tierwise") for name in seen.headers)
    assert APP not in lab.log()
    assert signed not in lab.log()


async def test_keys_rotate_expire_and_are_revoked(lab, upstream):
    a, b = await upstream("a"), await upstream("b")
    soon = NOW + timedelta(minutes=5)
    keys = [{"name": "app-key", "expiresAt": soon.isoformat()}, {"name": "new-key", "key": "second"}]
    new = "tw-new-" + "9" * 30
    secrets = {"legal/new-key": {"second": new}}
    both = two_namespaces(a, b, consumer(apiKeys=keys), secrets=secrets)
    await lab.settle(both)
    assert (await lab.ask("assistant", headers=bearer(APP))).status == 200
    assert (await lab.ask("assistant", headers=bearer(new))).status == 200

    await lab.publish(dataclasses.replace(both, now=soon))

    async def refused(key):
        return (await lab.ask("assistant", headers=bearer(key))).status == 401

    took = await lab.eventually(lambda: refused(APP))
    assert took < 1
    assert (await lab.ask("assistant", headers=bearer(new))).status == 200

    await lab.publish(two_namespaces(a, b, consumer(apiKeys=keys, suspend=True), secrets=secrets))
    assert await lab.eventually(lambda: refused(new)) < 1


async def test_a_new_key_cuts_no_stream_and_closes_no_connection(lab, upstream):
    a, b = await upstream("a", chunks=20, chunk_gap=0.05), await upstream("b")
    await lab.settle(two_namespaces(a, b))
    url = f"http://127.0.0.1:{lab.options.port}/v1/chat/completions"
    body = {"model": "assistant", "messages": [], "stream": True}
    async with lab.http.post(url, json=body, headers=bearer(APP)) as response:
        first = await response.content.readline()
        assert first
        for number in range(5):
            extra = {f"legal/extra-{number}": {"token": f"tw-extra-{number}-{'7' * 20}"}}
            people = [consumer(), consumer("extra", apiKeys=[{"name": f"extra-{number}"}])]
            await lab.publish(two_namespaces(a, b, *people, secrets=extra))
            await lab.eventually(lambda number=number: _accepted(lab, f"tw-extra-{number}-{'7' * 20}"))
        rest = await response.read()
        assert response.headers.get("connection") != "close"
    assert rest.endswith(b"data: [DONE]\n\n")
    assert rest.count(b"choices") == 19


async def _accepted(lab, key):
    return (await lab.ask("assistant", headers=bearer(key))).status == 200


async def test_tokens_of_the_issuer_are_believed_and_no_others(lab, upstream):
    a, b = await upstream("a"), await upstream("b")
    people = [consumer(jwt=[{"issuer": ISSUER, "subject": "mobile-app"}])]
    await lab.settle(two_namespaces(a, b, *people))
    assert (await lab.ask("assistant", headers=bearer(token()))).by == "a"
    assert (await lab.ask("legal/assistant", headers=bearer(token()))).by == "a"
    assert (await lab.ask("rival/assistant", headers=bearer(token()))).status == 404
    a.seen.clear()
    head, claims, signature = token().split(".")
    forged = json.loads(base64.urlsafe_b64decode(claims + "==")) | {"sub": "mobile-app", "admin": True}
    bad = {
        "another key": token(key=OTHER_KEY),
        "no algorithm": token(algorithm="none"),
        "expired": token(exp=int(time.time()) - 3600),
        "without expiry": token(exp=None),
        "another audience": token(aud="billing"),
        "no audience": token(aud=None),
        "another issuer": token(iss="https://evil.example"),
        "changed claims": f"{head}.{_b64(json.dumps(forged).encode())}.{signature}",
    }
    for why, value in bad.items():
        answer = await lab.ask("assistant", headers=bearer(value))
        assert answer.status == 401, why
    for subject in ("somebody-else", "mobile-app,legal", "mobile app", "x" * 200, "?", ""):
        answer = await lab.ask("assistant", headers=bearer(token(subject)))
        assert answer.status in {401, 404}, subject
    assert not a.seen
    assert not b.seen


async def test_an_identity_of_two_namespaces_names_the_one_that_it_means(lab, upstream):
    a, b = await upstream("a"), await upstream("b")
    jwt = [{"issuer": ISSUER, "subject": "ops@example"}]
    people = [consumer(jwt=jwt), consumer(namespace="rival", jwt=jwt, created=NOW - timedelta(days=1))]
    await lab.settle(two_namespaces(a, b, *people))
    asked = bearer(token("ops@example"))
    assert (await lab.ask("assistant", headers=asked)).by == "b"
    assert (await lab.ask("legal/assistant", headers=asked)).by == "a"
    assert (await lab.ask("rival/assistant", headers=asked)).by == "b"


async def test_classes_by_consumer_and_their_sensitivity(lab, upstream):
    a, b, x = await upstream("a"), await upstream("b"), await upstream("x")
    classes = [
        {"name": "trusted", "match": {"consumers": ["tool", "mobile"]}, "tiers": [{"name": "frontier"}]},
        {"name": "rest", "sensitivity": "Restricted", "tiers": [{"name": "compact"}]},
    ]
    people = [
        consumer(),
        consumer("tool"),
        consumer("mobile", jwt=[{"issuer": ISSUER, "subject": "mobile-app"}]),
    ]
    new = two_namespaces(a, b, *people, classes=classes)
    provider = external(f"http://localhost:{x.port}/v1", allowPlaintext=True)
    new = dataclasses.replace(new, tiers={**new.tiers, Key("legal", "frontier"): provider})
    await lab.settle(new)
    for key, by in ((APP, "a"), (TOOL, "x"), (token(), "x")):
        assert (await lab.ask("assistant", headers=bearer(key))).by == by
    found = await lab.metrics()
    x.usage = None
    await lab.ask("assistant", headers=bearer(TOOL))
    found = await lab.metrics()
    estimated = [series for series in found if "estimated_prompt_tokens" in series and 'consumer="tool"' in series]
    assert len(estimated) == 1, found
    for name in ("app", "tool", "mobile-app"):
        counted = [value for series, value in found.items() if f'consumer="{name}"' in series]
        assert len(counted) >= 4, found  # requests, requests with usage, prompt and completion tokens
    assert not [
        series
        for series in found
        if "consumer" in series and "_requests{" not in series and "tokens" not in series and "_attempts" not in series
    ]


async def test_models_lists_what_the_caller_may_ask_for(lab, upstream):
    a, b = await upstream("a"), await upstream("b")
    await lab.settle(two_namespaces(a, b))
    url = f"http://127.0.0.1:{lab.options.port}/v1/models"
    for key, models in ((APP, ["assistant"]), (RIVAL, ["assistant", "own"])):
        async with lab.http.get(url, headers=bearer(key)) as response:
            assert [one["id"] for one in (await response.json())["data"]] == models
    async with lab.http.get(url) as response:
        assert response.status == 401
    for body, code in ((b"{", "invalid_json"), (b"{}", "missing_model")):
        answer = await lab.ask(body=body, headers=bearer(APP))
        assert (answer.status, answer.json["error"]["code"]) == (400, code)
