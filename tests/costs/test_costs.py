"""What is shown adds up to what the ledger says, to the cent, however it is put together."""

import csv
import io
import json
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from tierwise import yaml_text
from tierwise.api.namespace_budget import NamespaceBudget
from tierwise.cli import cli
from tierwise.core import book, kept, ledger, periods
from tierwise.core.book import Line
from tierwise.core.kept import Kept
from tierwise.core.ledger import Account, TokenPrices, Use
from tierwise.core.signals import CounterReading, Counts, Origin
from tierwise.costs import focus, report, source
from tierwise.costs.report import CENT, Source
from tierwise.render.ledger import config_map

START = datetime(2026, 10, 31, 23, tzinfo=UTC)  # November in Berlin
NOW = datetime(2026, 11, 25, 9, 7, tzinfo=UTC)
PRICES = TokenPrices(Decimal("0.333333"), Decimal("0.1"), Decimal("1.777777"))
ORIGINS = tuple(Origin(p, c, who) for p in ("a", "b") for c in ("x", "y") for who in ("", "bot", "team"))


def reading(since, until, parts):
    counts = {
        origin: Counts(
            requests=1, requests_with_usage=1, input_tokens=n, cached_input_tokens=n // 3, output_tokens=n * 7 % 1000
        )
        for origin, n in parts.items()
    }
    total = {name: sum(getattr(each, name) for each in counts.values()) for name in Counts.__slots__}
    return CounterReading(**total, since=since, until=until, parts=counts)


def spent(tokens, hours=30, zone="Europe/Berlin", end=NOW):
    """An account of the last hours: one replica, a provider, and tokens in turn."""
    held = Account(START, START + timedelta(days=30), end - timedelta(hours=hours))
    moment = held.updated
    for number in range(hours * 12):
        before, moment = moment, moment + timedelta(minutes=5)
        parts = {origin: tokens[(number + n) % len(tokens)] for n, origin in enumerate(ORIGINS[: 1 + number % 12])}
        read = reading(before, moment, parts)
        uses = [
            Use("own", 1, 4, Decimal("1.2345"), reading=read, room=Decimal(500)),
            Use("api", external=True, token_prices=PRICES, reading=read),
        ]
        held = ledger.accrue(held, uses, moment, max_gap_seconds=300)
    return Kept("ceiling", "uid", "EUR", zone, "Month", held)


@pytest.fixture(scope="module")
def account():
    return spent([100, 2000, 31, 77_777])


def budget_body(of, **status):
    return {
        "apiVersion": "tierwise.dev/v1alpha1",
        "kind": "NamespaceBudget",
        "metadata": {"name": of.name, "namespace": "team-a", "uid": of.uid, "generation": 1},
        "spec": {
            "ceiling": "100.00",
            "currency": of.currency,
            "timeZone": of.zone,
            "ladder": [{"atPercent": 100, "action": "Notify"}],
        },
        "status": status,
    }


def manifests(of):
    total = ledger.spend(of.account)
    body = budget_body(
        of,
        spent=str(report.cents(total.total)),
        measured=str(report.cents(total.counted)),
        period={"start": "2026-10-31T23:00:00Z", "end": "2026-11-30T23:00:00Z"},
        checkpoint={"time": of.account.updated.strftime("%Y-%m-%dT%H:%M:%SZ"), "entries": []},
    )
    return [body, config_map("team-a", [(NamespaceBudget.parse(body), of)])]


@pytest.fixture
def file(account, tmp_path):
    path = tmp_path / "objects.yaml"
    path.write_text(yaml_text.dump({"kind": "List", "items": manifests(account)}))
    return path


def run(*arguments):
    return CliRunner().invoke(cli, ["costs", *map(str, arguments)])


@given(st.lists(st.decimals("0", "1000", places=6), max_size=60))
def test_cents_add_up_and_none_is_a_cent_off(values):
    total = report.cents(sum(values, Decimal(0)))
    found = report.spread(values, total)
    assert sum(found, Decimal(0)) == total
    assert all(abs(each - value) < CENT for each, value in zip(found, values, strict=True))


def test_a_total_that_is_not_theirs_is_refused():
    with pytest.raises(report.ReportError):
        report.spread([Decimal(1)], Decimal(2))


@given(
    st.lists(st.integers(0, 200_000), min_size=1, max_size=9),
    st.sampled_from(
        [("tier",), ("policy", "class"), ("consumer",), ("tier", "policy", "class", "consumer", "purpose")]
    ),
)
def test_any_report_of_the_period_is_what_the_ledger_says(tokens, dimensions):
    of = spent(tokens, hours=3)
    made = report.report([Source("team-a", of)], dimensions, "period", NOW)
    total = report.cents(ledger.spend(of.account).total)
    assert sum((row.cost for row in made.rows), Decimal(0)) == total
    assert sum((row.measured for row in made.rows), Decimal(0)) == report.cents(ledger.spend(of.account).counted)
    assert all(one.agrees for one in made.checks)
    whole = sum(
        (Decimal(row["BilledCost"]) for row in focus.rows(Source("team-a", of), report.buckets(of))), Decimal(0)
    )
    assert report.cents(whole) == total
    assert whole == ledger.spend(of.account).total


