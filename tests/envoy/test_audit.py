"""The checker of sensitivity, against requests that are routed one by one through the finished resources.

`TIERWISE_AUDIT_POLICIES` and `TIERWISE_AUDIT_VIOLATIONS` set how many are generated (`make audit-sensitivity`: 100,000
policies, 1,000 violations).
"""

import copy
import dataclasses
import os
import random
import re

import pytest
from envoy_lab import external, in_cluster, policy, world

from tierwise.adapters.xds.catalog import Catalog, prepare
from tierwise.api.namespace_budget import NamespaceBudget
from tierwise.api.scalars import Sensitivity
from tierwise.render.envoy import audit, gateway
from tierwise.render.envoy.fields import BYTES_HEADER, SENSITIVITY_HEADER

POLICIES = int(os.environ.get("TIERWISE_AUDIT_POLICIES", "300"))
VIOLATIONS = int(os.environ.get("TIERWISE_AUDIT_VIOLATIONS", "60"))
LEVELS = list(Sensitivity)
HEADERS = [None, "", "nonsense", "Public,Restricted", "confidential", "RESTRICTED", *(level.value for level in LEVELS)]
LEGAL = "legal"
ENGINE = {"engine": "VLLM", "image": "vllm/vllm-openai:v0.24.0", "replicas": {"min": 1, "max": 4}}
PICKED = {"inCluster": {**ENGINE, "endpointPickerRef": {"name": "epp", "failureMode": "FailOpen"}}}
CLOSED = {"inCluster": {**ENGINE, "endpointPickerRef": {"name": "epp"}}}


# Objects --------------------------------------------------------------------------------------------------------------


def some_world(dice):
    """Tiers of any clearance, and one or two policies whose classes match by header, size and model."""
    names = ["a", "b", "c", "d"][: dice.randint(1, 4)]
    tiers = []
    for name in names:
        clearance = dice.choice(LEVELS).value
        if dice.random() < 0.3:
            tiers.append(external(f"https://{name}.example/v1", name=name, clearance=clearance))
        else:
            tiers.append(in_cluster(name=name, clearance=clearance, **dice.choice([{}, {}, PICKED, CLOSED])))
    policies = [some_policy(dice, f"p{number}", names) for number in range(dice.randint(1, 2))]
    return world(tiers, policies)


def some_policy(dice, name, tiers):
    models = [f"{name}-m{number}" for number in range(dice.randint(1, 2))]
    least = dice.choice(LEVELS)
    classes = []
    count = dice.randint(1, 4)
    for number in range(count):
        chosen = dice.sample([*tiers, "gone"], dice.randint(1, len(tiers)))
        one = {"name": f"c{number}", "tiers": [{"name": tier} for tier in chosen]}
        if dice.random() < 0.4:
            one["sensitivity"] = dice.choice([level for level in LEVELS if level >= least]).value
        if dice.random() < 0.4:
            one["shadow"] = {"tier": dice.choice([*tiers, "gone"]), "percent": dice.randint(1, 100)}
        if dice.random() < 0.6:
            one["fallback"] = {
                "attempts": dice.randint(1, 4),
                "when": ["ServerError", *dice.choice([[], ["Saturated"]])],
            }
        match = {}
        if dice.random() < 0.5:
            match["headers"] = [{"name": "x-kind", dice.choice(["value", "prefix"]): dice.choice(["red", "r", "blue"])}]
        if dice.random() < 0.3:
            match["promptTokens"] = {"min": dice.choice([1, 100, 1000])}
        if dice.random() < 0.2:
            match["models"] = [dice.choice(models)]
        if not match and number < count - 1:  # it would hide the classes after it
            match["headers"] = [{"name": "x-kind", "value": "red"}]
        if match:
            one["match"] = match
        classes.append(one)
    return policy(name, models=models, sensitivity=least.value, classes=classes)


# One request ----------------------------------------------------------------------------------------------------------


def requests_of(found):
    """Model, other headers and size: what tells classes apart."""
    for one in found.policies.values():
        for model in one.spec.models:
            for kind in (None, "red", "r2", "blue"):
                for size in (4, 4 * 500, 4 * 5000):
                    yield one, model, kind, size


