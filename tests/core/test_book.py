"""Detail and sums are one ledger: whatever happens, lines add up to what the account says, to the last digit."""

import dataclasses
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tierwise.core import book, kept, ledger, periods, usage
from tierwise.core.book import IDLE, OTHER, Book, Line, Pen, Window
from tierwise.core.kept import Kept
from tierwise.core.ledger import Account, TokenPrices, Use
from tierwise.core.signals import Counts, Origin

START = datetime(2026, 11, 25, tzinfo=UTC)
END = START + timedelta(days=1)
CHEAP = TokenPrices(Decimal("0.15"), Decimal("0.075"), Decimal("0.6"))
DEAR = TokenPrices(Decimal("1.2345"), Decimal("0.1"), Decimal("7.77"))
ORIGINS = (
    Origin("assistant", "routine", "bot"),
    Origin("assistant", "complex", "bot"),
    Origin("batch", "routine", "tool"),
    Origin("assistant", "routine", "", "shadow"),
)


def at(seconds):
    return START + timedelta(seconds=seconds)


def counts(requests, prompt, cached, completion, lost=0):
    return Counts(
        requests=requests,
        requests_with_usage=requests,
        input_tokens=prompt,
        cached_input_tokens=min(cached, prompt),
        output_tokens=completion,
        estimated_attempts=lost,
        estimated_input_tokens=50.0 * lost,
        estimated_output_tokens=70.0 * lost,
    )


def reading(since, until, parts, **more):
    return dataclasses.replace(usage._whole(parts, at(since), at(until)), **more)


def uses(read=None, replicas=2, price="3.30", prices=CHEAP, room="900"):
    own, outside = (read or {}).get("own"), (read or {}).get("api")
    return [
        Use("own", replicas, 8, Decimal(price), reading=own, room=Decimal(room)),
        Use("api", external=True, token_prices=prices, reading=outside, most_cost_per_hour=Decimal(40)),
    ]


def agrees(held):
    spent, found = ledger.spend(held), book.total(held.book)
    assert found.measured == spent.counted
    assert found.estimated == spent.estimated - held.pending
    by_tier = {}
    for (tier, _), line in book.lines_of(book.settled(held.book)).items():
        by_tier[tier] = by_tier.get(tier, Line()) + line
    for tier, entry in held.entries.items():
        line = by_tier.get(tier, Line())
        assert line.measured == (entry.cost or 0)
        assert line.estimated == (entry.estimated_cost or 0)
        assert line.replica_seconds == entry.replica_seconds
        assert line.input_tokens + line.cached_input_tokens == entry.input_tokens
        assert line.output_tokens == entry.output_tokens


def round_trip(held, **more):
    text = kept.pack(Kept("cap", "uid", "EUR", "UTC", "Day", held), **more)
    return kept.unpack(text).account


PART = st.builds(
    counts,
    st.integers(0, 9),
    st.integers(0, 90_000),
    st.integers(0, 9_000),
    st.integers(0, 9_000),
    st.integers(0, 2),
)
STEP = st.fixed_dictionaries(
    {
        "seconds": st.sampled_from([1, 7, 15, 29, 80, 400]),
        "own": st.dictionaries(st.sampled_from(ORIGINS), PART, max_size=4),
        "api": st.dictionaries(st.sampled_from(ORIGINS), PART, max_size=4),
        "read": st.booleans(),
        "replicas": st.integers(0, 4),
        "price": st.sampled_from(["3.30", "1.0007"]),
        "prices": st.sampled_from([CHEAP, DEAR]),
        "room": st.sampled_from(["0", "900"]),
    }
)