def test_a_line_that_is_lost_is_told(account):
    lines = dict(account.account.book.hours)
    hour, held = next((start, dict(each)) for start, each in lines.items() if any(o.consumer for _, o in each))
    held.pop(next(key for key, line in held.items() if line.cost > CENT))
    broken = replace(
        account, account=replace(account.account, book=replace(account.account.book, hours={**lines, hour: held}))
    )
    assert not report.check(Source("team-a", broken)).agrees


def test_the_status_is_compared_where_it_is_of_the_same_moment(account):
    total = report.cents(ledger.spend(account.account).total)
    at = account.account.updated
    assert report.check(Source("team-a", account, spent=total, spent_at=at)).agrees
    assert not report.check(Source("team-a", account, spent=total + CENT, spent_at=at)).agrees
    later = Source("team-a", account, spent=total + CENT, spent_at=at + timedelta(seconds=300))
    assert report.check(later).agrees, "the ledger was kept before: nothing to compare"


def test_since_takes_the_hours_from_there_on(account):
    day = report.report([Source("team-a", account)], ("tier",), "24h", NOW)
    assert day.since == datetime(2026, 11, 24, 9, tzinfo=UTC), "a whole hour, and it says so"
    recent = report.report([Source("team-a", account)], ("tier",), "2026-11-25", NOW)
    assert recent.since == datetime(2026, 11, 24, 23, tzinfo=UTC), "midnight in the budget's zone"
    costs = [
        sum(row.cost for row in each.rows)
        for each in (recent, day, report.report([Source("team-a", account)], ("tier",), "period", NOW))
    ]
    assert costs == sorted(costs)
    assert costs[0] < costs[2]


@pytest.mark.parametrize("text", ["yesterday", "24", "h", "2027-01-01"])
def test_a_start_that_is_none_is_refused(text, account):
    with pytest.raises(report.ReportError):
        report.since(text, account, NOW)


def test_the_period_before_stays_for_its_bill(account):
    after = periods.turned(account.account, START + timedelta(days=30), START + timedelta(days=61), account.zone)
    uses = [Use("own", 1, 4, Decimal(36))]
    after = ledger.accrue(after, uses, START + timedelta(days=30, seconds=60), max_gap_seconds=90)
    of = replace(account, account=after)
    now = START + timedelta(days=30, hours=1)
    last = report.report([Source("team-a", of)], ("tier",), "last-period", now)
    assert sum(row.cost for row in last.rows) == report.cents(ledger.spend(account.account).total)
    assert sum(row.cost for row in report.report([Source("team-a", of)], ("tier",), "period", now).rows) == Decimal(
        "0.60"
    )
    assert all(
        row["BillingPeriodEnd"] == "2026-11-30T23:00:00Z"
        for row in focus.rows(Source("team-a", of), report.buckets(of))
        if row["ChargePeriodStart"] < "2026-11-30"
    )


def test_what_has_no_price_is_unknown_and_never_nothing():
    read = reading(NOW - timedelta(minutes=5), NOW, {ORIGINS[1]: 100})
    held = ledger.accrue(
        Account(START, START + timedelta(days=30), NOW - timedelta(minutes=5)),
        [Use("api", external=True, reading=read), Use("own", 2, 4)],
        NOW,
        max_gap_seconds=400,
    )
    of = Kept("ceiling", "uid", "EUR", "UTC", "Month", held)
    made = report.report([Source("team-a", of)], ("tier",), "period", NOW)
    assert {row.group: (row.cost, row.provenance) for row in made.rows} == {
        ("api",): (None, "unknown"),
        ("own",): (None, "unknown"),
    }
    assert list(focus.rows(Source("team-a", of), report.buckets(of))) == []


def test_focus_rows_have_what_the_specification_wants(account):
    rows = list(focus.rows(Source("team-a", account), report.buckets(account)))
    assert rows
    for row in rows:
        assert tuple(row) == focus.COLUMNS
        assert not [name for name in focus.REQUIRED if row[name] in {None, ""}]
        assert (row["ChargeCategory"], row["ServiceCategory"]) == ("Usage", "AI and Machine Learning")
        assert row["BilledCost"] == row["EffectiveCost"] == row["ListCost"] == row["ContractedCost"]
        for name in ("BilledCost", "PricingQuantity", "ConsumedQuantity"):
            assert "E" not in row[name].upper()
        times = [
            row[name] for name in ("BillingPeriodStart", "ChargePeriodStart", "ChargePeriodEnd", "BillingPeriodEnd")
        ]
        assert times == sorted(times)
        assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", time) for time in times)
        assert all(isinstance(value, str) for value in json.loads(row["Tags"]).values())
        if row["ListUnitPrice"] is not None:
            product = Decimal(row["ListUnitPrice"]) * Decimal(row["PricingQuantity"])
            assert abs(product - Decimal(row["ListCost"])) < Decimal("1e-9")
    priced = {row["SkuMeter"]: row["ListUnitPrice"] for row in rows if row["ListUnitPrice"]}
    assert priced["Output Tokens"] == "1.777777"
    assert priced["Input Tokens"] == "0.333333"
    assert priced["Replica Hours"] == "1.2345"
    assert any("idle" in row["ChargeDescription"] for row in rows)