def class_of(one, model, kind, size):
    """By the policy's spec."""
    for each in one.spec.classes:
        match = each.match
        if match is None:
            return each
        if match.models is not None and model not in match.models:
            continue
        if match.prompt_tokens is not None and size < 4 * (match.prompt_tokens.min or 0):
            continue
        wanted = match.headers or ()
        if all(kind is not None and (kind == h.value if h.value else kind.startswith(h.prefix)) for h in wanted):
            return each
    return None


def may_see(found, one, each, header):
    """Tiers that are cleared, by the words of the design."""
    asked = {level.value.lower(): level for level in LEVELS}
    levels = [one.spec.sensitivity]
    if each is not None and each.sensitivity is not None:
        levels.append(each.sensitivity)
    if header is not None:
        levels.append(asked.get(header.lower(), Sensitivity.RESTRICTED))
    return {key.name for key, tier in found.tiers.items() if tier.spec.effective_clearance >= max(levels)}


def reached(bundle, model, kind, size, header):
    """Tiers that the request can get to: the first route that matches, all its groups, and mirrors."""
    host = bundle.routes["virtual_hosts"][0]
    given = {SENSITIVITY_HEADER: header, "x-kind": kind, BYTES_HEADER: str(size), ":method": "POST"}
    leaf = host["matcher"]["matcher_tree"]["exact_match_map"]["map"][model]
    for route in leaf["action"]["typed_config"]["routes"]:
        match = route["match"]
        path = "path" not in match or match["path"] == "/v1/chat/completions"
        if path and all(holds(one, given.get(one["name"])) for one in match.get("headers", ())):
            break
    else:
        return set()
    if "route" not in route:
        return set()
    action = route["route"]
    groups = action["inline_cluster_specifier_plugin"]["extension"]["typed_config"]["priority_groups"]
    clusters = [one["cluster_name"] for group in groups for one in group["clusters"]]
    for mirror in action.get("request_mirror_policies", ()):
        headers = {each["append"]["header"]["key"]: each["append"]["header"]["value"] for each in mirrored(mirror)}
        clusters.append(headers["x-tierwise-shadow"] if mirror["cluster"] == "tierwise_shadow" else mirror["cluster"])
    return {cluster.split("/")[1].removesuffix("@guarded") for cluster in clusters}


def mirrored(mirror):
    return mirror.get("request_headers_mutations", [])


def holds(condition, value):
    if value is None:
        return False
    if "present_match" in condition:
        return True
    if "range_match" in condition:
        return condition["range_match"]["start"] <= int(value) < condition["range_match"]["end"]
    compared = condition["string_match"]
    same = (
        value == compared["exact"]
        if "exact" in compared
        else value.startswith(compared["prefix"])
        if "prefix" in compared
        else re.fullmatch(compared["safe_regex"]["regex"], value) is not None
    )
    return same != condition.get("invert_match", False)


def leaks(found, bundle):
    """Whether some request reaches a tier that may not see it."""
    for one, model, kind, size in requests_of(found):
        each = class_of(one, model, kind, size)
        for header in HEADERS:
            if reached(bundle, model, kind, size, header) - may_see(found, one, each, header):
                return True
    return False


# What can go wrong ----------------------------------------------------------------------------------------------------


def leaves(bundle):
    return list(bundle.routes["virtual_hosts"][0]["matcher"]["matcher_tree"]["exact_match_map"]["map"].values())


def routed(bundle):
    lists = [leaf["action"]["typed_config"]["routes"] for leaf in leaves(bundle)]
    return [(routes, route) for routes in lists for route in routes if "route" in route]


def groups_of(route):
    return route["route"]["inline_cluster_specifier_plugin"]["extension"]["typed_config"]["priority_groups"]


def another_tier(dice, bundle):
    _, route = dice.choice(routed(bundle))
    dice.choice(dice.choice(groups_of(route))["clusters"])["cluster_name"] = dice.choice(sorted(bundle.clusters))


