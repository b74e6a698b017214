"""Which bundle of a namespace is served."""

import dataclasses

from envoy_lab import in_cluster, policy, world

from tierwise.adapters.xds.catalog import SHARED, Catalog, prepare
from tierwise.render.envoy import endpoints, gateway
from tierwise.render.envoy.protos import ENDPOINTS, SCOPE, encode


def rendered(model="m", *, ports=(1,), hosts=(), namespaces=("legal",)):
    tiers = [in_cluster(namespace=n, model=model) for n in namespaces]
    policies = [
        policy(
            namespace=n,
            hostnames=list(hosts) if n == namespaces[0] else [],
            classes=[{"name": "c", "tiers": [{"name": "compact"}]}],
        )
        for n in namespaces
    ]
    return gateway.render(world(tiers, policies, {f"{n}/compact": list(ports) for n in namespaces}))


def publish(catalog, config, good=None):
    return catalog.publish(prepare(config, good or {}))


def test_a_refusal_brings_the_last_good_back_with_the_addresses_of_now():
    catalog = Catalog()
    assert publish(catalog, rendered("one")) == {SHARED, "legal"}
    catalog.acknowledge("legal")
    good = catalog.served["legal"].hash
    assert publish(catalog, rendered("two", ports=(2,))) == {"legal"}
    refused = catalog.served["legal"].hash
    assert catalog.refuse("legal", refused, "no") == {"legal"}
    assert catalog.served["legal"].hash == good
    assert catalog.message("legal") == "no"
    assert catalog.served["legal"].of(ENDPOINTS) == prepare_endpoints(rendered("two", ports=(2,)))
    # The same render again stays refused, its addresses still count; another one is tried.
    assert publish(catalog, rendered("two", ports=(3,))) == {"legal"}
    assert catalog.served["legal"].hash == good
    assert publish(catalog, rendered("three")) == {"legal"}
    assert catalog.served["legal"].hash not in {good, refused}
    assert catalog.message("legal") == ""


def test_a_last_good_one_that_guards_a_tier_has_its_addresses_of_now():
    """Also where the newest, which is refused, guards it no more."""
    classes = [{"name": "c", "tiers": [{"name": "compact"}, {"name": "other"}]}]
    tiers = [in_cluster(), in_cluster("other")]

    def made(when, port):
        given = [{**classes[0], "fallback": {"when": [when], "attempts": 2}}]
        return gateway.render(world(tiers, [policy(classes=given)], {"legal/compact": [port]}))

    catalog = Catalog()
    publish(catalog, made("Saturated", 1))
    catalog.acknowledge("legal")
    newest = made("ServerError", 2)
    publish(catalog, newest)
    catalog.refuse("legal", newest.namespaces["legal"].hash, "no")
    found = catalog.served["legal"].of(ENDPOINTS)
    assert {"legal/compact", "legal/compact@limited"} <= found.keys()
    for name in ("legal/compact", "legal/compact@limited"):
        expected = endpoints.renamed(newest.namespaces["legal"].endpoints["legal/compact"], name)
        assert found[name] == encode(expected)


def prepare_endpoints(config):
    catalog = Catalog()
    publish(catalog, config)
    return catalog.served["legal"].of(ENDPOINTS)


def test_a_refused_bundle_never_becomes_good():
    catalog = Catalog()
    publish(catalog, rendered("one"))
    catalog.refuse("legal", catalog.served["legal"].hash, "no")
    catalog.acknowledge("legal")
    assert catalog.good == {}


def test_without_a_last_good_the_newest_stays_for_those_who_took_it():
    catalog = Catalog()
    publish(catalog, rendered("one"))
    hash_of = catalog.served["legal"].hash
    assert catalog.refuse("legal", hash_of, "no") == set()
    assert catalog.served["legal"].hash == hash_of


def test_a_late_refusal_of_what_is_no_longer_wanted_changes_nothing():
    catalog = Catalog()
    publish(catalog, rendered("one"))
    old = catalog.served["legal"].hash
    publish(catalog, rendered("two"))
    assert catalog.refuse("legal", old, "no") == set()
    assert catalog.message("legal") == ""


def test_a_kept_one_serves_after_a_restart_but_never_outranks_memory():
    kept = rendered("kept").namespaces["legal"]
    catalog = Catalog()
    publish(catalog, rendered("new"), {"legal": kept})
    catalog.refuse("legal", catalog.served["legal"].hash, "no")
    assert catalog.served["legal"].hash == kept.hash
    publish(catalog, rendered("newer"), {"legal": kept})
    catalog.acknowledge("legal")
    newer = catalog.served["legal"].hash
    publish(catalog, rendered("newest"), {"legal": kept})
    catalog.refuse("legal", catalog.served["legal"].hash, "no")
    assert catalog.served["legal"].hash == newer


def test_without_gateways_of_its_own_a_replica_follows_what_the_others_gateways_took():
    first, second = (rendered(model).namespaces["legal"] for model in ("first", "second"))
    catalog = Catalog()
    publish(catalog, rendered("first"), {"legal": first})
    publish(catalog, rendered("second"), {"legal": second})
    publish(catalog, rendered("broken"))
    catalog.refuse("legal", catalog.served["legal"].hash, "no")
    assert catalog.served["legal"].hash == second.hash


def test_a_replica_whose_gateways_have_left_follows_the_others_again():
    catalog = Catalog()
    publish(catalog, rendered("own"))
    catalog.acknowledge("legal")
    catalog.deserted()
    other = rendered("other").namespaces["legal"]
    publish(catalog, rendered("broken"), {"legal": other})
    catalog.refuse("legal", catalog.served["legal"].hash, "no")
    assert catalog.served["legal"].hash == other.hash


def test_a_namespace_that_can_not_be_rendered_keeps_its_last_good():
    catalog = Catalog()
    publish(catalog, rendered("one", namespaces=("legal", "sales")))
    catalog.acknowledge("legal")
    good = catalog.served["legal"].hash
    other = rendered("two", namespaces=("sales",))
    publish(catalog, dataclasses.replace(other, invalid={"legal": "nonsense"}))
    assert catalog.served["legal"].hash == good
    assert catalog.message("legal") == "nonsense"
    assert publish(catalog, rendered("two", namespaces=("sales",))) == {SHARED, "legal"} - {SHARED}
    assert "legal" not in catalog.served


def test_a_last_good_does_not_take_a_hostname_back_that_another_namespace_has_now():
    catalog = Catalog()
    publish(catalog, rendered("one", hosts=["h.example"], namespaces=("legal", "sales")))
    catalog.acknowledge("legal")
    catalog.acknowledge("sales")
    publish(catalog, rendered("two", hosts=["h.example"], namespaces=("sales", "legal")))
    catalog.refuse("legal", catalog.served["legal"].hash, "no")
    assert set(catalog.served["legal"].of(SCOPE)) == {"n:legal"}
    assert "h:h.example" in catalog.served["sales"].of(SCOPE)