def test_the_command_reads_files_and_prints_every_form(file, account):
    total = str(report.cents(ledger.spend(account.account).total))
    table = run("-f", file, "--by", "policy,class", "--since", "2026-11-01")
    assert table.exit_code == 0, table.output
    assert total in table.stdout
    assert (
        f"check team-a/ceiling, whole period: {total} in lines = {total} in the ledger = {total} in its status"
        in table.stdout
    )
    assert "(idle)" in table.stdout
    as_json = json.loads(run("-f", file, "-o", "json", "--by", "consumer").stdout)
    assert str(sum(Decimal(row["cost"]) for row in as_json["rows"])) == total
    assert as_json["checks"][0]["agrees"]
    assert yaml.safe_load(run("-f", file, "-o", "yaml", "--by", "consumer").stdout) == as_json
    rows = list(csv.DictReader(io.StringIO(run("-f", file, "-o", "csv").stdout)))
    assert {row["tier"] for row in rows} == {"own", "api"}
    assert str(sum(Decimal(row["cost"]) for row in rows)) == total
    billed = list(csv.DictReader(io.StringIO(run("-f", file, "-o", "focus").stdout)))
    assert str(report.cents(sum(Decimal(row["BilledCost"]) for row in billed))) == total
    assert len(json.loads(run("-f", file, "-o", "focus-json").stdout)) == len(billed)


def test_wrong_usage_is_told(file):
    assert run("-f", file, "--by", "weather").exit_code == 2
    assert run("-f", file, "--context", "x").exit_code == 2


def test_lines_and_ledger_that_differ_are_an_exit_code(account, tmp_path):
    objects = manifests(account)
    objects[0]["status"]["spent"] = "0.01"
    path = tmp_path / "objects.json"
    path.write_text(json.dumps({"items": objects}))
    result = run("-f", path)
    assert result.exit_code == 3
    assert "DIFFERS" in result.stdout


def test_without_a_ledger_the_status_tells_sums_by_tier(account, tmp_path):
    body = budget_body(
        account,
        spent="3.00",
        measured="2.00",
        estimated="1.00",
        period={"start": "2026-10-31T23:00:00Z", "end": "2026-11-30T23:00:00Z"},
        checkpoint={
            "time": "2026-11-25T09:00:00Z",
            "entries": [
                {"tier": "api", "cost": "2.000000", "provenance": "Estimated", "outputTokens": 5},
                {"tier": "own", "cost": "1.000000", "provenance": "Measured", "replicaSeconds": "3600"},
            ],
        },
    )
    path = tmp_path / "budget.yaml"
    path.write_text(yaml_text.dump(body))
    result = run("-f", path, "-o", "json")
    rows = {row["tier"]: (row["measured"], row["estimated"]) for row in json.loads(result.stdout)["rows"]}
    assert rows == {"api": ("1.00", "1.00"), "own": ("1.00", "0.00")}
    assert "sums by tier are all that is known" in result.stderr


def test_of_several_budgets_the_longest_period_counts_and_each_can_be_named(account):
    weekly = replace(account, name="weekly", period="Week")
    bodies = [manifests(account)[0], manifests(weekly)[0]]
    parsed = [NamespaceBudget.parse(body) for body in bodies]
    objects = [*bodies, config_map("team-a", list(zip(parsed, [account, weekly], strict=True)))]
    assert [one.kept.name for one in source.sources(objects)[0]] == ["ceiling"]
    assert [one.kept.name for one in source.sources(objects, "weekly")[0]] == ["weekly"]


def test_what_providers_cost_at_most_until_they_are_counted_is_shown_apart(account):
    of = replace(account, account=replace(account.account, pending=Decimal("1.23")))
    made = report.report([Source("team-a", of)], ("tier",), "period", NOW)
    [row] = [row for row in made.rows if row.group == ("(not counted yet)",)]
    assert (row.measured, row.estimated) == (0, Decimal("1.23"))
    assert made.checks[0].agrees


def test_days_of_a_clock_change_have_their_length():
    line = {("own", book.IDLE): Line(replica_cost=Decimal(1))}
    start = datetime(2026, 10, 24, 22, tzinfo=UTC)
    held = Account(start - timedelta(days=20), start + timedelta(days=7), NOW, book=book.Book(days={start: line}))
    [day] = report.buckets(Kept("c", "u", "EUR", "Europe/Berlin", "Month", held))
    assert day.end - day.start == timedelta(hours=25)


def test_a_damaged_ledger_is_told(account, tmp_path):
    objects = manifests(account)
    objects[1]["data"]["ceiling"] = "AAAA"
    path = tmp_path / "objects.yaml"
    path.write_text(yaml_text.dump_all(objects))
    assert "team-a/ceiling" in run("-f", path).stderr
    assert kept.pack(account) == manifests(account)[1]["data"]["ceiling"]
