"""What `tierwise plan` says of a budget's ladder: which rung is reached when, and what it does then."""

import json
import shutil
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from tierwise import yaml_text
from tierwise.cli import cli
from tierwise.preview import document, load, metrics, output, preview, source, state
from tierwise.render.envoy.options import GatewayOptions

EXAMPLES = Path(__file__).parents[2] / "examples"
METRICS = EXAMPLES / "plan" / "metrics.yaml"
NOW = datetime(2026, 10, 24, 12, tzinfo=UTC)
"""The day before one of 25 hours in London."""
LEAST = Decimal("8.5484")
"""One replica of each tier, USD per hour."""
NOTIFY = {"atPercent": 50, "action": "Notify"}
DOWNGRADE = {"atPercent": 70, "action": "Downgrade"}
BELOW = {**DOWNGRADE, "belowFloor": True}
THROTTLE = {"atPercent": 90, "action": "Throttle"}
DENY = {"atPercent": 100, "action": "Deny"}


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(EXAMPLES, tmp_path / "m", ignore=shutil.ignore_patterns("providers", "plan"))
    return tmp_path / "m"


def budget(folder, *ladder, ceiling="350.00", period="Day", status=None, **more):
    body = {
        "apiVersion": "tierwise.dev/v1alpha1",
        "kind": "NamespaceBudget",
        "metadata": {"name": "ceiling"},
        "spec": {
            "period": period,
            "timeZone": "Europe/London",
            "ceiling": ceiling,
            "currency": "USD",
            "ladder": list(ladder),
            **more,
        },
        **({"status": status} if status else {}),
    }
    (folder / "namespacebudget.yaml").write_text(yaml_text.dump(body))
    return folder


def made(folder, *, against=None, now=NOW, figures=METRICS):
    present = state.State()
    if against is not None:
        present = state.from_loaded(load.read([str(against)], "default", keep_status=True), state.earlier(now))
    known = metrics.Metrics()
    if figures is not None:
        known = metrics.parse(source.documents(figures.read_text(), str(figures))[0], "default")
    change = load.read([str(folder)], "default")
    assert not change.problems
    return preview.make(change, present, known, now, against="x", options=GatewayOptions(), notes=())


def played(folder, **options):
    """The document's estimate of the budget, its rungs by action, and the namespace's cost per hour."""
    estimate = document.document(made(folder, **options))["estimate"]["default"]["after"]
    (one,) = estimate["budgets"]
    return one, {rung["action"]: rung for rung in one["rungs"]}, Decimal(estimate["costs"]["USD"]["perHour"])


def at(rung):
    return datetime.fromisoformat(rung["at"])


def test_a_rung_is_reached_when_what_is_left_beyond_the_least_replicas_is_spent(folder):
    _, rungs, rate = played(budget(folder, NOTIFY), now=NOW - timedelta(days=3))
    # Spent so far is half of the ceiling less what the least replicas still cost: both change as hours go by.
    hours = (Decimal(350) - LEAST * 24) / 2 / (rate - LEAST / 2)
    begin = datetime(2026, 10, 21, 23, tzinfo=UTC)
    assert at(rungs["Notify"]) == pytest.approx(begin + timedelta(hours=float(hours)), abs=timedelta(minutes=5))
    assert at(rungs["Notify"]) <= begin + timedelta(hours=float(hours), minutes=-1), "what is in flight counts"
    assert Decimal(rungs["Notify"]["costPerHour"]) == rate, "a notice changes nothing"


def test_times_are_of_the_budgets_zone_and_its_calendar(folder):
    one, rungs, rate = played(budget(folder, NOTIFY, ceiling="3500.00"))
    whole = one["wholePeriod"]
    assert (whole["from"], whole["until"]) == ("2026-10-25T00:00+01:00", "2026-10-26T00:00+00:00")
    assert whole["timeZone"] == "Europe/London"
    assert Decimal(whole["spentAtEnd"]) == pytest.approx(25 * rate, abs=Decimal("0.01")), "a day of 25 hours"
    assert "at" not in rungs["Notify"]


