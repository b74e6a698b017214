"""Trigger, relist, Secrets, signals, health and settings, each by itself."""

import asyncio
import base64
import json
import logging
from datetime import timedelta
from pathlib import Path

import aiohttp
import pytest
import runtime_fakes as make

from tierwise import logs
from tierwise.adapters import kinds
from tierwise.adapters.cluster import ForbiddenError, NotFoundError, UnavailableError, error_of
from tierwise.adapters.prometheus import PrometheusError
from tierwise.core.signals import Missing, Reading, Signals
from tierwise.core.world import Key
from tierwise.render.envoy.options import Tracing
from tierwise.runtime import relist, targets
from tierwise.runtime.assembly import gateway_options
from tierwise.runtime.relist import Relister
from tierwise.runtime.secrets import SecretReader
from tierwise.runtime.signals import SignalReader
from tierwise.runtime.telemetry import HANGS_AFTER_SECONDS, Health, Server
from tierwise.runtime.trigger import Trigger
from tierwise.settings import Settings, SettingsError

# --- trigger


async def test_a_trigger_times_out_without_a_poke():
    assert await Trigger(0.0).wait(0.01) is False


async def test_pokes_are_gathered_and_none_is_lost():
    trigger = Trigger(0.02)
    trigger.poke()
    trigger.poke()
    assert await trigger.wait(1) is True
    assert await trigger.wait(0.01) is False
    waiting = asyncio.create_task(trigger.wait(1))
    await asyncio.sleep(0.01)
    trigger.poke()
    assert await waiting is True


async def test_the_earliest_appointment_counts():
    trigger = Trigger(0.0)
    trigger.poke_later(30)
    trigger.poke_later(0.01)
    trigger.poke_later(60)
    async with asyncio.timeout(1):
        assert await trigger.wait(10) is False


# --- relist


async def test_the_first_list_insists_on_every_kind(cluster, store, monkeypatch):
    monkeypatch.setattr(relist, "FIRST_RETRY_SECONDS", (0.0,))
    cluster.place(make.tier())
    cluster.fail["list", "ModelTier"] = [NotFoundError("no such kind"), UnavailableError("starting")]
    cluster.fail["list", "Service"] = [ForbiddenError("role misses services")]
    await Relister(cluster, store, namespaces=(), interval_seconds=60).first()
    assert store.synced
    assert [name for verb, name in cluster.calls if name == "ModelTier"] == ["ModelTier"] * 3


async def test_each_namespace_is_listed_when_some_are_named(cluster, store, now):
    for namespace in ("a", "b", "c"):
        cluster.place(make.tier(namespace=namespace))
    await Relister(cluster, store, namespaces=("a", "b"), interval_seconds=60).first()
    assert [key.namespace for key in store.snapshot(now).tiers] == ["a", "b"]


async def test_a_missed_deletion_is_found_and_counted(cluster, store, now):
    found = []
    relister = Relister(cluster, store, namespaces=(), interval_seconds=60, ghosts=lambda *one: found.append(one))
    cluster.place(make.tier())
    await relister.first()
    cluster.objects.clear()
    cluster.version += 1
    await relister.first()
    assert store.snapshot(now).tiers == {}
    assert found == [(kinds.MODEL_TIER, 1)]


# --- Secrets


def secret(name="provider-key", value=b"hunter2"):
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": "team-a"},
        "data": {"token": base64.b64encode(value).decode(), "broken": "%%%"},
    }


async def test_only_referenced_secrets_are_read_and_forgotten_with_their_reference(cluster, store, now):
    cluster.place(secret())
    cluster.place(secret("unrelated"))
    store.put(kinds.MODEL_TIER, make.external())
    reader = SecretReader(cluster, store)
    await reader.first()
    assert [name for verb, name in cluster.calls if verb == "get"] == ["provider-key"]
    assert store.snapshot(now).secrets[Key("team-a", "provider-key")].data == {"token": b"hunter2"}
    store.remove(kinds.MODEL_TIER, make.external(version=99))
    await reader.first()
    assert store.snapshot(now).secrets == {}


