"""One object's trouble is its own, retries pause, nothing is written twice, nobody else's object is taken."""

import pytest
import runtime_fakes as make

from tierwise.adapters import kinds
from tierwise.adapters.cluster import ConflictError, ForbiddenError, InvalidError, UnavailableError
from tierwise.core.plan import EventRecord, ObjectRef, Plan, StatusApply
from tierwise.runtime.writer import TakenError, Writer, pause_seconds

REF = ObjectRef("tierwise.dev/v1alpha1", "ModelTier", "team-a", "compact", "uid-compact")


class Clock:
    def __init__(self):
        self.seconds = 0.0

    def __call__(self):
        return self.seconds


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def writer(cluster, store, metrics, now, clock):
    return Writer(cluster, store, metrics, identity="op-0", now=lambda: now, monotonic=clock, jitter=lambda: 0.4)


def wanted(name="compact", image="a"):
    manifest = make.deployment(name)
    del manifest["status"]
    for field in ("resourceVersion", "uid", "generation", "managedFields"):
        del manifest["metadata"][field]
    manifest["spec"]["image"] = image
    return manifest


def written(cluster, verb):
    return [call[1] for call in cluster.calls if call[0] == verb]


async def test_what_is_applied_is_in_the_store_at_once(writer, store, now):
    outcome = await writer.carry_out(Plan(apply=(wanted(),)))
    assert outcome.written == 1
    assert store.snapshot(now).workloads


async def test_the_same_again_is_not_written_until_something_changed(writer, cluster, store, metrics):
    for _ in range(3):
        await writer.carry_out(Plan(apply=(wanted(),)))
    assert written(cluster, "apply") == ["compact"]
    assert metrics.suppressed.labels(kind="Deployment")._value.get() == 2
    await writer.carry_out(Plan(apply=(wanted(image="b"),)))
    assert len(written(cluster, "apply")) == 2
    changed = await cluster.get(kinds.DEPLOYMENT, "team-a", "compact")
    changed["spec"]["image"] = "someone else's"
    store.put(kinds.DEPLOYMENT, cluster.place(changed))
    await writer.carry_out(Plan(apply=(wanted(image="b"),)))
    assert len(written(cluster, "apply")) == 3


async def test_an_object_of_a_kind_that_is_not_watched_is_written_now_and_then(writer, cluster, clock):
    scaled = {
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "ScaledObject",
        "metadata": wanted()["metadata"],
        "spec": {},
    }
    for _ in range(3):
        await writer.carry_out(Plan(apply=(scaled,)))
    assert len(written(cluster, "apply")) == 1
    clock.seconds += 601
    await writer.carry_out(Plan(apply=(scaled,)))
    assert len(written(cluster, "apply")) == 2


async def test_one_failure_does_not_stop_the_others_and_pauses(writer, cluster, clock):
    cluster.fail["apply", "bad"] = [InvalidError("no"), InvalidError("no")]
    plan = Plan(apply=(wanted("bad"), wanted("good")))
    outcome = await writer.carry_out(plan)
    assert (outcome.written, outcome.failed) == (2, 1), "the event about it counts too"
    assert outcome.retry_seconds > 5
    await writer.carry_out(plan)
    assert written(cluster, "apply").count("bad") == 1, "it waits"
    clock.seconds += outcome.retry_seconds + 0.1
    await writer.carry_out(plan)
    assert written(cluster, "apply").count("bad") == 2
    better = Plan(apply=(wanted("bad", image="better"),))
    outcome = await writer.carry_out(better)
    assert outcome.written == 1, "another manifest is tried at once"


async def test_a_defect_while_writing_is_that_objects_own(writer, cluster):
    cluster.fail["apply", "bad"] = [KeyError("spec")]
    outcome = await writer.carry_out(Plan(apply=(wanted("bad"), wanted("good"))))
    assert "good" in {name for _, _, name in cluster.objects}
    assert outcome.failed == 1


async def test_a_refusal_becomes_an_event_on_the_owner(writer, cluster):
    cluster.fail["apply", "bad"] = [ForbiddenError("role misses deployments")]
    await writer.carry_out(Plan(apply=(wanted("bad"),)))
    event = next(one for (kind, *_), one in cluster.objects.items() if kind == kinds.EVENT)
    assert event["regarding"]["kind"] == "ModelTier"
    assert event["reason"] == "ApplyFailed"
    assert "role misses deployments" in event["note"]