def test_deny_keeps_the_ceiling_that_a_notice_does_not(folder):
    soft, _, rate = played(budget(folder, NOTIFY), now=NOW - timedelta(days=3))
    assert Decimal(soft["wholePeriod"]["spentAtEnd"]) == pytest.approx(24 * rate, abs=Decimal("0.01"))
    assert soft["fits"] is False
    hard, rungs, _ = played(budget(folder, NOTIFY, DENY), now=NOW - timedelta(days=3))
    assert 340 < Decimal(hard["wholePeriod"]["spentAtEnd"]) <= 350
    assert Decimal(rungs["Deny"]["costPerHour"]) == LEAST
    assert rungs["Deny"]["requestsPerSecond"] == 0
    assert "17 requests/s get 429 until 2026-10-23 00:00" in rungs["Deny"]["does"]
    assert at(rungs["Notify"]) < at(rungs["Deny"])


def test_deny_takes_the_least_replicas_too_where_it_may(folder):
    _, rungs, rate = played(budget(folder, DENY, enforceReplicas=True), now=NOW - timedelta(days=3))
    assert Decimal(rungs["Deny"]["costPerHour"]) == 0
    hours = Decimal(rungs["Deny"]["afterHours"])
    assert hours == pytest.approx(350 / rate, abs=Decimal("0.2")), "nothing is committed"


def test_a_throttle_spends_what_is_left_evenly_and_is_never_followed_by_a_denial(folder):
    one, rungs, rate = played(budget(folder, THROTTLE, DENY), now=NOW - timedelta(days=3))
    assert 0 < rungs["Throttle"]["requestsPerSecond"] < 17
    assert LEAST < Decimal(rungs["Throttle"]["costPerHour"]) < rate
    assert "at" not in rungs["Deny"]
    assert 345 < Decimal(one["wholePeriod"]["spentAtEnd"]) <= 350
    assert "of 17 requests/s pass" in rungs["Throttle"]["does"]


def test_a_downgrade_below_the_floor_says_whose_floor_gives_way_and_what_it_saves(folder):
    kept, within, _ = played(budget(folder, DOWNGRADE, DENY, ceiling="400.00"), now=NOW - timedelta(days=3))
    assert "below the floor" not in within["Downgrade"]["does"]
    assert "at" in within["Deny"]
    lower, below, rate = played(budget(folder, BELOW, DENY, ceiling="400.00"), now=NOW - timedelta(days=3))
    assert "below the floor: assistant/complex" in below["Downgrade"]["does"]
    assert "assistant/routine: compact" in below["Downgrade"]["does"]
    assert Decimal(below["Downgrade"]["costPerHour"]) < Decimal(within["Downgrade"]["costPerHour"]) <= rate
    assert at(below["Deny"]) > at(within["Deny"]), "the money lasts longer"
    assert max(Decimal(one["wholePeriod"]["spentAtEnd"]) for one in (lower, kept)) <= 400


def test_a_downgrade_moves_weights_by_hand_too(folder, tmp_path):
    policy = folder / "routingpolicy-assistant.yaml"
    policy.write_text(policy.read_text().replace("mode: Auto", "mode: Recommend"))
    shutil.copytree(folder, tmp_path / "old")
    (body,) = yaml.safe_load_all(policy.read_text())
    weights = [{"tier": "provider", "percent": 100}]
    body["status"] = {"classes": [{"name": name, "weights": weights} for name in ("complex", "routine")]}
    (tmp_path / "old" / policy.name).write_text(yaml_text.dump(body))
    _, rungs, rate = played(
        budget(folder, DOWNGRADE, ceiling="1000.00"), against=tmp_path / "old", now=NOW - timedelta(days=3)
    )
    assert rate > 80, "all goes to the provider"
    assert "assistant/routine: compact" in rungs["Downgrade"]["does"]
    assert Decimal(rungs["Downgrade"]["costPerHour"]) < rate / 2


def test_exempt_classes_are_left_alone_and_go_on_costing(folder):
    exempt = [{"policy": "assistant", "class": "complex"}]
    _, rungs, _ = played(budget(folder, DENY, exempt=exempt), now=NOW - timedelta(days=3))
    assert "14 requests/s get 429" in rungs["Deny"]["does"]
    assert "exempt: assistant/complex" in rungs["Deny"]["does"]
    assert Decimal(rungs["Deny"]["costPerHour"]) > LEAST