async def test_unreadable_is_gone_but_unanswered_is_not(cluster, store, now):
    cluster.place(secret())
    store.put(kinds.MODEL_TIER, make.external())
    reader = SecretReader(cluster, store)
    await reader.first()
    cluster.fail["get", "provider-key"] = [UnavailableError("down")]
    await reader.first()
    assert store.snapshot(now).secrets
    cluster.fail["get", "provider-key"] = [ForbiddenError("no")]
    await reader.first()
    assert store.snapshot(now).secrets == {}


async def test_a_new_reference_is_read_at_once_and_a_rotation_in_time(cluster, store, now):
    cluster.place(secret())
    reader = SecretReader(cluster, store, refresh_seconds=0.05)
    store.on_change = lambda _: reader.poke()
    task = asyncio.create_task(reader.run())
    try:
        store.put(kinds.MODEL_TIER, make.external())
        await asyncio.sleep(0.03)
        assert store.snapshot(now).secrets
        cluster.place(secret(value=b"rotated"))
        await asyncio.sleep(0.2)
        assert store.snapshot(now).secrets[Key("team-a", "provider-key")].data["token"] == b"rotated"
    finally:
        task.cancel()


@pytest.mark.usefixtures("logging_restored")
async def test_no_value_reaches_the_log(cluster, store, capfd):
    logs.configure("json", "DEBUG")
    cluster.place(secret())
    store.put(kinds.MODEL_TIER, make.external())
    reader = SecretReader(cluster, store)
    await reader.first()
    cluster.fail["get", "provider-key"] = [UnavailableError("down"), NotFoundError("x")]
    await reader.first()
    await reader.first()
    printed = capfd.readouterr()
    assert "provider-key" in printed.err
    assert "hunter2" not in printed.err + printed.out


# --- signals


class Source:
    def __init__(self, *answers):
        self.answers = list(answers)
        self.asked = []

    async def read(self, wanted, _now):
        self.asked.append(wanted)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def forget_usage(self):
        self.asked.append("forgot")


class Clock:
    def __init__(self, now):
        self.now = now

    def __call__(self):
        return self.now


async def test_a_silent_prometheus_ages_signals_and_never_zeroes_them(store, metrics, now):
    clock = Clock(now)
    source = Source(Signals(now, gateways_up=Reading(2, 1)), PrometheusError("refused"), PrometheusError("refused"))
    pokes = []
    reader = SignalReader(source, store, metrics, poke=lambda: pokes.append(1), now=clock, interval_seconds=1)
    await reader.once()
    for age in (11, 21):
        clock.now += timedelta(seconds=10)
        await reader.once()
        signals = store.snapshot(now).signals
        assert signals.gateways_up == Reading(2, age)
        assert signals.error == "refused"
    assert reader.age_seconds() == 20
    assert len(pokes) == 3


async def test_a_defect_while_reading_is_no_answer(store, metrics, now):
    reader = SignalReader(Source(KeyError("value")), store, metrics, poke=int, now=Clock(now), interval_seconds=1)
    await reader.once()
    assert isinstance(store.snapshot(now).signals.gateways_up, Missing)


async def test_without_any_answer_signals_are_missing_with_the_reason(store, metrics, now):
    reader = SignalReader(
        Source(PrometheusError("refused")), store, metrics, poke=int, now=Clock(now), interval_seconds=1
    )
    await reader.once()
    assert store.snapshot(now).signals.gateways_up == Missing("refused")
    assert reader.age_seconds() is None


async def test_usage_is_recovered_from_the_checkpoint_until_a_read_succeeds(store, metrics, now):
    budget = {
        "apiVersion": "tierwise.dev/v1alpha1",
        "kind": "NamespaceBudget",
        "metadata": {"name": "b", "namespace": "team-a", "resourceVersion": "5"},
        "spec": {
            "period": "Month",
            "timeZone": "UTC",
            "ceiling": "10.00",
            "currency": "USD",
            "ladder": [{"atPercent": 70, "action": "Notify"}],
        },
        "status": {
            "period": {"start": "2026-11-01T00:00:00Z", "end": "2026-12-01T00:00:00Z"},
            "checkpoint": {"time": "2026-11-25T07:55:00Z"},
        },
    }
    store.put(kinds.NAMESPACE_BUDGET, budget)
    assert store.snapshot(now).invalid == {}
    source = Source(PrometheusError("refused"), Signals(now), Signals(now))
    reader = SignalReader(source, store, metrics, poke=int, now=Clock(now), interval_seconds=1)
    for _ in range(3):
        await reader.once()
    since = now.timestamp() - 300
    assert [wanted.ledger_since for wanted in source.asked] == [{"team-a": (since,)}, {"team-a": (since,)}, {}]
    reader.start_over()
    assert source.asked[-1] == "forgot"


