"""A clearance that was lowered holds at once, also while gateways refuse the configuration that says so."""

import re

from envoy_lab import budget, in_cluster, policy, world
from hypothesis import given, settings
from hypothesis import strategies as st

from tierwise.adapters.xds.catalog import Catalog, prepare
from tierwise.api.scalars import Sensitivity
from tierwise.render.envoy import gateway, limits, throttle
from tierwise.render.envoy.fields import SENSITIVITY_HEADER
from tierwise.render.envoy.protos import ROUTES

LEVELS = st.sampled_from(list(Sensitivity))
GUARDED = {"when": ["Saturated"], "attempts": 3}
CLEARANCES = st.fixed_dictionaries({"a": LEVELS, "b": LEVELS}, optional={"c": LEVELS})


def tiers_of(clearances):
    return [in_cluster(name=name, clearance=level.value) for name, level in clearances.items()]


def policy_of(sensitivity, **more):
    one = {"name": "x", "tiers": [{"name": "a"}, {"name": "b"}, {"name": "c"}], **more}
    return policy(sensitivity=sensitivity.value, classes=[one])


def config_of(clearances, sensitivity, **more):
    return gateway.render(world(tiers_of(clearances), [policy_of(sensitivity, **more)]))


def reached(routes, header):
    """Tiers that a request with this header can get to, as Envoy would choose: the first route whose headers match."""
    leaf = routes["virtual_hosts"][0]["matcher"]["matcher_tree"]["exact_match_map"]["map"]["assistant"]
    for route in leaf["action"]["typed_config"]["routes"]:
        if all(matches(one, header) for one in route["match"].get("headers", [])):
            break
    if "route" not in route:
        return set()
    groups = route["route"]["inline_cluster_specifier_plugin"]["extension"]["typed_config"]["priority_groups"]
    copies = route["route"].get("request_mirror_policies", [])
    headers = [each["append"]["header"] for copy in copies for each in copy["request_headers_mutations"]]
    clusters = [one["cluster_name"] for group in groups for one in group["clusters"]]
    clusters += [header["value"] for header in headers if header["key"] == "x-tierwise-shadow"]
    return {cluster.split("/")[1].removesuffix("@guarded") for cluster in clusters}


def matches(condition, header):
    assert condition["name"] == SENSITIVITY_HEADER
    if header is None:
        return False
    if "present_match" in condition:
        return True
    same = re.fullmatch(condition["string_match"]["safe_regex"]["regex"], header) is not None
    return same != condition.get("invert_match", False)


def asked_for(header):
    levels = {level.value.lower(): level for level in Sensitivity}
    return Sensitivity.PUBLIC if header is None else levels.get(header.lower(), Sensitivity.RESTRICTED)


HEADERS = [None, "", "nonsense", "Public,Restricted", *(level.value for level in Sensitivity), "confidential"]


@settings(max_examples=80, deadline=None)
@given(CLEARANCES, LEVELS, CLEARANCES, LEVELS)
def test_an_older_configuration_never_reaches_a_tier_that_is_not_cleared_now(before, asked, now, required):
    good = config_of(before, asked, shadow={"tier": "b", "percent": 10}, fallback=GUARDED).namespaces["legal"]
    held = limits.hold(good.routes, config_of(now, required).limits["legal"])
    for header in HEADERS:
        needed = max(required, asked_for(header))
        assert reached(held, header) <= {name for name, clearance in now.items() if clearance >= needed}


@settings(max_examples=25, deadline=None)
@given(CLEARANCES, LEVELS)
def test_limits_that_have_not_changed_change_nothing(clearances, sensitivity):
    config = config_of(clearances, sensitivity, shadow={"tier": "b", "percent": 10}, fallback=GUARDED)
    assert limits.hold(config.namespaces["legal"].routes, config.limits["legal"]) == config.namespaces["legal"].routes


def test_a_refused_configuration_does_not_keep_a_clearance_that_it_lowers():
    public, restricted = Sensitivity.PUBLIC, Sensitivity.RESTRICTED
    catalog = Catalog()
    catalog.publish(prepare(config_of({"a": restricted, "b": restricted}, Sensitivity.CONFIDENTIAL), {}))
    catalog.acknowledge("legal")
    good = catalog.served["legal"]
    bad = {"match": {"headers": [{"name": "x-team", "pattern": "a.*"}]}}  # stands for what Envoy would refuse
    newest = config_of({"a": restricted, "b": public}, Sensitivity.CONFIDENTIAL, **bad)
    catalog.publish(prepare(newest, {}))
    assert catalog.refuse("legal", newest.namespaces["legal"].hash, "no") == {"legal"}
    served = catalog.served["legal"]
    assert served.hash == good.hash
    assert served.of(ROUTES) != good.of(ROUTES)
    assert b"legal/a" in served.of(ROUTES)["legal"].data
    assert b"legal/b" not in served.of(ROUTES)["legal"].data