def test_a_ceiling_below_the_least_replicas_is_reached_at_once(folder):
    one, rungs, _ = played(budget(folder, NOTIFY, DENY, ceiling="100.00"), now=NOW - timedelta(days=3))
    assert rungs["Notify"]["at"] == rungs["Deny"]["at"] == one["wholePeriod"]["from"]
    assert rungs["Notify"]["does"] == "as the 100% rung, which is reached with it"
    assert Decimal(one["wholePeriod"]["spentAtEnd"]) == pytest.approx(24 * LEAST, abs=Decimal("0.01"))


def test_what_a_cluster_has_spent_already_counts_in_the_present_period(folder, tmp_path):
    now = datetime(2026, 10, 22, 11, tzinfo=UTC)
    period = {"start": "2026-10-21T23:00:00Z", "end": "2026-10-22T23:00:00Z"}
    shutil.copytree(folder, tmp_path / "old")
    budget(tmp_path / "old", NOTIFY, DENY, ceiling="400.00", status={"period": period, "spent": "200"})
    one, _, rate = played(budget(folder, NOTIFY, DENY, ceiling="400.00"), against=tmp_path / "old", now=now)
    present = one["presentPeriod"]
    assert (present["from"], present["until"]) == ("2026-10-22T12:00+01:00", "2026-10-23T00:00+01:00")
    assert present["spentBefore"] == "200.00"
    notify, deny = present["rungs"]
    assert notify["at"] == present["from"], "half of the money that may be spent is gone"
    hours = (400 - LEAST * 12 - 200) / (rate - LEAST)
    assert Decimal(deny["afterHours"]) == pytest.approx(hours, abs=Decimal("0.2"))
    assert Decimal(present["spentAtEnd"]) <= 400
    assert one["wholePeriod"]["from"] == "2026-10-23T00:00+01:00"
    ended = {"start": "2026-10-20T23:00:00Z", "end": "2026-10-21T23:00:00Z"}
    budget(tmp_path / "old", NOTIFY, DENY, ceiling="400.00", status={"period": ended, "spent": "200"})
    one, _, _ = played(folder, against=tmp_path / "old", now=now)
    assert "presentPeriod" not in one, "what an earlier period spent says nothing"


def test_without_demand_times_are_upper_bounds_and_say_so(folder):
    found = made(budget(folder, NOTIFY, DENY, ceiling="230.00"), figures=None)
    text = output.text(found)
    assert "at the latest" in text
    assert "not reached by what is known" in text
    assert "at its end at least" in text


def test_a_downgrade_that_is_not_enough_is_followed_by_a_denial_within_the_ceiling(folder):
    """What is in flight falls with a rung, and moves the next one: it is looked for again."""
    one, rungs, _ = played(budget(folder, BELOW, DENY), now=NOW - timedelta(days=3))
    assert at(rungs["Downgrade"]) < at(rungs["Deny"])
    assert 345 < Decimal(one["wholePeriod"]["spentAtEnd"]) <= 350


def test_as_people_see_it(folder):
    text = output.text(made(budget(folder, NOTIFY, DENY), now=NOW - timedelta(days=3)))
    assert "In a whole day, from 2026-10-22 00:00 Europe/London:" in text
    assert " 50% Notify    2026-10-22 05:" in text
    assert "17 requests/s get 429 until 2026-10-23 00:00" in " ".join(text.split())
    assert "does not fit: without the ladder the ceiling is reached before the period ends" in text
    assert max(len(line) for line in text.splitlines() if "requests/s get" in line) <= output.WIDTH


@pytest.mark.parametrize(("form", "parse"), [("json", json.loads), ("yaml", yaml.safe_load)])
def test_every_form_has_it_and_the_exit_code_stays(folder, form, parse):
    arguments = ["plan", "-f", str(budget(folder, NOTIFY, DENY)), "--metrics", str(METRICS), "-o", form]
    found = CliRunner().invoke(cli, arguments)
    assert found.exit_code == 2
    (one,) = parse(found.stdout)["estimate"]["default"]["after"]["budgets"]
    assert [rung["action"] for rung in one["rungs"]] == ["Notify", "Deny"]
    assert all({"at", "afterHours", "does", "costPerHour"} <= set(rung) for rung in one["rungs"])
    same = CliRunner().invoke(cli, [*arguments, "--against", str(folder)])
    assert same.exit_code == 0, same.output