@given(st.lists(STEP, min_size=1, max_size=25), st.sets(st.integers(0, 24), max_size=5))
@settings(max_examples=60, deadline=None)
def test_lines_add_up_and_a_restart_at_any_point_changes_nothing(steps, restarts):
    held = whole = Account(START, END, START, currency="EUR")
    moment, read_until = 0, 0
    truth = {"input": Decimal(0), "output": Decimal(0), "seconds": Decimal(0)}
    replicas = None
    for number, step in enumerate(steps):
        moment += step["seconds"]
        read = {}
        if step["read"]:
            read = {name: reading(read_until, moment, step[name]) for name in ("own", "api")}
            read_until = moment
            for name in ("own", "api"):
                truth["input"] += int(sum(part.input_tokens for part in step[name].values()))
                truth["output"] += int(sum(part.output_tokens for part in step[name].values()))
        if step["seconds"] <= 90:
            truth["seconds"] += step["seconds"] * (step["replicas"] if replicas is None else replicas)
        replicas = step["replicas"]
        given = uses(read, step["replicas"], step["price"], step["prices"], step["room"])
        held, whole = (ledger.accrue(each, given, at(moment), max_gap_seconds=90) for each in (held, whole))
        if number in restarts:
            held = round_trip(held)
        agrees(held)
    assert held == whole
    assert sum(entry.input_tokens for entry in held.entries.values()) == truth["input"]
    assert sum(entry.output_tokens for entry in held.entries.values()) == truth["output"]
    assert held.entries["own"].replica_seconds == truth["seconds"] if "own" in held.entries else True


def test_a_cost_of_zero_is_not_an_unknown_one():
    entries = {"free": ledger.Entry(cost=Decimal(0)), "unknown": ledger.Entry(unpriced_requests=Decimal(1))}
    assert round_trip(Account(START, END, START, entries=entries, currency="EUR")).entries == entries