def test_targets_know_engines_and_stated_names(store, now):
    own = make.tier("own")
    own["spec"]["inCluster"] |= {"metrics": {"names": {"runningRequests": "my_running"}}}
    store.put(kinds.MODEL_TIER, own)
    store.put(kinds.MODEL_TIER, make.external())
    found = targets.targets_of(store.snapshot(now), recover=False)
    assert found.in_cluster["team-a", "own"].running == ("my_running",)
    assert found.in_cluster["team-a", "own"].waiting == ("vllm:num_requests_waiting",)
    assert found.external == {("team-a", "frontier")}


# --- health and telemetry


async def fetch(port, path):
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}{path}") as response:
        return response.status, await response.text()


async def test_liveness_follows_the_heartbeats_and_readiness_the_preconditions(metrics):
    seconds = [0.0]
    health = Health(clock=lambda: seconds[0])
    health.wait_for("synced", "everything has to be listed first")
    server = Server(metrics, health, host="127.0.0.1", port=0)
    port = await server.start()
    try:
        health.beat("planner")
        assert await fetch(port, "/livez") == (200, "ok\n")
        assert await fetch(port, "/readyz") == (503, "everything has to be listed first\n")
        health.reached("synced")
        assert (await fetch(port, "/readyz"))[0] == 200
        seconds[0] = HANGS_AFTER_SECONDS + 1
        status, text = await fetch(port, "/livez")
        assert status == 503
        assert "planner" in text
        health.forget("planner")
        assert (await fetch(port, "/livez"))[0] == 200
        status, text = await fetch(port, "/metrics")
        assert status == 200
        assert "tierwise_build_info" in text
    finally:
        await server.stop()


# --- settings, logs, errors


@pytest.mark.parametrize(
    "wrong",
    [
        {"identity": "Not A Name"},
        {"namespaces": ("ok", "Not/ok")},
        {"prometheus_url": "prometheus:9090"},
        {"xds_port": 70000},
        {"metrics_interval_seconds": 0.1},
        {"metrics_window_seconds": 1},
        {"leader_election": False},
        {"tracing_endpoint": "http://collector:4317"},
        {"tracing_endpoint": "collector:70000"},
        {"tracing_sampling_percent": 101.0},
        {"insecure_xds": True, "certificates": Path("/x")},
    ],
)
def test_a_wrong_setting_is_named(wrong):
    with pytest.raises(SettingsError, match=next(iter(wrong)).removesuffix("s").replace("_", ".")[:9]):
        Settings(**{"identity": "op-0"} | wrong)


def test_tracing_is_what_is_set_and_off_else():
    given = Settings(identity="op-0", tracing_endpoint="otel.monitoring.svc:4317", tracing_sampling_percent=12.5)
    assert gateway_options(given).tracing == Tracing("otel.monitoring.svc", 4317, 12.5)
    assert gateway_options(Settings(identity="op-0")).tracing is None


@pytest.mark.usefixtures("logging_restored")
def test_json_logs_are_one_object_a_line_without_local_variables(capfd):
    logs.configure("json", "INFO")

    def fail(password):
        raise ValueError("boom", len(password))

    try:
        fail("hunter2")
    except ValueError:
        logging.getLogger("other").exception("failed")
    lines = capfd.readouterr().err.strip().splitlines()
    record = json.loads(lines[-1])
    assert (record["message"], record["level"], record["logger"]) == ("failed", "error", "other")
    assert "hunter2" not in lines[-1]


@pytest.mark.parametrize(
    ("status", "name"),
    [
        *((status, "Forbidden") for status in (401, 403)),
        (404, "NotFound"),
        (409, "Conflict"),
        *((status, "Invalid") for status in (400, 422)),
        *((status, "Unavailable") for status in (0, 429, 500, 503)),
    ],
)
def test_errors_are_typed_by_what_can_be_done(status, name):
    error = error_of(status, "reason", '{"message": "what the server said"}', "PATCH /x")
    assert type(error).__name__ == f"{name}Error"
    assert "what the server said" in str(error)
