"""The store is right whatever the order of arrival, and wakes nobody for nothing."""

import copy
from datetime import timedelta

import runtime_fakes as make
from hypothesis import given
from hypothesis import strategies as st

from tierwise.adapters import kinds
from tierwise.adapters.cluster import Listing
from tierwise.core.signals import CounterReading, Signals
from tierwise.core.world import Endpoint, Key, SecretData
from tierwise.runtime import last_good
from tierwise.runtime.store import Store

COMPACT = Key("team-a", "compact")


def test_nothing_is_known_before_every_kind_was_listed(store):
    for kind in kinds.WATCHED:
        assert not store.synced
        store.listed(kind)
    assert store.synced


def test_a_snapshot_is_sorted_parsed_and_stands_still(store, now):
    store.put(kinds.MODEL_TIER, make.tier("zeta"))
    store.put(kinds.MODEL_TIER, make.tier("alpha"))
    world = store.snapshot(now)
    assert [key.name for key in world.tiers] == ["alpha", "zeta"]
    assert world.tiers[Key("team-a", "zeta")].spec.model == "qwen3-8b"
    store.put(kinds.MODEL_TIER, make.tier("beta"))
    assert len(world.tiers) == 2
    assert len(store.snapshot(now).tiers) == 3


def test_older_versions_and_echoes_are_ignored(store, now, pokes):
    assert store.put(kinds.MODEL_TIER, make.tier(version=12, image="new"))
    count = len(pokes)
    assert not store.put(kinds.MODEL_TIER, make.tier(version=12, image="new"))
    assert not store.put(kinds.MODEL_TIER, make.tier(version=11, image="old"))
    assert len(pokes) == count
    assert store.snapshot(now).tiers[COMPACT].spec.in_cluster.image == "new"


def test_an_object_that_only_changed_its_version_wakes_nobody(store, pokes):
    store.put(kinds.DEPLOYMENT, make.deployment(version=20))
    count = len(pokes)
    assert not store.put(kinds.DEPLOYMENT, make.deployment(version=21))
    assert len(pokes) == count
    assert store.put(kinds.DEPLOYMENT, make.deployment(version=22, ready=2))


def test_an_autoscalers_readings_wake_nobody(store, pokes):
    scaler = {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "compact", "namespace": "team-a", "resourceVersion": "30"},
        "spec": {"minReplicas": 1},
        "status": {"currentReplicas": 1, "currentMetrics": [1]},
    }
    store.put(kinds.AUTOSCALER, scaler)
    count = len(pokes)
    later = copy.deepcopy(scaler)
    later["metadata"]["resourceVersion"] = "31"
    later["status"]["currentMetrics"] = [2]
    assert not store.put(kinds.AUTOSCALER, later)
    assert len(pokes) == count
    later = copy.deepcopy(later)
    later["metadata"]["resourceVersion"] = "32"
    later["spec"]["minReplicas"] = 2
    assert store.put(kinds.AUTOSCALER, later)


def test_gateways_are_only_woken_for_what_they_are_rendered_from(store, pokes):
    store.put(kinds.DEPLOYMENT, make.deployment())
    assert pokes == [False]
    store.put(kinds.MODEL_TIER, make.tier())
    assert pokes == [False, True]


def test_a_list_removes_ghosts_but_nothing_newer_than_itself(store, now):
    store.put(kinds.MODEL_TIER, make.tier("gone", version=10))
    store.put(kinds.MODEL_TIER, make.tier("new", version=60))
    ghosts = store.relist(kinds.MODEL_TIER, None, Listing((make.tier("kept", version=20),), "50"))
    assert ghosts == 1
    assert [key.name for key in store.snapshot(now).tiers] == ["kept", "new"]


def test_a_list_of_one_namespace_leaves_the_others_alone(store, now):
    store.put(kinds.MODEL_TIER, make.tier("a", namespace="team-a"))
    store.put(kinds.MODEL_TIER, make.tier("b", namespace="team-b"))
    store.relist(kinds.MODEL_TIER, "team-a", Listing((), "50"))
    assert [str(key) for key in store.snapshot(now).tiers] == ["team-b/b"]


