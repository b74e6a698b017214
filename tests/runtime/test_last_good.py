"""What is kept for fresh gateways: only what every gateway took, once, and for as long as there is a policy."""

from dataclasses import replace

import pytest
import runtime_fakes as make

from tierwise.adapters import kinds
from tierwise.core.world import GatewayReport
from tierwise.render.envoy import gateway, last_good
from tierwise.runtime import last_good as keeper

KEY = b"k" * 32


def policy(name="assistant", gateways=()):
    return {
        "apiVersion": "tierwise.dev/v1alpha1",
        "kind": "RoutingPolicy",
        "metadata": {"name": name, "namespace": "team-a", "uid": f"uid-{name}", "resourceVersion": "40"},
        "spec": {
            "models": [name],
            "sensitivity": "Internal",
            "classes": [{"name": "routine", "tiers": [{"name": "compact"}]}],
        },
        "status": {"gateways": list(gateways)},
    }


@pytest.fixture
def world(store, now):
    store.put_signing_key(KEY)
    store.put(kinds.MODEL_TIER, make.tier())
    store.put(kinds.ROUTING_POLICY, policy())
    return store.snapshot(now)


def said(config, **changes):
    wanted = config.namespaces["team-a"].hash
    report = GatewayReport(wanted, wanted, connected=2, acknowledged=2, refused=0, message="")
    return {"team-a": replace(report, **changes)}


def entry(name, version, connected=1, acknowledged=1, refused=0):
    counts = {"connected": connected, "acknowledged": acknowledged, "refused": refused}
    return {"name": name, "hash": version, **counts}


def test_what_all_gateways_took_is_kept_once(world, store, now):
    config = gateway.render(world)
    found, too_large = keeper.manifests(replace(world, gateways=said(config)), config.namespaces, KEY)
    assert too_large == ()
    assert found[0]["data"]["hash"] == config.namespaces["team-a"].hash
    assert [owner["uid"] for owner in found[0]["metadata"]["ownerReferences"]] == ["uid-assistant"]
    assert "controller" not in found[0]["metadata"]["ownerReferences"][0]
    store.put(kinds.CONFIG_MAP, found[0] | {"metadata": found[0]["metadata"] | {"resourceVersion": "50"}})
    again = store.snapshot(now)
    assert again.last_good["team-a"].owned
    assert last_good.unpack("team-a", again.last_good["team-a"].manifest["data"]).routes is not None
    assert keeper.manifests(replace(again, gateways=said(config)), config.namespaces, KEY) == ((), ())


def test_a_new_policy_becomes_an_owner_too(world, store, now):
    config = gateway.render(world)
    found, _ = keeper.manifests(replace(world, gateways=said(config)), config.namespaces, KEY)
    store.put(kinds.CONFIG_MAP, found[0] | {"metadata": found[0]["metadata"] | {"resourceVersion": "50"}})
    store.put(kinds.ROUTING_POLICY, policy("second"))
    later = store.snapshot(now)
    config = gateway.render(later)
    found, _ = keeper.manifests(replace(later, gateways=said(config)), config.namespaces, KEY)
    assert len(found[0]["metadata"]["ownerReferences"]) == 2


@pytest.mark.parametrize("changes", [{"connected": 0, "acknowledged": 0}, {"connected": 0, "refused": 1}])
def test_a_replica_without_gateways_keeps_nothing(world, changes):
    config = gateway.render(world)
    assert keeper.manifests(replace(world, gateways=said(config, **changes)), config.namespaces, KEY) == ((), ())


def test_what_was_taken_is_kept_while_something_newer_is_refused(world):
    config = gateway.render(world)
    later = said(config, wanted_hash="newer", refused=2, message="no")
    assert keeper.manifests(replace(world, gateways=later), config.namespaces, KEY)[0]


def test_one_replica_keeps_it_and_a_dead_one_is_not_waited_for(world, store, now):
    config = gateway.render(world)
    version = config.namespaces["team-a"].hash

    def keeps(*entries, live=None):
        body = policy(gateways=entries)
        body["metadata"]["resourceVersion"] = str(100 + keeps.count)
        keeps.count += 1
        store.put(kinds.ROUTING_POLICY, body)
        later = replace(store.snapshot(now), live_replicas=live, gateways=said(config))
        assert later.replica == "op-0"
        return bool(keeper.manifests(later, config.namespaces, KEY)[0])

    keeps.count = 0
    assert keeps(entry("op-1", version))
    assert keeps(entry("op-1", "older"))
    assert not keeps(entry("op-1", version, refused=1)), "a gateway of another replica refused it"
    assert not keeps(entry("a-first", version))
    assert keeps(entry("a-first", version, connected=0))
    assert keeps(entry("a-first", version), live=frozenset({"op-0"}))


def test_what_is_too_large_for_a_configmap_is_named(world, monkeypatch):
    config = gateway.render(world)
    monkeypatch.setattr(keeper, "MAX_BYTES", 100)
    assert keeper.manifests(replace(world, gateways=said(config)), config.namespaces, KEY) == ((), ("team-a",))


def test_what_no_operator_signed_is_not_there(world, store, now):
    config = gateway.render(world)
    found, _ = keeper.manifests(replace(world, gateways=said(config)), config.namespaces, KEY)

    def shown(version, **changes):
        metadata = found[0]["metadata"] | {"resourceVersion": str(version)} | changes.pop("metadata", {})
        store.put(kinds.CONFIG_MAP, found[0] | {"metadata": metadata} | changes)
        return store.snapshot(now).last_good

    assert shown(50)
    assert not shown(51, metadata={"annotations": {}})
    assert not shown(52, data=found[0]["data"] | {"bundle": "another"})
    assert "team-b" not in shown(53, metadata={"namespace": "team-b"}), "copied from another namespace"
    assert "team-a" in shown(54)
    store.put_signing_key(b"")
    assert not store.snapshot(now).last_good, "without a key nothing can be told"
