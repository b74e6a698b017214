"""Keys are planted in every Secret, used in every way there is, and searched for in everything that leaves the gateway.

On a whole cluster, with ConfigMaps, Events and statuses as the API server has them: e2e/test_planted_keys.py.
"""

import base64
import dataclasses
import json
from pathlib import Path

import pytest
import structlog
from envoy_lab import Lab, consumer, external, in_cluster, policy, world
from planted import Planted, expected, found
from test_lifecycle_live import admin_answers
from test_tracing_live import Collector
from test_xds_live import bad_cluster

from tierwise.core.world import Key
from tierwise.render.envoy import bootstrap, gateway, last_good, protos, redact, secrets
from tierwise.render.envoy.options import Authentication, GatewayOptions, Tracing
from tierwise.runtime import envoy_config, served

pytestmark = pytest.mark.asyncio(loop_scope="module")


def pem_body(pem: bytes) -> str:
    """The middle of a private key: recognisable in any form of the file."""
    return max(pem.decode().splitlines(), key=len)


def plant(lab) -> dict[str, Planted]:
    """All keys, by name. A kind of Secret that comes later gets its line here, and a use in `use`."""
    files = Path(lab.folder, "gateway-0", "xds")
    return {
        key.name: key
        for key in (
            Planted("provider one", "sk-planted-one-5b1e77aa02", frozenset({"upstream one"})),
            Planted("provider two", "sk-planted-two-c90d14f6e8", frozenset({"upstream two"})),
            # Copies of requests go there, with its own key.
            Planted("provider shade", "sk-planted-shade-0b7e21cd94", frozenset({"upstream shade"})),
            # Of a tier that no class names: it is configured, and nobody is ever sent it.
            Planted("provider idle", "sk-planted-idle-3377aaef10"),
            Planted("consumer", "tw-planted-consumer-88d1f0a2b4c6"),
            Planted("consumer, suspended", "tw-planted-suspended-17c3e5f7a9b1"),
            Planted("gateway's certificate", pem_body((files / "tls.key").read_bytes()), frozenset({"file tls.key"})),
            Planted("operator's certificate", pem_body(lab.server_certificate.private_key_pem.bytes())),
        )
    }


def configured(keys, one, two, own, shade):
    """Two providers, an engine, a shadow, and who may call them."""

    def provider(name, port, **more):
        return external(f"http://localhost:{port}/v1", name, allowPlaintext=True, clearance="Public",
                        credentialsRef={"name": name, **more})  # fmt: skip

    tiers = [{"name": "one", "weight": 100}, {"name": "two", "weight": 0}, {"name": "compact", "weight": 0}]
    fallback = {"attempts": 3, "when": ["ServerError"]}
    held = {
        "legal/one": {"token": keys["provider one"].value},
        "legal/two": {"token": keys["provider two"].value + "\n"},
        "legal/shade": {"token": keys["provider shade"].value},
        "legal/idle": {"token": keys["provider idle"].value},
        "legal/app-key": {"token": keys["consumer"].value},
        "legal/old-key": {"token": keys["consumer, suspended"].value},
    }
    return world(
        [in_cluster(), provider("one", one.port), provider("two", two.port, header="x-own-key", prefix=""),
         provider("idle", two.port), provider("shade", shade.port)],
        [policy(classes=[{"name": "all", "tiers": tiers, "fallback": fallback,
                          "shadow": {"tier": "shade", "percent": 100}}])],
        {"legal/compact": [own.port]},
        held,
        [consumer(), consumer("old", suspend=True, apiKeys=[{"name": "old-key"}])],
    )  # fmt: skip


async def use(lab, keys) -> list:
    """Every way in which a key can be presented, rightly and wrongly; the answers."""
    answers = []
    for name in ("consumer", "consumer, suspended"):
        value = keys[name].value
        for headers in ({"authorization": f"Bearer {value}"}, {"api-key": value}, {"x-api-key": value}):
            answers += [await lab.ask("assistant", headers=headers, stream=stream) for stream in (False, True)]
        answers.append(await lab.ask("no-such-model", headers={"authorization": f"Bearer {value}"}))
        answers.append(await lab.ask("assistant", headers={"authorization": f"Basic {value}"}))
        both = {"authorization": f"Bearer {keys['consumer'].value}", "cookie": f"k={value}", "x-goog-api-key": value}
        answers.append(await lab.ask("assistant", path=f"/v1/chat/completions?key={value}", headers=both))
    return answers