def test_a_list_taken_before_a_deletion_does_not_bring_the_object_back(store, now):
    store.put(kinds.MODEL_TIER, make.tier(version=10))
    store.remove(kinds.MODEL_TIER, make.tier(version=55))
    store.relist(kinds.MODEL_TIER, None, Listing((make.tier(version=10),), "50"))
    assert store.snapshot(now).tiers == {}
    store.put(kinds.MODEL_TIER, make.tier(version=56))
    assert COMPACT in store.snapshot(now).tiers


def test_a_late_deletion_of_an_earlier_object_spares_its_successor(store, now):
    store.put(kinds.MODEL_TIER, make.tier(version=70))
    assert not store.remove(kinds.MODEL_TIER, make.tier(version=55))
    assert COMPACT in store.snapshot(now).tiers


@given(st.lists(st.tuples(st.integers(0, 2), st.booleans()), max_size=12), st.randoms())
def test_any_order_of_arrival_gives_the_same_world(history, shuffler):
    """Events of one history, delivered in any order, leave what the history left."""
    names = ["a", "b", "c"]
    events = []
    final = {}
    for version, (index, deleted) in enumerate(history, start=1):
        name = names[index]
        if deleted and name not in final:
            continue
        body = make.tier(name, version=version, image=f"image:{version}")
        events.append((deleted, body))
        if deleted:
            final.pop(name)
        else:
            final[name] = f"image:{version}"
    shuffler.shuffle(events)
    store = Store("op-0")
    for deleted, body in events:
        (store.remove if deleted else store.put)(kinds.MODEL_TIER, body)
    found = {key.name: tier.spec.in_cluster.image for key, tier in store.snapshot(make.NOW).tiers.items()}
    assert found == final


def test_an_invalid_object_is_reported_and_its_last_valid_spec_stays(store, now):
    store.put(kinds.MODEL_TIER, make.tier(version=10))
    broken = make.tier(version=11)
    broken["metadata"]["generation"] = 2
    broken["spec"]["inCluster"]["replicas"] = {"min": 5, "max": 1}
    broken["status"] = {"observedGeneration": 2}
    store.put(kinds.MODEL_TIER, broken)
    world = store.snapshot(now)
    assert world.tiers[COMPACT].spec.in_cluster.replicas.max == 4
    assert world.tiers[COMPACT].metadata.generation == 2
    assert world.tiers[COMPACT].status.observed_generation == 2
    assert "replicas" in str(world.invalid["ModelTier", COMPACT])
    assert world.invalid_bodies["ModelTier", COMPACT]["metadata"]["uid"] == "uid-compact"
    store.put(kinds.MODEL_TIER, make.tier(version=12))
    assert store.snapshot(now).invalid == {}


def test_an_object_that_never_was_valid_is_only_reported(store, now):
    broken = make.tier()
    del broken["spec"]["model"]
    store.put(kinds.MODEL_TIER, broken)
    world = store.snapshot(now)
    assert world.tiers == {}
    assert ("ModelTier", COMPACT) in world.invalid
    store.remove(kinds.MODEL_TIER, make.tier(version=99))
    assert store.snapshot(now).invalid == {}


def test_a_deployment_becomes_its_tiers_workload_without_managed_fields(store, now):
    store.put(kinds.DEPLOYMENT, make.deployment("some-name", owner="compact"))
    workload = store.snapshot(now).workloads[COMPACT]
    assert (workload.replicas, workload.ready_replicas, workload.spec_replicas) == (2, 1, 2)
    assert workload.owned
    assert workload.observed_current
    assert "managedFields" not in workload.manifest["metadata"]