def one_more_attempt(dice, bundle):
    _, route = dice.choice(routed(bundle))
    cluster = {"cluster_name": dice.choice(sorted(bundle.clusters)), "weight": 100}
    groups_of(route).append({"name": "more", "clusters": [cluster]})


def a_level_forgotten(dice, bundle):
    routes, route = dice.choice(routed(bundle))
    routes.remove(route)


def another_order(dice, bundle):
    routes, _ = dice.choice(routed(bundle))
    dice.shuffle(routes)


def conditions_of_the_level(bundle):
    return [
        (route, one)
        for _, route in routed(bundle)
        for one in route["match"].get("headers", ())
        if one["name"] == SENSITIVITY_HEADER
    ]


def letters_that_count(dice, bundle):
    found = [one for _, one in conditions_of_the_level(bundle) if "string_match" in one]
    if found:
        regex = dice.choice(found)["string_match"]["safe_regex"]
        regex["regex"] = regex["regex"].removeprefix("(?i)")


def a_condition_forgotten(dice, bundle):
    found = [(r, one) for _, r in routed(bundle) for one in r["match"].get("headers", ())]
    found = [(route, one) for route, one in found if one["name"] != SENSITIVITY_HEADER]
    if found:
        route, one = dice.choice(found)
        route["match"]["headers"].remove(one)


def a_level_mistaken(dice, bundle):
    found = [one for _, one in conditions_of_the_level(bundle) if "string_match" in one]
    if found:
        dice.choice(found)["string_match"]["safe_regex"]["regex"] = f"(?i){dice.choice(LEVELS).value}"


def a_mirror(dice, bundle):
    _, route = dice.choice(routed(bundle))
    route["route"]["request_mirror_policies"] = [{"cluster": dice.choice(sorted(bundle.clusters))}]


def copies_of(bundle):
    return [one for _, route in routed(bundle) for one in route["route"].get("request_mirror_policies", ())]


def a_copy_to_another_tier(dice, bundle):
    found = copies_of(bundle)
    if found:
        mirrored(dice.choice(found))[0]["append"]["header"]["value"] = dice.choice(sorted(bundle.clusters))


def a_copy_of_another_route(dice, bundle):
    found = copies_of(bundle)
    if found:
        _, route = dice.choice(routed(bundle))
        route["route"]["request_mirror_policies"] = [copy.deepcopy(dice.choice(found))]


def routes_of_another_class(dice, bundle):
    _, one = dice.choice(routed(bundle))
    _, other = dice.choice(routed(bundle))
    one["route"] = copy.deepcopy(other["route"])


MISTAKES = [
    another_tier,
    one_more_attempt,
    a_level_forgotten,
    another_order,
    letters_that_count,
    a_condition_forgotten,
    a_level_mistaken,
    a_mirror,
    a_copy_to_another_tier,
    a_copy_of_another_route,
    routes_of_another_class,
]


# Tests ----------------------------------------------------------------------------------------------------------------


def test_no_generated_policy_is_published_that_leaks_and_none_is_held_back():
    dice = random.Random(7)
    for _ in range(POLICIES):
        found = some_world(dice)
        config = gateway.render(found)
        assert config.invalid == {}
        assert audit.audit(config.namespaces[LEGAL], config.limits[LEGAL]) == ()
        assert not leaks(found, config.namespaces[LEGAL])


def test_every_seeded_violation_is_caught():
    dice = random.Random(11)
    caught = dict.fromkeys((mistake.__name__ for mistake in MISTAKES), 0)
    total = 0
    while total < VIOLATIONS:
        found = some_world(dice)
        config = gateway.render(found)
        bundle = copy.deepcopy(config.namespaces[LEGAL])
        if not routed(bundle):
            continue
        mistake = dice.choice(MISTAKES)
        mistake(dice, bundle)
        if not leaks(found, bundle):
            continue  # it did no harm
        total += 1
        assert audit.audit(bundle, config.limits[LEGAL]), mistake.__name__
        caught[mistake.__name__] += 1
    print(caught)
    assert sum(count > 0 for count in caught.values()) >= len(MISTAKES) - 2, "all kinds of mistakes were made"