async def search(tmp_path, make_upstream) -> tuple[dict, dict]:
    """Where keys are found, and where they should be."""
    one, two = await make_upstream("one"), await make_upstream("two", fault="503")
    own, shade = await make_upstream("own"), await make_upstream("shade")
    collector = Collector()
    tracing = Tracing("127.0.0.1", await collector.start(), 100.0)
    lab = Lab(tmp_path, authentication=Authentication(()), tracing=tracing)
    with structlog.testing.capture_logs() as operators_log:
        try:
            await lab.start()
            keys = plant(lab)
            given = configured(keys, one, two, own, shade)
            await lab.settle(given)
            answers = []
            for faults in (("", "503"), ("503", ""), ("503", "503")):  # each tier is the last one in turn
                one.fault, two.fault = faults
                answers += await use(lab, keys)
            assert {answer.status for answer in answers} >= {200, 401, 404}
            assert all(each.seen for each in (one, two, own, shade))
            await lab.eventually(lambda: len(collector.spans) >= 20, seconds=15)
            await lab.eventually(lambda: lab.log().count('"request_id"') >= len(answers))
            kept = last_good.pack(lab.config.namespaces["legal"])
            # A refusal: Envoy's words go into statuses, Events and logs.
            await lab.publish(dataclasses.replace(given), bad_cluster)
            await lab.eventually(lambda: lab.xds.reports()["legal"].message)
            async with lab.http.get(f"http://127.0.0.1:{lab.metrics_port}/stats/prometheus") as response:
                metrics = await response.text()
            shown = served.show(given, lab.options)
            folder = lab.folder / "gateway-0"
            files = {f"file {file.name}": file.read_bytes() for file in (folder / "xds").iterdir() if file.is_file()}
            places = {
                **{f"upstream {up.name}": repr(up.seen) for up in (one, two, own, shade)},
                "answers": repr(answers),
                "gateway's log": lab.log(),
                "operator's log": repr(operators_log),
                "metrics": metrics,
                "spans": b"".join(collector.raw),
                "reports": repr(lab.xds.reports()),
                "last-good ConfigMap": json.dumps(kept),
                "last-good ConfigMap, unpacked": repr(last_good.unpack("legal", kept)),
                "envoy-config": json.dumps(envoy_config.document(shown)),
                "what Envoy validates": json.dumps(envoy_config._static(shown, lab.options, shown.owners)),
                "world": repr(given),
                "configuration": repr(lab.config.namespaces) + repr(lab.config.limits),
                "bootstrap": (folder / bootstrap.BOOTSTRAP_FILE).read_bytes(),
                "admin": b"".join(
                    admin_answers(lab, f"GET {path}") for path in ("/config_dump", "/clusters", "/ready")
                ),
                **files,
            }
            assert all(places.values())
            return found(keys.values(), places), expected(keys.values())
        finally:
            await lab.stop()
            await collector.server.stop(0)


async def test_planted_keys_are_found_where_they_belong_and_nowhere_else(tmp_path, upstream):
    seen, wanted = await search(tmp_path, upstream)
    assert seen == wanted


async def test_the_search_finds_a_key_that_goes_to_another_provider(tmp_path, upstream, monkeypatch):
    plain, one = secrets.secret, "sk-planted-one-5b1e77aa02"
    monkeypatch.setattr(secrets, "secret", lambda name, value: plain(name, one if name == "legal/two" else value))
    seen, wanted = await search(tmp_path, upstream)
    assert seen["provider one"] == wanted["provider one"] | {"upstream two"}
    assert seen["provider two"] == frozenset()


async def test_the_search_finds_a_key_that_is_shown(tmp_path, upstream, monkeypatch):
    monkeypatch.setattr(redact, "sensitive", lambda _: False)
    monkeypatch.setattr(served, "_values", lambda _: frozenset())
    seen, wanted = await search(tmp_path, upstream)
    for name in ("provider one", "consumer"):
        assert seen[name] == wanted[name] | {"envoy-config", "what Envoy validates"}


async def test_the_search_knows_a_key_in_disguise():

    key = Planted("k", "sk-planted-/+=1234567890")
    for shift in range(3):
        hidden = base64.b64encode(b"y" * shift + key.value.encode() + b"z" * 5).decode()
        assert found([key], {"here": hidden, "there": "nothing"}) == {"k": {"here"}}
    assert found([key], {"q": "?a=sk-planted-%2F%2B%3D1234567890"}) == {"k": {"q"}}
    assert found([key], {"q": key.value[:-1]}) == {"k": frozenset()}


async def test_the_channels_resources_are_the_only_ones_that_hold_keys():
    """In the clear there, where Envoy needs them: SDS, and the consumers' keys; nothing else is to become one."""
    keys = {"one": "sk-planted-one-5b1e77aa02", "app": "tw-planted-consumer-88d1f0a2b4c6"}

    given = world(
        [external("https://p.example/v1", "one", credentialsRef={"name": "one"})],
        [policy(classes=[{"name": "all", "tiers": [{"name": "one"}]}])],
        {},
        {"legal/one": {"token": keys["one"]}, "legal/app-key": {"token": keys["app"]}},
        [consumer()],
    )
    config = gateway.render(given, GatewayOptions(authentication=Authentication(())))
    bundle = config.namespaces["legal"]
    of_namespace = (bundle.clusters, bundle.endpoints, bundle.secrets, bundle.scopes)
    resources = [*(one for each in (*of_namespace, *config.shared.values()) for one in each.values()), bundle.routes]
    holders = {each["@type"] for each in resources if any(key in json.dumps(each) for key in keys.values())}
    assert holders == {protos.SECRET, protos.EXTENSION}
    assert Key("legal", "one") in given.secrets
