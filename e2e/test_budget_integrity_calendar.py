"""A month's end and a clock change in a budget's time zone, live; clocks that are set, and operators with a late one.

Real operators, gateways and Prometheus; only the operators' wall clock is the test's (`shifted_operator.py`). Compared
is with the provider's own bill, whose times are the machine's, shifted likewise. Two passes, as one operator can not
wait for 22 hours: over the hour that occurs twice, and over the end of that month.

Operators start well before the moment that is crossed. When all is set up and before anybody spends, the whole world,
Prometheus with it, skips what is left until shortly before it: however long a machine takes, the rest is the same.
"""

import json
import os
import shutil
import signal
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

import budget_support
import shifted_operator
import support
from budget_support import CENT, PAID, Lab
from tierwise.devcluster import install
from tierwise.devcluster.cluster import Cluster

pytestmark = pytest.mark.timeout(600)

ZONE = "Europe/Berlin"
PRICES = {"paid": PAID}
EACH = PAID.of({"prompt": 35, "completion": budget_support.TOKENS})
TWICE = ("twice", "twice-denied")
END = ("end-quiet", "end-steady", "end-denied", "end-paced")
CEILINGS = {"end-denied": "8", "twice-denied": "8", "end-paced": "1000"}
LADDERS = {"end-paced": [(1, "Throttle"), (100, "Deny")]}
RATE = 3
SET_UP_SECONDS = 600
"""At most, from the operators' start on; about 15 s on a quiet machine."""
CHANGE_LEAD_SECONDS, END_LEAD_SECONDS = 30, 35
"""From when all is set up to the moment that is crossed: to spend."""
AFTER_SECONDS = 12
QUIET_SECONDS = 8
AGAIN_SECONDS = 4.0
"""A round at the month's end, and its way to the gateways; 0.2 to 1.0 s on a quiet machine."""
HOUR_SECONDS = 3600


@dataclass(frozen=True)
class Month:
    """A month on whose last day clocks go back (aware UTC): when it begins and ends, and when they do."""

    start: datetime
    end: datetime
    change: datetime
    following: datetime


