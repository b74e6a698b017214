"""The decision what to send, against a model of Envoy that checks order: make before break, one owner per response."""

import hashlib
import json
from collections import deque

from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tierwise.adapters.xds.catalog import SHARED, Served
from tierwise.adapters.xds.server import told
from tierwise.adapters.xds.session import Refused, Request, Session
from tierwise.render.envoy.fields import DEFAULT_ROUTES
from tierwise.render.envoy.protos import CLUSTER, ENDPOINTS, EXTENSION, LISTENER, ROUTES, SCOPE, Encoded


def resource(type_url, name, **content):
    data = json.dumps(content, sort_keys=True).encode()
    return Encoded(type_url, name, data, hashlib.sha256(data).hexdigest()[:8])


def served(owner, tiers, used, hosts, generation, bad):
    """A namespace: `tiers` name -> version of its cluster; its routes use `used`; `bad`: a type to refuse."""
    clusters = {f"{owner}/{t}": resource(CLUSTER, f"{owner}/{t}", v=v) for t, v in tiers.items()}
    if bad == CLUSTER:  # it has the innocent ones of the same response refused as well
        clusters[f"{owner}/bad"] = resource(CLUSTER, f"{owner}/bad", v=0, bad=True)
    addresses = {name: resource(ENDPOINTS, name, v=generation) for name in clusters}
    routes = resource(ROUTES, owner, uses=sorted(f"{owner}/{t}" for t in used), v=generation, bad=bad == ROUTES)
    keys = [f"n:{owner}", *(f"h:{h}" for h in hosts)]
    scopes = {k: resource(SCOPE, k, to=owner) for k in keys} if used else {}
    found = {CLUSTER: clusters, ENDPOINTS: addresses, SCOPE: scopes, ROUTES: {owner: routes} if used else {}}
    return Served(owner, f"{owner}-{generation}", found)


BROUGHT = "tierwise.gateways"
"""A cluster that newer gateways bring along: this one never asks for its endpoints, and must not wait for them."""
COMMON = Served(
    SHARED,
    "",
    {
        LISTENER: {"l": resource(LISTENER, "l")},
        ROUTES: {DEFAULT_ROUTES: resource(ROUTES, DEFAULT_ROUTES, uses=[], v=0)},
        SCOPE: {"d:": resource(SCOPE, "d:", to=DEFAULT_ROUTES)},
        ENDPOINTS: {BROUGHT: resource(ENDPOINTS, BROUGHT)},
    },
)


class ModelEnvoy:
    """As much of Envoy as order matters for. `check` fails where a real one would fail requests."""

    def __init__(self):
        self.has = {CLUSTER: {}, ENDPOINTS: {}, SCOPE: {}, ROUTES: {}, LISTENER: {}}
        self.warm = set()
        self.listening = False

    def connect(self):
        self.out = deque()
        self.asked = {ENDPOINTS: set(), ROUTES: set()}
        self.started = set()
        for type_url in (CLUSTER, LISTENER):
            self.start(type_url)
        if self.has[SCOPE] or self.has[LISTENER]:
            self.start(SCOPE)
        self.subscribe()

    def start(self, type_url):
        self.started.add(type_url)
        versions = {name: r.version for name, r in self.has[type_url].items()}
        self.out.append(Request(type_url, versions=versions))

    def subscribe(self):
        wanted = {
            ENDPOINTS: {*self.has[CLUSTER]},
            ROUTES: {json.loads(scope.data)["to"] for scope in self.has[SCOPE].values()},
        }
        for type_url, names in wanted.items():
            new, old = names - self.asked[type_url], self.asked[type_url] - names
            if new or old:
                first = type_url not in self.started
                self.started.add(type_url)
                versions = {n: self.has[type_url][n].version for n in new if n in self.has[type_url]} if first else {}
                self.out.append(Request(type_url, tuple(sorted(new)), tuple(sorted(old)), versions))
                self.asked[type_url] = names
            for name in old:
                self.has[type_url].pop(name, None)

    def take(self, response):
        """Apply, then answer."""
        type_url = response.type_url
        contents = {r.name: json.loads(r.data) for r in response.resources}
        if type_url == ROUTES:
            assert len(response.resources) == 1, "one route configuration per response"
        assert len(response.owners) <= 1 or (type_url == SCOPE and not self.listening)
        bad = [name for name, content in contents.items() if content.get("bad")]
        if type_url == ROUTES:
            for content in contents.values():
                missing = [name for name in content["uses"] if name not in self.has[CLUSTER]]
                bad += missing
                assert not [n for n in content["uses"] if n in self.has[CLUSTER] and n not in self.warm], "not warm yet"
                assert not missing, "routes before their clusters"
        for r in response.resources:
            if r.name in bad or (bad and type_url == ROUTES):
                continue
            if r.name not in self.asked.get(type_url, {r.name}):
                continue  # on its way while it was unsubscribed from
            if type_url == CLUSTER and self.has[CLUSTER].get(r.name) != r:
                self.warm.discard(r.name)  # it warms beside the old one; its endpoints have to come again
            self.has[type_url][r.name] = r
            if type_url == ENDPOINTS and r.name in self.has[CLUSTER]:
                self.warm.add(r.name)
        for name in response.removed:
            if type_url == CLUSTER:
                users = [n for n, r in self.has[ROUTES].items() if name in json.loads(r.data)["uses"]]
                assert not users, "a cluster goes before the routes that use it"
            self.has[type_url].pop(name, None)
        if type_url == SCOPE:
            self.listening = True
        self.out.append(Request(type_url, nonce=response.nonce, error="refused" if bad else None))
        if type_url == CLUSTER and LISTENER not in self.started:
            self.start(LISTENER)
        if type_url == LISTENER and SCOPE not in self.started:
            self.start(SCOPE)
        self.subscribe()