def test_a_deployment_of_someone_else_is_not_owned(store, now):
    stranger = make.deployment()
    stranger["metadata"]["ownerReferences"][0]["apiVersion"] = "apps/v1"
    store.put(kinds.DEPLOYMENT, stranger)
    assert not store.snapshot(now).workloads[COMPACT].owned


def test_endpoints_of_all_slices_sorted_each_once(store, now):
    def piece(name, *entries):
        return {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "addressType": "IPv4",
            "metadata": {
                "name": name,
                "namespace": "team-a",
                "resourceVersion": "5",
                "labels": {"tierwise.dev/tier": "compact", "kubernetes.io/service-name": "compact"},
            },
            "ports": [{"port": 8000}],
            "endpoints": list(entries),
        }

    assert COMPACT not in store.snapshot(now).endpoints
    store.put(kinds.ENDPOINT_SLICE, piece("b", {"addresses": ["10.0.0.9"], "conditions": {"ready": True}}))
    ending = {"addresses": ["10.0.0.2"], "conditions": {"ready": False, "serving": True, "terminating": True}}
    store.put(kinds.ENDPOINT_SLICE, piece("a", ending, {"addresses": ["10.0.0.1"], "zone": "z1"}))
    assert store.snapshot(now).endpoints[COMPACT] == (
        Endpoint("10.0.0.1", 8000, ready=True, serving=True, terminating=False, zone="z1"),
        Endpoint("10.0.0.2", 8000, ready=False, serving=True, terminating=True),
        Endpoint("10.0.0.9", 8000, ready=True, serving=True, terminating=False),
    )


def test_only_the_signed_last_good_configmap_counts(store, now):
    store.put_signing_key(b"key")
    signed = {last_good.SIGNATURE: last_good.signature("team-a", {"a": "b"}, b"key")}
    for name, annotations in (("tierwise-gateway-last-good", signed), ("other", signed)):
        metadata = {
            "name": name,
            "namespace": "team-a",
            "resourceVersion": "7",
            "uid": name,
            "annotations": annotations,
        }
        store.put(kinds.CONFIG_MAP, {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"a": "b"}})
    found = store.snapshot(now).last_good
    assert {where: child.uid for where, child in found.items()} == {"team-a": "tierwise-gateway-last-good"}


def test_a_signature_of_an_earlier_version_is_genuine_and_no_other():
    made = last_good.signature("team-a", {"a": "b"}, b"key")
    scheme, _, code = made.partition(":")
    assert scheme == "hmac-sha256"

    def genuine(text, data=None):
        metadata = {"namespace": "team-a", "annotations": {last_good.SIGNATURE: text}}
        return last_good.genuine({"metadata": metadata, "data": data or {"a": "b"}}, b"key")

    assert genuine(made)
    assert genuine(code)
    assert not genuine(made, {"a": "c"})
    assert not genuine("hmac-sha256:")
    assert not genuine("")


def test_secrets_never_show(store, now):
    store.put_secret(Key("team-a", "key"), SecretData({"token": b"hunter2"}, "1"))
    world = store.snapshot(now)
    assert world.secrets[Key("team-a", "key")].data["token"] == b"hunter2"
    assert "hunter2" not in repr(world)


def reading(since, until, tokens):
    return CounterReading(1, 1, tokens, 0, 0, since, until)


def test_usage_adds_up_until_a_plan_has_counted_it(store, now):
    key = ("team-a", "compact")
    times = [now + timedelta(seconds=10 * step) for step in range(4)]
    store.put_signals(Signals(times[1], usage={key: reading(times[0], times[1], 5)}))
    store.put_signals(Signals(times[2], usage={key: reading(times[1], times[2], 7)}))
    world = store.snapshot(now)
    assert world.signals.usage[key].input_tokens == 12
    store.put_signals(Signals(times[3], usage={key: reading(times[2], times[3], 1)}))
    store.counted(world)
    left = store.snapshot(now).signals.usage[key]
    assert (left.input_tokens, left.since) == (1, times[2])
    store.counted(store.snapshot(now))
    assert store.snapshot(now).signals.usage == {}