def small(one=None):
    one = one or {"name": "c", "tiers": [{"name": "a"}]}
    found = world(
        [in_cluster(name="a", clearance="Restricted"), external("https://b.example/v1", name="b", clearance="Public")],
        [policy(models=["m"], sensitivity="Confidential", classes=[one])],
    )
    config = gateway.render(found)
    return config, copy.deepcopy(config.namespaces[LEGAL])


def rename_endpoints(bundle):
    bundle.clusters["legal/a"]["eds_cluster_config"]["service_name"] = "legal/b"


def point_elsewhere(bundle):
    lb = bundle.clusters["legal/b@provider"]["load_assignment"]["endpoints"][0]["lb_endpoints"][0]
    lb["endpoint"]["address"]["socket_address"]["address"] = "elsewhere.example"


def aggregate(bundle):
    bundle.clusters["legal/b@provider"]["cluster_type"]["typed_config"]["@type"] = (
        "type.googleapis.com/envoy.extensions.clusters.aggregate.v3.ClusterConfig"
    )


def past_the_relay(bundle):
    lb = bundle.clusters["legal/b"]["load_assignment"]["endpoints"][0]["lb_endpoints"][0]
    lb["endpoint"]["address"] = {"socket_address": {"address": "elsewhere.example", "port_value": 443}}


def another_listener(bundle):
    lb = bundle.clusters["legal/b"]["load_assignment"]["endpoints"][0]["lb_endpoints"][0]
    lb["endpoint"]["address"]["envoy_internal_address"]["server_listener_name"] = "tierwise"


def named_in(bundle, cluster):
    options = bundle.clusters[cluster]["typed_extension_protocol_options"]
    chain = next(iter(options.values()))["http_filters"]
    mutations = chain[0]["typed_config"]["mutations"]["request_mutations"]
    return chain, next(one["append"] for one in mutations if "x-tierwise-provider" in str(one.get("append")))


def another_provider(bundle):
    named_in(bundle, "legal/b")[1]["header"]["value"] = "sales/b@provider"


def provider_of_the_client(bundle):
    chain, named = named_in(bundle, "legal/b")
    mutations = chain[0]["typed_config"]["mutations"]["request_mutations"]
    mutations.remove({"append": named})


def a_second_word(bundle):
    chain, named = named_in(bundle, "legal/b")
    other = copy.deepcopy(chain[0])
    other["typed_config"]["mutations"]["request_mutations"] = [
        {"append": {**named, "header": {"key": "X-Tierwise-Provider", "value": "sales/b@provider"}}}
    ]
    chain.insert(1, other)


def a_script(bundle):
    chain, _ = named_in(bundle, "legal/b")
    chain.insert(1, {**chain[1], "name": "other"})


def a_processor(bundle):
    chain = next(iter(bundle.clusters["legal/a"]["typed_extension_protocol_options"].values()))["http_filters"]
    processor = "type.googleapis.com/envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor"
    chain.insert(1, {"name": "tierwise.request", "typed_config": {"@type": processor}})


def own_tier_through_the_relay(bundle):
    bundle.clusters["legal/a"] = {**copy.deepcopy(bundle.clusters["legal/b"]), "name": "legal/a"}


def no_provider(bundle):
    del bundle.clusters["legal/b@provider"]


def straight_to_the_provider(bundle):
    _, route = routed(bundle)[0]
    groups_of(route)[0]["clusters"][0]["cluster_name"] = "legal/b@provider"


def groups_of_the_request(bundle):
    _, route = routed(bundle)[0]
    extension = route["route"]["inline_cluster_specifier_plugin"]["extension"]
    extension["typed_config"]["override_metadata_namespace"] = "tierwise"


def script_of_a_route(kind, **fields):
    def mistake(bundle):
        _, route = routed(bundle)[0]
        script = {"@type": f"type.googleapis.com/envoy.extensions.filters.http.{kind}", **fields}
        route["typed_per_filter_config"] = {"tierwise.prefix": script}

    mistake.__name__ = next(iter(fields))
    return mistake