def month_with_a_late_change(zone: str, since: int) -> Month:
    """The first one from a year on, by the time zone database."""
    place = ZoneInfo(zone)

    def midnight(number: int) -> datetime:
        """Of the first day of a month, counted from the year 0."""
        return datetime(number // 12, number % 12 + 1, 1, tzinfo=place)

    for number in range(12 * since, 12 * (since + 40)):
        end = midnight(number + 1)
        day = end - timedelta(days=1)  # by the wall clock
        begin = day.astimezone(UTC)
        if end.astimezone(UTC) - begin > timedelta(hours=24):
            minutes = (begin + timedelta(minutes=minute) for minute in range(24 * 60))
            change = next(m for m in minutes if m.astimezone(place).utcoffset() == end.utcoffset())
            return Month(
                midnight(number).astimezone(UTC), end.astimezone(UTC), change, midnight(number + 2).astimezone(UTC)
            )
    raise AssertionError("there is none")


MONTH = month_with_a_late_change(ZONE, 2027)


def test_the_month_is_the_one_that_was_looked_up_by_hand() -> None:
    """31 October 2027 is a Sunday: at 3:00 it becomes 2:00 again."""
    at = datetime.fromisoformat
    assert at("2027-09-30T22:00Z") == MONTH.start
    assert at("2027-10-31T01:00Z") == MONTH.change
    assert at("2027-10-31T23:00Z") == MONTH.end
    assert at("2027-11-30T23:00Z") == MONTH.following


def test_a_world_that_skips_minutes_has_one_clock_all_the_same(tmp_path: Path) -> None:
    """Samples are turned into the world's times and back; a process that ran on did not start anew meanwhile."""
    (tmp_path / "clock").write_text(json.dumps({"epochs": [(0, 1000), (500, 1300)], "step": -60}))
    world = shifted_operator.World(tmp_path)
    assert [world.shown(at) for at in (499, 500, 501)] == [1499, 1800, 1801]
    assert [world.at(shown) for shown in (1499, 1500, 1700, 1800, 1801)] == [499, 500, 500, 500, 501]
    assert shifted_operator.asked("/api?query=up&time=1801", world) == "/api?query=up&time=501.000"
    row = {"metric": {"__name__": "envoy_server_uptime"}, "values": [[499, "99"], [501, "101"]]}
    text = json.dumps({"data": {"result": [row, {"metric": {}, "value": [501, "7"]}]}})
    uptime, other = json.loads(shifted_operator.answered(text.encode(), world))["data"]["result"]
    assert [[at, float(value)] for at, value in uptime["values"]] == [[1499, 99], [1801, 401]]
    assert other["value"] == [1801, "7"]
    assert abs(world.wall().timestamp() - time.time() - 1240) < 1


class Clock:
    """The world's wall clock, which is the operators'."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self._cluster = cluster
        self._folder = folder
        self._epochs: list[tuple[float, float]] = []
        self._step = 0.0

    def _write(self) -> None:
        new = self._folder / "clock.new"
        new.write_text(json.dumps({"epochs": self._epochs, "step": self._step}))
        new.replace(self._folder / "clock")

    def show(self, moment: datetime) -> None:
        """It is this moment now, for operators that start from now on."""
        self._epochs, self._step = [(0.0, moment.timestamp() - time.time())], 0.0
        self._write()

    def begin(self, moment: datetime) -> None:
        """Operators start at a moment. An account of another time would have them read all that lies between first."""
        self.forget()
        self.show(moment)
        self.restart_operators()

    def forget(self) -> None:
        """No budget is left, other modules' that are still on their way out included."""
        self._cluster.kubectl("delete", "nbud", "--all", "--all-namespaces", "--timeout=60s", timeout_seconds=70)

    def skip(self, moment: datetime, lead_seconds: float) -> None:
        """The world goes on so long before a moment; what is left until then it skips."""
        at = time.time() + 0.5  # everybody has read it by then
        ahead = moment.timestamp() - lead_seconds - at
        _, before = self._epochs[-1]
        assert ahead > before, f"set up too late by {before - ahead:.0f} s"
        self._epochs.append((at, ahead))
        self._write()
        # Until operators have signals of the new time.
        time.sleep(0.5 + 2 * budget_support.READ_SECONDS)

    def step(self, seconds: float) -> None:
        """Somebody sets the operators' clock: by so much it is ahead of the world."""
        self._step = seconds
        self._write()

    def real(self, moment: datetime) -> float:
        """A moment from the last skip on by the machine's clock, Unix seconds."""
        return moment.timestamp() - self._epochs[-1][1]

    def wait_for(self, moment: datetime, seconds: float = 0.0) -> None:
        """Until so long after a moment."""
        left = self.real(moment) + seconds - time.time()
        assert left > -1, f"this machine is too slow by {-left:.0f} s"
        time.sleep(max(0.0, left))

    def restart_operators(self) -> None:
        """Both, in order: they give the Lease up."""
        pods = support.pods(self._cluster, install.NAMESPACE, "tierwise.dev/component=operator")
        names = [pod["metadata"]["name"] for pod in pods]
        old = {pid for name in names for pid in self._cluster.pod_pids(install.NAMESPACE, name).values()}
        for pid in old:
            os.kill(pid, signal.SIGTERM)

        def back() -> bool:
            now = [pid for name in names for pid in self._cluster.pod_pids(install.NAMESPACE, name).values()]
            return len(now) == len(names) and not old & set(now) and bool(budget_support.leader(self._cluster))

        support.until(back, seconds=60, what="somebody decides again")


@pytest.fixture(scope="module")
def clock(platform: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clock]:
    """Operators by the test's clock; they are the chart's again afterwards."""
    folder = tmp_path_factory.mktemp("clock")
    shutil.copy(Path(__file__).parent / "shifted_operator.py", folder)
    found = Clock(platform, folder)
    found.forget()
    found.show(MONTH.start)
    target = ("-n", install.NAMESPACE, "deployment/tierwise-operator")
    before = json.loads(platform.kubectl("get", *target, "-o", "json").stdout)["spec"]["template"]
    operator = {
        "name": "operator",
        "command": ["python", "/clock/shifted_operator.py", "/clock"],
        "volumeMounts": [{"name": "clock", "mountPath": "/clock"}],
    }
    pod = {"volumes": [{"name": "clock", "hostPath": {"path": str(folder)}}], "containers": [operator]}
    rollout = ("rollout", "status", *target, "--timeout=120s")
    try:
        platform.kubectl("patch", *target, "-p", json.dumps({"spec": {"template": {"spec": pod}}}))
        platform.kubectl(*rollout, timeout_seconds=130)
        yield found
    finally:
        undo = [{"op": "replace", "path": "/spec/template", "value": before}]
        platform.kubectl("patch", *target, "--type=json", "-p", json.dumps(undo))
        platform.kubectl(*rollout, timeout_seconds=130)


@pytest.fixture(scope="module")
def lab(clock: Clock, platform: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with budget_support.lab(platform, tmp_path_factory.mktemp("provider"), (*TWICE, *END)) as running:
        yield running
        clock.forget()  # the chart's operators are to find no account of another time either


def set_up(lab: Lab, namespaces: Iterable[str]) -> None:
    for namespace in namespaces:
        ceiling = CEILINGS.get(namespace, "100000")
        lab.set_up(
            namespace,
            lab.tier(namespace, "paid", PAID),
            support.policy("chat", [{"name": "paid", "weight": 100}]),
            budget_support.budget("ceiling", ceiling, LADDERS.get(namespace, [(100, "Deny")]), timeZone=ZONE),
        )
    lab.wait_ready(namespaces)


def of(records: Iterable[dict[str, Any]], namespace: str) -> list[dict[str, Any]]:
    return [one for one in records if one["model"] == f"{namespace}/chat"]


def check_period(figures: dict[str, Any], start: datetime, end: datetime) -> None:
    assert figures["period"] == {"start": f"{start:%Y-%m-%dT%H:%M:%SZ}", "end": f"{end:%Y-%m-%dT%H:%M:%SZ}"}


def test_the_hour_that_occurs_twice_is_one_more_hour_of_the_month(clock: Clock, lab: Lab) -> None:
    """With a clock that is set a minute ahead, over the change, and back."""
    clock.begin(MONTH.change - timedelta(seconds=SET_UP_SECONDS))
    set_up(lab, TWICE)
    clock.skip(MONTH.change, CHANGE_LEAD_SECONDS)
    left = clock.real(MONTH.change) - time.time()
    seconds = max(0.0, left) + QUIET_SECONDS
    load = lab.load(one for name in TWICE for one in budget_support.paced(lab.ask(name), rate=RATE, seconds=seconds))
    clock.wait_for(MONTH.change, -10)
    clock.step(60)
    time.sleep(2 * budget_support.READ_SECONDS)
    clock.step(0)
    records = load.records()
    over = time.time()
    assert over > clock.real(MONTH.change)
    for namespace in TWICE:
        figures = budget_support.settled(lab.cluster, namespace, quiet_since=over)
        bill = lab.provider.bill(namespace, PRICES)
        print(f"{namespace}: measured {figures['measured']}, estimated {figures['estimated']}, bill {bill}")
        budget_support.check_exact(figures, bill)
        check_period(figures, MONTH.start, MONTH.end)
    refused = budget_support.denied(of(records, "twice-denied"))
    assert refused
    for one in refused:
        budget_support.check_denial(one, budget="twice-denied/ceiling", resets_at=MONTH.end)
    first = min(one["start"] for one in refused)
    late = [one for one in of(records, "twice-denied") if one["start"] > first + budget_support.CARRY_OUT_SECONDS]
    assert len(budget_support.denied(late)) == len(late), "the hour that comes again is no new period"
    assert {one["status"] for one in of(records, "twice")} == {200}


@pytest.fixture(scope="module")
def crossed(clock: Clock, lab: Lab) -> list[dict[str, Any]]:
    """Over the month's end, with load; what clients saw."""
    clock.begin(MONTH.end - timedelta(seconds=SET_UP_SECONDS))
    set_up(lab, END)
    clock.skip(MONTH.end, END_LEAD_SECONDS)
    left = clock.real(MONTH.end) - time.time()
    asks = [
        one
        for name in END
        if name != "end-quiet"
        for one in budget_support.paced(lab.ask(name), rate=RATE, seconds=left + AFTER_SECONDS)
    ]
    quiet = budget_support.paced(lab.ask("end-quiet"), rate=4, seconds=5)
    load = lab.load([*asks, *quiet])
    clock.wait_for(MONTH.end, -6)
    assert budget_support.status(lab.cluster, "end-denied")["rung"]["action"] == "Deny"
    check_pace(budget_support.status(lab.cluster, "end-paced"))
    return load.records()


def check_pace(figures: dict[str, Any]) -> None:
    """What is left is spent evenly until the month ends: an hour more or less would be another rate altogether."""
    enforcement = figures["enforcement"]
    assert enforcement["action"] == "Throttle"
    seconds = (MONTH.end - budget_support.moment(enforcement["since"])).total_seconds()
    most = Decimal(CEILINGS["end-paced"]) / EACH / Decimal(seconds)
    print(f"throttled {seconds:.0f} s before the end to {enforcement['requestsPerSecond']}/s of at most {most:.2f}/s")
    assert most / 2 < Decimal(enforcement["requestsPerSecond"]) <= most * Decimal("1.1")
    assert enforcement["resetsAt"] == f"{MONTH.end:%Y-%m-%dT%H:%M:%SZ}"


def test_what_was_denied_is_served_again_when_the_month_has_ended(clock: Clock, crossed: list[dict[str, Any]]) -> None:
    end = clock.real(MONTH.end)
    records = of(crossed, "end-denied")
    first = min(one["start"] for one in budget_support.denied(records))
    between = [one for one in records if first + budget_support.CARRY_OUT_SECONDS < one["start"] < end - 0.1]
    assert first < end - 5
    assert len(budget_support.denied(between)) == len(between) > 5
    for one in budget_support.denied(between):
        budget_support.check_denial(one, budget="end-denied/ceiling", resets_at=MONTH.end)
    again = min(one["start"] for one in records if one["start"] > first + 2 and one["status"] == 200)
    print(f"served again {again - end:.2f} s after the month's end")
    assert -0.1 <= again - end < AGAIN_SECONDS
    # And until the new month's ceiling is reached: its end is told, by its own clock.
    last = budget_support.denied(one for one in records if one["start"] > again)[-1]
    budget_support.check_denial(last, budget="end-denied/ceiling", resets_at=MONTH.following)
    assert {one["status"] for one in of(crossed, "end-steady")} == {200}


@pytest.mark.usefixtures("crossed")
def test_each_month_is_charged_what_the_provider_billed_in_it(clock: Clock, lab: Lab, tmp_path: Path) -> None:
    more = lab.send([lab.ask("end-quiet", at=i / 10) for i in range(7)])
    assert {one["status"] for one in more} == {200}
    over, end = time.time(), clock.real(MONTH.end)
    for namespace in ("end-quiet", "end-steady", "end-denied"):
        figures = budget_support.settled(lab.cluster, namespace, quiet_since=over)
        check_period(figures, MONTH.end, MONTH.following)
        attempts = lab.provider.attempts(namespace)
        whole = lab.provider.bill(namespace, PRICES)
        assert whole == EACH * len(attempts)
        old, new = before_this(lab, namespace, tmp_path, figures["spent"]), Decimal(figures["spent"])
        # What was answered, but not scraped when the month ended is the new one's.
        least = EACH * sum(one["end"] < end - 3 * budget_support.SCRAPE_SECONDS for one in attempts)
        most = EACH * sum(one["end"] < end for one in attempts)
        print(f"{namespace}: old {old} ({least} to {most}), new {new}, bill {whole}")
        assert least.quantize(CENT) <= old <= most.quantize(CENT)
        assert old + new == whole.quantize(CENT)
        budget_support.check_exact(figures, whole - old)
        if namespace == "end-quiet":
            assert (old, new) == ((20 * EACH).quantize(CENT), (7 * EACH).quantize(CENT))
        elif namespace != "end-denied":
            assert least > 0, "the check can tell"


def before_this(lab: Lab, namespace: str, folder: Path, spent: str) -> Decimal:
    """What `tierwise costs` says of the month before, once it says of this one what its status does."""

    def cost(since: str) -> Decimal:
        found = budget_support.costs(lab.cluster, namespace, folder, "--since", since)
        assert all(one["agrees"] for one in found["checks"]), found
        return sum((Decimal(row["cost"]) for row in found["rows"]), Decimal(0))

    support.until(lambda: cost("period") == Decimal(spent), seconds=20, what=f"a ledger of {spent} is kept")
    return cost("last-period")


@pytest.mark.usefixtures("crossed")
def test_a_month_that_has_ended_does_not_begin_again(clock: Clock, lab: Lab, tmp_path: Path) -> None:
    """By the operators' wall clock it is the old month again; what is counted goes on where it was, once.

    The clock is set back by two minutes; and operators start with one that is an hour late.
    """
    names = ("end-quiet", "end-denied")
    old = {name: before_this(lab, name, tmp_path, budget_support.status(lab.cluster, name)["spent"]) for name in names}
    asks = [lab.ask(name, at=i / 5) for name in names for i in range(20)]
    clock.step(-120.0)
    records = lab.send(asks)
    clock.step(-HOUR_SECONDS)
    clock.restart_operators()
    records += lab.send(asks)
    refused = budget_support.denied(of(records, "end-denied"))
    assert len(refused) == 40, "nothing is given back a second time"
    for one in refused:
        budget_support.check_denial(one, budget="end-denied/ceiling", resets_at=MONTH.following)
    assert {one["status"] for one in of(records, "end-quiet")} == {200}
    over = time.time()
    for namespace in names:
        figures = budget_support.settled(lab.cluster, namespace, quiet_since=over)
        check_period(figures, MONTH.end, MONTH.following)
        budget_support.check_exact(figures, lab.provider.bill(namespace, PRICES) - old[namespace])
        assert before_this(lab, namespace, tmp_path, figures["spent"]) == old[namespace]