@given(
    st.dictionaries(st.sampled_from(ORIGINS), st.integers(0, 10**6), max_size=4),
    st.integers(0, 10**9),
    st.integers(0, 10**6),
)
def test_shares_of_a_slot_add_up_to_it_exactly(work, cost, room):
    window = Window(
        seconds=Decimal(cost) / 7 // book.MICRO * book.MICRO,
        cost=Decimal(cost) * book.PICO,
        estimated=Decimal(cost // 3) * book.PICO,
        room=Decimal(room),
        work={origin: Decimal(units) for origin, units in work.items()},
    )
    shares = book.shared(window)
    total = sum(shares.values(), Line())
    assert (total.replica_cost, total.estimated_replica_cost) == (window.cost, window.estimated)
    assert total.replica_seconds == window.seconds
    assert all(getattr(line, name) >= 0 for line in shares.values() for name in book.FIELDS)
    done = sum(work.values())
    if done and done >= room:
        assert IDLE not in shares, "all of it was used"
    for origin, units in work.items():
        fair = window.cost * units / max(done, room) if done and room else window.cost * units / done if done else 0
        got = shares.get(origin, Line()).replica_cost
        assert abs(got - fair) <= len(work) * book.PICO
    if not done:
        assert set(shares) <= {IDLE}


def test_replicas_are_shared_by_work_and_what_nobody_used_is_idle():
    held = Account(START, END, START, currency="EUR")
    parts = {ORIGINS[0]: counts(1, 1000, 0, 700), ORIGINS[2]: counts(1, 0, 0, 1000)}  # 1000 units each
    for second in range(30, 330, 30):
        read = {"own": reading(0, 300, parts)} if second == 300 else {}
        held = ledger.accrue(held, uses(read, room="10"), at(second), max_gap_seconds=90)
    held = ledger.accrue(held, uses(room="10"), at(301), max_gap_seconds=90)
    lines = book.lines_of(held.book)
    each = Decimal("3.30") * 2 * 300 / 3600 / 3  # 2,000 of 3,000 units of room are used
    assert lines["own", ORIGINS[0]].replica_cost == pytest.approx(each)
    assert lines["own", ORIGINS[2]].replica_cost == pytest.approx(each)
    assert lines["own", IDLE].replica_cost == pytest.approx(each)


def test_a_slot_waits_for_its_tokens_and_then_no_longer():
    held = Account(START, END, START, currency="EUR")
    for second in range(60, 3660, 60):
        held = ledger.accrue(held, uses(), at(second), max_gap_seconds=90)
    assert book.lines_of(held.book) == {}, "nobody has counted: it is not idle yet"
    late = reading(0, 300, {ORIGINS[0]: counts(1, 0, 0, 10**9)})
    held = ledger.accrue(held, uses({"own": late}), at(3661), max_gap_seconds=90)
    [((_, origin), _)] = [(k, v) for k, v in book.lines_of(held.book).items() if v.replica_cost]
    assert origin == ORIGINS[0], "the first slot is its who worked in it"
    for second in range(3700, 3600 * 8, 60):
        held = ledger.accrue(held, uses(), at(second), max_gap_seconds=90)
    assert book.lines_of(held.book)["own", IDLE].replica_cost > 0
    agrees(held)


def test_a_price_change_costs_the_higher_only_for_what_lies_between():
    held = ledger.accrue(Account(START, END, START, currency="EUR"), uses(prices=CHEAP), at(10), max_gap_seconds=90)
    held = ledger.accrue(held, uses(prices=DEAR), at(20), max_gap_seconds=90)
    part = {ORIGINS[0]: counts(1, 0, 0, 1_000_000)}
    pieces = [reading(0, 9, part), reading(9, 18, part), reading(18, 27, part), reading(27, 36, part)]
    read = pieces[0]
    for piece in pieces[1:]:
        read = usage.add(read, piece)
    before = ledger.spend(held).counted
    held = ledger.accrue(held, uses({"api": read}, prices=DEAR), at(40), max_gap_seconds=90)
    tokens = held.entries["api"].cost
    assert tokens == CHEAP.output + 3 * DEAR.output
    assert ledger.spend(held).counted - before > tokens
    held = ledger.accrue(held, uses(prices=CHEAP), at(50), max_gap_seconds=90)
    held = ledger.accrue(held, uses({"api": reading(36, 55, part)}, prices=CHEAP), at(60), max_gap_seconds=90)
    assert held.entries["api"].cost - tokens == DEAR.output, "it fell somewhere in between: the higher one"
    held = ledger.accrue(held, uses({"api": reading(55, 65, part)}, prices=CHEAP), at(70), max_gap_seconds=90)
    assert held.entries["api"].cost - tokens == DEAR.output + CHEAP.output


def test_a_price_that_changed_while_no_operator_ran_is_the_higher_for_all_of_that_time():
    held = ledger.accrue(Account(START, END, START, currency="EUR"), uses(prices=DEAR), at(10), max_gap_seconds=90)
    held = round_trip(held)
    read = reading(10, 200, {ORIGINS[0]: counts(1, 0, 0, 1_000_000)})
    held = ledger.accrue(held, uses({"api": read}, prices=CHEAP), at(205), max_gap_seconds=90)
    assert held.entries["api"].cost == DEAR.output


def test_the_replicas_price_between_two_rounds_is_the_higher():
    held = ledger.accrue(
        Account(START, END, START, currency="EUR"), uses(price="36", replicas=1), at(10), max_gap_seconds=90
    )
    held = ledger.accrue(held, uses(price="3.6", replicas=1), at(20), max_gap_seconds=90)
    held = ledger.accrue(held, uses(price="3.6", replicas=1), at(30), max_gap_seconds=90)
    assert ledger.spend(held).counted == Decimal("0.1") + Decimal("0.1") + Decimal("0.01")


def test_what_history_does_not_reach_is_charged_its_bound_for_good():
    held = ledger.accrue(
        Account(START, END, START, currency="EUR"), uses({"api": reading(0, 10, {})}), at(10), max_gap_seconds=90
    )
    part = {ORIGINS[0]: counts(1, 0, 0, 1_000_000)}
    held = ledger.accrue(held, uses({"api": reading(3610, 3700, part)}), at(3701), max_gap_seconds=90)
    assert held.entries["api"].estimated_cost == 40
    assert held.entries["api"].cost == CHEAP.output
    agrees(held)


def test_gateways_that_end_leave_a_bound_that_is_no_spend():
    part = {ORIGINS[0]: counts(1, 0, 0, 1_000_000)}
    held = ledger.accrue(
        Account(START, END, START, currency="EUR"),
        uses({"api": reading(0, 10, part), "own": reading(0, 10, {})}),
        at(10),
        max_gap_seconds=90,
    )
    assert ledger.spend(held).bound == 0
    ended = {name: reading(10, 20, {}, crashes=1, lost_seconds=5.0) for name in ("own", "api")}
    held = ledger.accrue(held, uses(ended), at(20), max_gap_seconds=90)
    spent = ledger.spend(held)
    assert spent.bound == CHEAP.output / 10 * 5
    assert spent.worst == spent.total + spent.bound
    assert held.crashes == 1


def test_the_period_turns_and_its_last_tokens_are_of_the_old_one():
    held = Account(START, END, END - timedelta(seconds=30), currency="EUR")
    part = {ORIGINS[0]: counts(1, 0, 0, 1_000_000)}
    day = 86_400
    held = ledger.accrue(held, uses({"api": reading(day - 40, day - 25, part)}), END, max_gap_seconds=90)
    after = periods.turned(held, END, END + timedelta(days=1), "UTC")
    assert ledger.spend(after).total == 0
    late = usage.add(reading(day - 25, day - 5, part), reading(day - 5, day + 10, part))
    after = ledger.accrue(after, uses({"api": late}), at(day + 12), max_gap_seconds=90)
    assert after.entries["api"].cost == CHEAP.output
    again = ledger.accrue(after, uses({"api": late}), at(day + 13), max_gap_seconds=90)
    assert again.entries["api"].cost == CHEAP.output
    assert again.book.earlier == after.book.earlier
    [lines] = after.book.earlier.values()
    assert lines["api", ORIGINS[0]].output_cost == 2 * CHEAP.output
    assert lines["own", IDLE].replica_seconds == 60
    assert round_trip(after) == after


def test_hours_become_days_of_the_calendar_and_nothing_is_lost():
    held, moment = Account(START, START + timedelta(days=30), START), 0
    while moment < 5 * 86_400:
        moment += 3600
        part = {ORIGINS[moment // 3600 % 4]: counts(1, 10, 0, 10)}
        held = ledger.accrue(
            held, uses({"api": reading(moment - 3600, moment, part)}), at(moment), max_gap_seconds=4000
        )
    tidy = book.tidied(held.book, at(moment), "Asia/Tokyo")
    assert book.lines_of(tidy) == book.lines_of(held.book)
    assert len(tidy.hours) <= 72
    assert [start.hour for start in tidy.days] == [15] * len(tidy.days)


def test_what_can_not_be_told_apart_any_more_counts_together():
    pen = Pen(Book())
    for number in range(book.MAX_KEYS + 44):
        pen.write(START, "api", {("api", Origin("p", "c", f"consumer-{number}")): Line(output_cost=Decimal(1))})
    pen.write(START, "api", {("api", Origin("p", "c", "consumer-3")): Line(output_cost=Decimal(1))})
    lines = book.lines_of(pen.done())
    assert len(lines) == book.MAX_KEYS + 1
    assert lines["api", OTHER].output_cost == 44
    assert lines["api", Origin("p", "c", "consumer-3")].output_cost == 2


def test_what_is_too_large_to_keep_loses_detail_and_no_money():
    pen = Pen(Book())
    for hour in range(60):
        for number in range(200):
            line = Line(output_cost=Decimal(number * 7919 % 1000003) * book.PICO, output_tokens=Decimal(number))
            origin = Origin("policy", f"class-{number % 10}", f"consumer-{number}")
            pen.write(at(3600 * hour), "api", {("api", origin): line})
    held = Account(START, END, START, book=dataclasses.replace(pen.done(), earlier={START: {("api", OTHER): Line()}}))
    whole = book.total(held.book)
    sizes = set()
    for limit in (10**7, 60_000, 20_000, 3_000, 1):
        found = round_trip(held, max_bytes=limit)
        assert book.total(found.book) == whole
        sizes.add(len(book.lines_of(found.book)))
    assert sizes == {200, 10, 1}


@pytest.mark.parametrize("text", ["", "AAAA", "!", "eJyrVkrLL8pNLFGyUjJUqgUAIhUEQg=="])
def test_damaged_accounts_are_told(text):
    with pytest.raises(kept.UnreadableAccount):
        kept.unpack(text)


def test_a_bomb_is_not_unpacked():
    import base64
    import zlib

    with pytest.raises(kept.UnreadableAccount):
        kept.unpack(base64.b64encode(zlib.compress(b"0" * 70_000_000, 9)).decode())