tiers = st.dictionaries(st.sampled_from("abc"), st.integers(0, 2), max_size=3)


class Delivery(RuleBasedStateMachine):
    @initialize()
    def begin(self):
        self.served = {SHARED: COMMON}
        self.good = {}
        self.generation = 0
        self.hosts = {}
        self.envoy = ModelEnvoy()
        self.session = None
        self.reconnect()

    @rule()
    def reconnect(self):
        self.session = Session()
        self.wire = deque()
        self.envoy.connect()

    @rule(
        owner=st.sampled_from(["n1", "n2"]),
        tiers=tiers,
        data=st.data(),
        bad=st.sampled_from([None, None, None, ROUTES, CLUSTER]),
    )
    def publish(self, owner, tiers, data, bad):
        self.generation += 1
        used = data.draw(st.sets(st.sampled_from(sorted(tiers)), min_size=1)) if tiers else set()
        self.hosts[owner] = {"h"} if data.draw(st.booleans()) and used else set()
        changed = {owner}
        other = "n2" if owner == "n1" else "n1"
        if self.hosts[owner] and self.hosts.get(other):
            self.hosts[owner] = set()
        if tiers:
            self.served[owner] = served(owner, tiers, used, self.hosts[owner], self.generation, bad)
        else:
            self.served.pop(owner, None)
        self.session.touch(changed)

    @precondition(lambda self: self.envoy.out or self.wire)
    @rule(steps=st.integers(1, 6), envoy_first=st.booleans())
    def exchange(self, steps, envoy_first):
        for _ in range(steps):
            self.step(envoy_first=envoy_first)

    def step(self, *, envoy_first=True):
        if envoy_first and self.wire:
            self.envoy.take(self.wire.popleft())
        if self.envoy.out:
            self.session.receive(self.envoy.out.popleft())
        self.wire.extend(self.session.respond(self.served))
        if not envoy_first and self.wire:
            self.envoy.take(self.wire.popleft())

    @invariant()
    def what_routes_use_is_there(self):
        for routes in self.envoy.has[ROUTES].values():
            for name in json.loads(routes.data)["uses"]:
                assert name in self.envoy.has[CLUSTER]

    def teardown(self):
        """When what was refused is taken away, Envoy ends up with exactly what is served, and we know it."""
        if self.session is None:
            return
        self.generation += 1
        for owner, each in list(self.served.items()):
            if owner != SHARED:
                kept = {
                    name.split("/")[1]: content["v"]
                    for name, content in ((r.name, json.loads(r.data)) for r in each.of(CLUSTER).values())
                    if not content.get("bad")
                }
                self.served[owner] = served(owner, kept, list(kept), self.hosts[owner], self.generation, None)
        self.session.touch({"n1", "n2"})
        for _ in range(500):
            self.step()
            if not self.wire and not self.envoy.out:
                break
        else:
            raise AssertionError("they never come to rest")
        for type_url in (CLUSTER, ENDPOINTS, SCOPE, ROUTES, LISTENER):
            wanted = {n: r for each in self.served.values() for n, r in each.of(type_url).items() if n != BROUGHT}
            assert self.envoy.has[type_url] == wanted, type_url
        assert all(self.session.acknowledged(each) for each in self.served.values())


TestDelivery = Delivery.TestCase
TestDelivery.settings = settings(
    max_examples=60, stateful_step_count=20, deadline=None, phases=(Phase.explicit, Phase.generate, Phase.shrink)
)


def test_what_was_refused_beside_something_bad_is_sent_again_with_a_good_bundle():
    """A fresh gateway gets the newest bundle first; refused, it gets the last good one, whose clusters are the same."""
    run = Delivery()
    run.begin()
    run.served["n1"] = served("n1", {"a": 0, "b": 0}, ["a"], set(), 1, CLUSTER)
    run.session.touch({"n1"})
    for _ in range(30):
        run.step()
    assert not run.session.acknowledged(run.served["n1"])
    run.served["n1"] = served("n1", {"a": 0, "b": 0}, ["a"], set(), 2, None)
    run.session.touch({"n1"})
    for _ in range(30):
        run.step()
    assert run.session.acknowledged(run.served["n1"])
    assert set(run.envoy.has[ROUTES]) == {DEFAULT_ROUTES, "n1"}


def test_what_is_told_of_a_refusal_holds_no_callers_key():
    words = (
        'goo.gle/debugstr\nextension_config {\n  credentials {\n    key: "tw-secret"\n  }\n}\n: field: "engine_type"'
    )
    assert told(Refused("", "", EXTENSION, words)) == 'field: "engine_type"'
    assert "tw-secret" not in told(Refused("", "", EXTENSION, "Duplicate credential key: 'tw-secret'"))
    assert told(Refused("legal", "", ROUTES, words)) == words
