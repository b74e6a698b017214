"""Counters of the ledger: they add up to it, go on after a restart, and never fall within a period."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from tierwise.core import kept, ledger
from tierwise.core.kept import Kept
from tierwise.core.ledger import Account, Ledger, TokenPrices, Use
from tierwise.core.plan import Plan
from tierwise.core.signals import CounterReading, Counts, Origin
from tierwise.core.world import World
from tierwise.runtime.figures import Figures

START = datetime(2026, 11, 25, tzinfo=UTC)
BOT, TOOL = Origin("assistant", "routine", "bot"), Origin("assistant", "routine", "tool", "shadow")
WORLD = World(now=START, replica="op-0", tiers={}, policies={}, budgets={})


def step(held, number):
    since, until = (START + timedelta(seconds=30 * (number + n)) for n in (0, 1))
    parts = {
        origin: Counts(1, 1, 100.0 * (number % 3), 10.0 * (number % 3), 50.0, n, 9.0 * n, 9.0 * n)
        for n, origin in enumerate((BOT, TOOL))
    }
    total = {name: sum(getattr(each, name) for each in parts.values()) for name in Counts.__slots__}
    read = CounterReading(**total, since=since, until=until, parts=parts, crashes=int(number == 3), lost_seconds=5.0)
    uses = [
        Use("own", 2, 4, Decimal("3.3"), reading=read, room=Decimal(9)),
        Use("api", external=True, token_prices=TokenPrices(Decimal(1), Decimal("0.5"), Decimal(3)), reading=read),
    ]
    return ledger.accrue(held, uses, until, max_gap_seconds=90)


def scraped(metrics):
    text = generate_latest(metrics.registry).decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if family.name.startswith(("tierwise_cost", "tierwise_tokens", "tierwise_replica_s", "tierwise_ledger"))
        and family.name != "tierwise_cost_per_hour"
    }


@pytest.fixture
def figures(metrics):
    return Figures(metrics)


def test_counters_add_up_to_the_ledger_and_never_fall(figures, metrics):
    held, before = Account(START, START + timedelta(days=1), START, currency="EUR"), {}
    for number in range(40):
        held = step(held, number)
        if number == 20:  # the operator is restarted
            held = kept.unpack(kept.pack(Kept("cap", "uid", "EUR", "UTC", "Day", held))).account
        figures.show(WORLD, Plan(ledger=Ledger({("team-a", "cap"): held})))
        now = scraped(metrics)
        assert not {key for key, value in before.items() if key[0].endswith("_total") and now.get(key, 0) < value}
        cost = sum(value for (name, _), value in now.items() if name == "tierwise_cost_total")
        waiting = sum(value for (name, _), value in now.items() if name == "tierwise_cost_not_shared")
        assert cost + waiting == pytest.approx(float(ledger.spend(held).total), abs=1e-9)
        before = now
    labels = dict(
        next(labels for name, labels in before if name == "tierwise_cost_total" and dict(labels)["consumer"] == "tool")
    )
    assert labels["purpose"] == "shadow"
    assert (labels["namespace"], labels["budget"], labels["currency"]) == ("team-a", "cap", "EUR")
    assert any(dict(labels).get("purpose") == "idle" for _, labels in before)
    assert [value for (name, _), value in before.items() if name == "tierwise_ledger_gateways_lost_total"] == [1]
    assert next(value for (name, _), value in before.items() if name == "tierwise_ledger_bound") > 0


def test_nothing_is_shown_of_what_is_not_there(figures, metrics):
    figures.show(WORLD, Plan())
    assert scraped(metrics) == {}