def mirror_all(bundle):
    bundle.routes["request_mirror_policies"] = [{"cluster": "legal/b"}]


def mirror_host(bundle):
    bundle.routes["virtual_hosts"][0]["request_mirror_policies"] = [{"cluster": "legal/b"}]


def by_header(bundle):
    _, route = routed(bundle)[0]
    route["route"] = {"cluster_header": "x-tier"}


def redirect(bundle):
    leaves(bundle)[0]["action"]["typed_config"]["routes"][0] = {"match": {"prefix": "/"}, "redirect": {}}


def others_too(bundle):
    _, route = routed(bundle)[0]
    matcher = bundle.routes["virtual_hosts"][0]["matcher"]
    config = matcher["on_no_match"]["action"]["typed_config"]
    config.pop("direct_response")
    config["route"] = copy.deepcopy(route["route"])
    groups_of(config)[0]["clusters"][0]["cluster_name"] = "legal/b"


def another_namespace(bundle):
    _, route = routed(bundle)[0]
    groups_of(route)[0]["clusters"][0]["cluster_name"] = "sales/a"


def small_with_a_copy():
    """Tier a is copied to; b may see nothing of it."""
    one = {"name": "c", "tiers": [{"name": "a"}], "shadow": {"tier": "a", "percent": 5}}
    return small(one)


def by_a_header_of_the_client(mirror):
    mirror["request_headers_mutations"][0]["append"]["header"]["value"] = "legal/%REQ(x-tier)%"


def by_cluster_header(mirror):
    del mirror["cluster"]
    mirror["cluster_header"] = "x-tier"


def to_where_the_client_says(mirror):
    del mirror["request_headers_mutations"][0]


def if_the_client_says_nothing_else(mirror):
    mirror["request_headers_mutations"][0]["append"]["append_action"] = "ADD_IF_ABSENT"


def said_twice(mirror):
    mirror["request_headers_mutations"].append(
        {
            "append": {
                "header": {"key": "X-Tierwise-Shadow", "value": "legal/b"},
                "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
            }
        }
    )


def taken_back(mirror):
    mirror["request_headers_mutations"].append({"remove": "x-tierwise-shadow"})


def plainly_to_another(mirror):
    mirror["request_headers_mutations"][0]["append"]["header"]["value"] = "legal/b"


def to_another_namespace(mirror):
    mirror["request_headers_mutations"][0]["append"]["header"]["value"] = "sales/a"


def straight_to_another(mirror):
    mirror["cluster"] = "legal/b"


@pytest.mark.parametrize(
    "mistake",
    [
        by_a_header_of_the_client,
        by_cluster_header,
        to_where_the_client_says,
        if_the_client_says_nothing_else,
        said_twice,
        taken_back,
        plainly_to_another,
        to_another_namespace,
        straight_to_another,
    ],
)
def test_ways_out_through_a_copy_are_seen(mistake):
    config, bundle = small_with_a_copy()
    assert audit.audit(bundle, config.limits[LEGAL]) == ()
    mistake(copies_of(bundle)[0])
    (first, *_) = audit.audit(bundle, config.limits[LEGAL])
    assert first.startswith(audit.PREFIX)


def card_to_a_tier(bundle):
    """The route that tells of one model leads to a tier instead."""
    found = [r for leaf in leaves(bundle) for r in leaf["action"]["typed_config"]["routes"]]
    card = next(r for r in found if r["match"].get("prefix") == "/v1/models/")
    card.pop("direct_response")
    card["route"] = copy.deepcopy(routed(bundle)[0][1]["route"])