def test_a_tier_that_nobody_relieves_any_more_is_not_guarded_any_more():
    """Its requests would else be refused, and no attempt would follow."""
    restricted, public = Sensitivity.RESTRICTED, Sensitivity.PUBLIC
    good = config_of({"a": restricted, "b": restricted}, restricted, fallback=GUARDED).namespaces["legal"]
    assert "legal/a@guarded" in str(good.routes)
    held = limits.hold(good.routes, config_of({"a": restricted, "b": public}, restricted).limits["legal"])
    assert "legal/a" in str(held)
    assert "@guarded" not in str(held)


def routes_of(found):
    leaf = found["virtual_hosts"][0]["matcher"]["matcher_tree"]["exact_match_map"]["map"]["assistant"]
    return {each["name"]: each for each in leaf["action"]["typed_config"]["routes"] if "name" in each}


def test_a_refused_configuration_does_not_keep_a_budget_from_denying():
    """Whoever may write policies, and not budgets, could else spend on by a policy that Envoy refuses."""
    classes = [{"name": name, "tiers": [{"name": "a"}]} for name in ("x", "kept")]
    classes[0]["match"] = {"headers": [{"name": "x-team", "value": "a"}]}
    tiers = [in_cluster(name="a")]
    free = gateway.render(world(tiers, [policy(classes=classes)]))
    exempt = [{"policy": "assistant", "class": "kept"}]
    ended = budget(action="Deny", exempt=exempt)
    good = free.namespaces["legal"].routes
    held = routes_of(
        limits.hold(good, gateway.render(world(tiers, [policy(classes=classes)], budgets=[ended])).limits["legal"])
    )
    refused = [each for name, each in held.items() if "/x/" in name]
    assert refused
    for each in refused:
        assert each["direct_response"]["status"] == 429
        assert "legal/ceiling" in str(each["direct_response"]["body"])
    assert all("route" in each for name, each in held.items() if "/kept/" in name), "an exempt class is left alone"
    same = limits.hold(good, free.limits["legal"])
    assert same == good
    withheld = gateway.render(world(tiers, [policy(classes=classes)], budgets=[budget(unpriced="Deny")])).limits[
        "legal"
    ]
    assert withheld.clearances == {}, "a tier without a price takes nothing under a ceiling, by older routes neither"


def test_a_refused_configuration_does_not_keep_a_budget_from_throttling():
    classes = [{"name": name, "tiers": [{"name": "a"}]} for name in ("x", "kept")]
    classes[0]["match"] = {"headers": [{"name": "x-team", "value": "a"}]}
    tiers = [in_cluster(name="a")]

    def made(*budgets):
        return gateway.render(world(tiers, [policy(classes=classes)], budgets=budgets))

    def rates(held):
        return {
            name.split("/")[2]: throttle.of(each["metadata"]["filter_metadata"])
            for name, each in routes_of(held).items()
        }

    exempt = [{"policy": "assistant", "class": "kept"}]
    slow = made(budget(action="Throttle", requestsPerSecond="2.5", exempt=exempt))
    slower = made(budget(action="Throttle", requestsPerSecond="0.5", exempt=exempt))
    free = made()
    wanted = rates(slow.namespaces["legal"].routes)
    assert wanted["x"]["requests_bucket"] == "legal/ceiling"
    for good in (free, slower):
        found = rates(limits.hold(good.namespaces["legal"].routes, slow.limits["legal"]))
        assert found["x"] == wanted["x"], "the rate of now, whatever the last good one said"
    assert rates(limits.hold(free.namespaces["legal"].routes, slow.limits["legal"]))["kept"] == {}, "left alone"
    # What is decided no more is not let go by a configuration that nobody could check.
    assert rates(limits.hold(slow.namespaces["legal"].routes, free.limits["legal"])) == wanted
    assert limits.hold(slow.namespaces["legal"].routes, slow.limits["legal"]) == slow.namespaces["legal"].routes
