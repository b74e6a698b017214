"""Issuers as the platform team writes them, and an issuer's keys fetched from where it publishes them."""

import asyncio
import json

import pytest
from aiohttp import web
from envoy_lab import Lab, Upstream, consumer, in_cluster, policy, world
from test_consumers_live import ISSUER, bearer, jwks, token

from tierwise.render.envoy import consumers
from tierwise.render.envoy.options import Authentication, JwtIssuer

GOOD = {"name": "login", "issuer": ISSUER, "audiences": ["tierwise"], "jwksURI": "https://login.example/keys"}


def test_issuers_are_read():
    (read,) = consumers.read_issuers(json.dumps([GOOD]))
    assert read == JwtIssuer("login", ISSUER, ("tierwise",), jwks_uri="https://login.example/keys")
    assert consumers.read_issuers("[]") == ()
    (inline,) = consumers.read_issuers(json.dumps([{**GOOD, "jwksURI": "", "jwks": {"keys": []}}]))
    assert inline.jwks == '{"keys": []}'


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"name": "Two Words"}, "lower-case letters"),
        ({"issuer": ""}, "iss exactly"),
        ({"issuer": "a#b"}, "iss exactly"),
        ({"audiences": []}, "aud"),
        ({"jwks": "{}"}, "exactly one of jwksURI and jwks"),
        ({"jwksURI": ""}, "exactly one of jwksURI and jwks"),
        ({"jwksURI": "login.example/keys"}, "write a URL"),
        ({"jwksURI": "https://a@login.example/keys"}, "write a URL"),
        ({"secret": "x"}, "not known"),
    ],
)
def test_a_wrong_issuer_is_told_with_field_and_remedy(change, says):
    with pytest.raises(ValueError, match=says) as refusal:
        consumers.read_issuers(json.dumps([{**GOOD, **change}]))
    assert "gateway.authentication.jwt[0]" in str(refusal.value)


def test_two_issuers_of_one_name_are_refused():
    with pytest.raises(ValueError, match="same issuer"):
        consumers.read_issuers(json.dumps([GOOD, {**GOOD, "name": "second"}]))
    with pytest.raises(ValueError, match="list of issuers"):
        consumers.read_issuers("{}")


@pytest.mark.asyncio(loop_scope="module")
async def test_keys_are_fetched_and_an_issuer_that_is_down_keeps_nobody_else_out(tmp_path):
    asked = 0
    up = asyncio.Event()

    async def keys(_request: web.Request) -> web.Response:
        nonlocal asked
        asked += 1
        return web.json_response(text=jwks()) if up.is_set() else web.Response(status=503)

    app = web.Application()
    app.router.add_get("/keys", keys)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = site._server.sockets[0].getsockname()[1]
    issuer = JwtIssuer("login", ISSUER, ("tierwise",), jwks_uri=f"http://localhost:{port}/keys")
    lab = Lab(tmp_path, authentication=Authentication((issuer,)))
    a = await Upstream("a").start()
    try:
        await lab.start()  # ready, though the issuer answers 503
        people = [consumer(apiKeys=[{"name": "k"}], jwt=[{"issuer": ISSUER, "subject": "mobile-app"}])]
        key = "tw-key-" + "5" * 20
        tiers, rules = [in_cluster()], [policy(classes=[{"name": "all", "tiers": [{"name": "compact"}]}])]
        await lab.settle(world(tiers, rules, {"legal/compact": [a.port]}, {"legal/k": {"token": key}}, people))
        assert (await lab.ask("assistant", headers=bearer(token()))).status == 401
        assert (await lab.ask("assistant", headers=bearer(key))).status == 200
        assert asked >= 1
        up.set()

        async def believed() -> bool:
            return (await lab.ask("assistant", headers=bearer(token()))).status == 200

        await lab.eventually(believed, seconds=15)
    finally:
        await lab.stop()
        await a.stop()
        await runner.cleanup()