async def test_a_dead_api_server_is_not_asked_a_hundred_times(writer, cluster):
    cluster.fail["get", "*"] = UnavailableError("refused")
    outcome = await writer.carry_out(Plan(apply=tuple(wanted(f"d-{n}") for n in range(100))))
    assert outcome.failed == 100
    assert len(cluster.calls) < 15
    assert outcome.retry_seconds < 3


async def test_an_object_of_someone_else_is_left_alone(writer, cluster):
    foreign = make.deployment()
    foreign["metadata"]["labels"] = {}
    foreign["metadata"]["ownerReferences"] = []
    cluster.place(foreign)
    outcome = await writer.carry_out(Plan(apply=(wanted(),)))
    assert outcome.failed == 1
    assert written(cluster, "apply") == []
    assert "rename" in outcome.problems[0].note


async def test_an_object_of_an_earlier_tier_of_that_name_is_left_to_the_garbage_collector(writer, cluster):
    earlier = make.deployment()
    earlier["metadata"]["ownerReferences"][0]["uid"] = "uid-of-the-deleted"
    cluster.place(earlier)
    assert (await writer.carry_out(Plan(apply=(wanted(),)))).failed == 1
    cluster.objects.clear()


async def test_statuses_go_to_the_right_object_and_manager(writer, cluster, store):
    store.put(kinds.MODEL_TIER, cluster.place(make.tier()))
    await writer.carry_out(Plan(statuses=(StatusApply(REF, {"observedGeneration": 1}),)))
    await writer.statuses([StatusApply(REF, {"replicas": {"ready": 1}}, "gateway-op-0")])
    assert [call for call in cluster.calls if call[0] == "status"] == [
        ("status", "compact", "tierwise"),
        ("status", "compact", "tierwise-gateway-op-0"),
    ]


async def test_a_status_for_a_deleted_object_is_no_failure(writer):
    outcome = await writer.carry_out(Plan(statuses=(StatusApply(REF, {"observedGeneration": 1}),)))
    assert (outcome.written, outcome.failed) == (0, 0)


async def test_a_status_never_lands_on_a_successor(writer, cluster):
    cluster.place(make.tier() | {"metadata": make.tier()["metadata"] | {"uid": "another"}})
    outcome = await writer.carry_out(Plan(statuses=(StatusApply(REF, {"observedGeneration": 1}),)))
    assert outcome.failed == 1


async def test_an_event_is_recorded_once_an_hour(writer, cluster, clock):
    plan = Plan(events=(EventRecord(REF, "Normal", "Moved", "Rebalance", "n" * 3000),))
    for _ in range(3):
        await writer.carry_out(plan)
    events = [one for (kind, *_), one in cluster.objects.items() if kind == kinds.EVENT]
    assert len(events) == 1
    assert len(events[0]["note"]) == 1024
    assert events[0]["regarding"]["uid"] == "uid-compact"
    assert events[0]["eventTime"] == "2026-11-25T08:00:00.000000Z"
    clock.seconds += 3601
    await writer.carry_out(plan)
    assert len(written(cluster, "create")) == 2


async def test_deletions_name_the_uid(writer, cluster):
    cluster.place(make.deployment())
    ref = ObjectRef("apps/v1", "Deployment", "team-a", "compact", "uid-deployment-compact")
    wrong = ObjectRef("apps/v1", "Deployment", "team-a", "compact", "another")
    assert (await writer.carry_out(Plan(delete=(wrong,)))).failed == 1
    assert (await writer.carry_out(Plan(delete=(ref,)))).written == 1
    assert cluster.objects == {}


def test_pauses_grow_and_are_bounded():
    for error in (UnavailableError(""), ConflictError(""), TakenError(""), ForbiddenError("")):
        pauses = [pause_seconds(error, attempts) for attempts in range(1, 40)]
        assert pauses == sorted(pauses)
        assert pauses[-1] <= 300
    assert pause_seconds(ConflictError(""), 1) < pause_seconds(ForbiddenError(""), 1)