@pytest.mark.parametrize(
    "mistake",
    [
        card_to_a_tier,
        rename_endpoints,
        point_elsewhere,
        aggregate,
        past_the_relay,
        another_listener,
        another_provider,
        provider_of_the_client,
        a_second_word,
        a_script,
        a_processor,
        own_tier_through_the_relay,
        no_provider,
        straight_to_the_provider,
        groups_of_the_request,
        script_of_a_route("lua.v3.LuaPerRoute", name="prefix", source_code={"inline_string": "x"}),
        script_of_a_route("lua.v3.LuaPerRoute", name="other"),
        script_of_a_route("ext_proc.v3.ExtProcPerRoute", name="prefix"),
        mirror_all,
        mirror_host,
        by_header,
        redirect,
        others_too,
        another_namespace,
    ],
)
def test_ways_out_that_no_renderer_of_ours_takes_are_seen(mistake):
    config, bundle = small()
    assert audit.audit(bundle, config.limits[LEGAL]) == ()
    mistake(bundle)
    (first, *_) = audit.audit(bundle, config.limits[LEGAL])
    assert first.startswith(audit.PREFIX)


def test_what_is_unsafe_is_not_published_and_says_why(monkeypatch):
    monkeypatch.setattr("tierwise.core.routing.cleared", lambda _tier, _level: True)  # a defect of the renderer
    found = world(
        [external("https://b.example/v1", name="b", clearance="Public")],
        [policy(models=["m"], sensitivity="Confidential", classes=[{"name": "c", "tiers": [{"name": "b"}]}])],
    )
    config = gateway.render(found)
    assert LEGAL not in config.namespaces
    text = config.invalid[LEGAL]
    assert "requests of model m that are Restricted could reach tier b (cleared for Public)" in text


def test_not_even_a_last_good_is_served_when_it_is_unsafe(monkeypatch):
    """What holds an older configuration to the limits of now has a defect: nothing is served, and why is told."""
    config, _ = small()
    catalog = Catalog()
    catalog.publish(prepare(config, {}))
    catalog.acknowledge(LEGAL)
    monkeypatch.setattr("tierwise.render.envoy.limits.hold", lambda routes, _limits: routes)
    limits = dataclasses.replace(config.limits[LEGAL], clearances={"a": Sensitivity.INTERNAL})
    later = dataclasses.replace(config, namespaces={}, invalid={LEGAL: "broken"}, limits={LEGAL: limits})
    assert LEGAL in catalog.publish(prepare(later, {}))
    assert LEGAL not in catalog.served
    assert "could reach tier a" in catalog.message(LEGAL)


def test_a_denial_that_may_lapse_hides_nothing_behind_it():
    """Who answers by itself only while somebody decides lets requests on to what follows."""
    told = {"action": "Deny", "since": "2026-11-25T12:00:00Z", "resetsAt": "2026-12-01T00:00:00Z"}

    def rendered(failure):
        found = NamespaceBudget.parse(
            {
                "metadata": {"name": "ceiling", "namespace": LEGAL, "uid": "u"},
                "spec": {
                    "ceiling": "1",
                    "ladder": [{"atPercent": 100, "action": "Deny"}],
                    "failurePolicy": failure,
                    "unpriced": "Allow",
                },
                "status": {"enforcement": told},
            }
        )
        tiers = [in_cluster("a", clearance="Restricted"), in_cluster("b", clearance="Public")]
        given = policy(sensitivity="Restricted", classes=[{"name": "all", "tiers": [{"name": "a"}, {"name": "b"}]}])
        return gateway.render(world(tiers, [given], budgets=[found]))

    config = rendered("Open")
    bundle, limits = config.namespaces[LEGAL], config.limits[LEGAL]
    assert not audit.audit(bundle, limits)
    spoilt = copy.deepcopy(bundle.routes)
    (host,) = spoilt["virtual_hosts"]
    leaf = host["matcher"]["matcher_tree"]["exact_match_map"]["map"]["assistant"]
    routes = leaf["action"]["typed_config"]["routes"]
    assert "runtime_fraction" in routes[0]["match"]
    for route in routes:
        if "route" in route:
            plugin = route["route"]["inline_cluster_specifier_plugin"]["extension"]["typed_config"]
            plugin["priority_groups"][0]["clusters"][0]["cluster_name"] = f"{LEGAL}/b"
    assert audit.audit(dataclasses.replace(bundle, routes=spoilt), limits)
    assert not rendered("Closed").invalid
