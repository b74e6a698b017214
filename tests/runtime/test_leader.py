"""One decides, never two; who stops hands over; who is cut off stops in time."""

import asyncio
import itertools
import json

import pytest
from aiohttp import web
from kubernetes.aio import client as kube

from tierwise.adapters import cluster as adapter
from tierwise.runtime import leader
from tierwise.runtime.leader import Leadership

PATH = "/apis/coordination.k8s.io/v1/namespaces/system/leases"


class Leases:
    """The Lease API, with optimistic locking; `down` makes it drop connections."""

    def __init__(self):
        self.lease = None
        self.version = itertools.count(1)
        self.down = False

    async def handle(self, request):
        if self.down:
            request.transport.close()
            return web.Response()
        body = json.loads(await request.read() or b"null")
        if request.method == "GET":
            missing = {"kind": "Status", "code": 404, "message": "not found"}
            return web.json_response(self.lease or missing, status=200 if self.lease else 404)
        if request.method == "POST":
            self.lease = body
        else:
            if body["metadata"].get("resourceVersion") != self.lease["metadata"]["resourceVersion"]:
                return web.json_response({"kind": "Status", "code": 409, "message": "conflict"}, status=409)
            if request.method == "PATCH":
                spec = self.lease["spec"] | body["spec"]
                body = self.lease | {"spec": {name: value for name, value in spec.items() if value is not None}}
            self.lease = body
        self.lease["metadata"]["resourceVersion"] = str(next(self.version))
        return web.json_response(self.lease)


@pytest.fixture
async def leases():
    leases = Leases()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", leases.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    leases.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield leases
    await runner.cleanup()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """The library wants at least one second for each."""
    monkeypatch.setattr(leader, "LEASE_SECONDS", 4)
    monkeypatch.setattr(leader, "RENEW_SECONDS", 1.3)
    monkeypatch.setattr(leader, "RETRY_SECONDS", 1.0)
    monkeypatch.setattr(leader, "CALL_SECONDS", 0.3)
    monkeypatch.setattr(leader, "STOP_SECONDS", 0.3)


class Replica:
    """Takes part, and keeps what happened to it."""

    def __init__(self, leases, name, log):
        self.name, self.log = name, log
        self.cluster = adapter.connect(kube.Configuration(host=leases.url), timeout_seconds=0.5)
        self.failures = []
        self.leadership = Leadership(
            self.cluster,
            name="lease",
            namespace="system",
            identity=name,
            decide=self.decide,
            failed=self.failures.append,
        )

    async def decide(self, undisturbed):
        self.log.append((self.name, "decides", undisturbed))
        try:
            await asyncio.Event().wait()
        finally:
            self.log.append((self.name, "stops"))

    def start(self):
        self.task = asyncio.create_task(self.leadership.run())

    async def stop(self):
        self.task.cancel()
        await asyncio.wait({self.task})
        await self.cluster.close()


async def until(check, seconds=12):
    async with asyncio.timeout(seconds):
        while not check():
            await asyncio.sleep(0.05)


async def test_one_decides_and_hands_over_at_once_when_it_stops(leases):
    log = []
    first, second = Replica(leases, "op-1", log), Replica(leases, "op-2", log)
    first.start()
    await until(lambda: log)
    second.start()
    await asyncio.sleep(2.5)
    assert log == [("op-1", "decides", False)]
    assert leases.lease["spec"]["holderIdentity"] == "op-1"
    await first.stop()
    assert "holderIdentity" not in leases.lease["spec"]
    await until(lambda: len(log) == 3, 2)
    assert log[1:] == [("op-1", "stops"), ("op-2", "decides", False)]
    await second.stop()


async def test_who_cannot_renew_stops_before_another_may_start_and_goes_on_undisturbed(leases):
    log = []
    replica = Replica(leases, "op-1", log)
    replica.start()
    await until(lambda: log)
    leases.down = True
    start = asyncio.get_running_loop().time()
    await until(lambda: ("op-1", "stops") in log)
    assert asyncio.get_running_loop().time() - start < leader.LEASE_SECONDS + 1
    assert not replica.leadership.leading
    leases.down = False
    await until(lambda: log.count(("op-1", "decides", True)) == 1)
    await replica.stop()
    assert replica.failures == []


async def test_another_in_between_is_noticed(leases):
    log = []
    replica = Replica(leases, "op-1", log)
    replica.start()
    await until(lambda: log)
    leases.lease["spec"] |= {"holderIdentity": "op-9"}
    leases.lease["metadata"]["resourceVersion"] = str(next(leases.version))
    await until(lambda: ("op-1", "stops") in log)
    await until(lambda: log[-1] == ("op-1", "decides", False))
    await replica.stop()


async def test_a_deciding_task_that_does_not_stop_ends_the_process(leases, monkeypatch):
    exits = []
    monkeypatch.setattr(leader.os, "_exit", exits.append)
    replica = Replica(leases, "op-1", [])
    release = asyncio.Event()

    async def stubborn(_undisturbed):
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue

    replica.leadership._decide = stubborn
    replica.start()
    await until(lambda: replica.leadership.leading)
    leases.down = True
    await until(lambda: exits)
    assert exits[0] == leader.EXIT_FENCED
    release.set()
    leases.down = False
    await replica.stop()


async def test_a_deciding_task_that_ends_by_itself_is_a_failure(leases):
    replica = Replica(leases, "op-1", [])

    async def broken(_undisturbed):
        raise ZeroDivisionError

    replica.leadership._decide = broken
    replica.start()
    await until(lambda: replica.failures)
    assert isinstance(replica.failures[0], ZeroDivisionError)
    await replica.stop()


def test_the_real_times_leave_no_overlap():
    """Checked on the module's own text: the fixture above shortens them."""
    source = {}
    for line in open(leader.__file__, encoding="utf-8"):  # noqa: PTH123, SIM115 - a few lines
        name, _, value = line.partition(" = ")
        if name.endswith("_SECONDS"):
            source[name] = float(value)
    worst = (
        source["RETRY_SECONDS"]
        + source["RENEW_SECONDS"]
        + 2 * source["CALL_SECONDS"]
        + source["RETRY_SECONDS"]
        + source["STOP_SECONDS"]
    )
    assert worst < source["LEASE_SECONDS"]
