"""The checks of this suite turn red for the defects that they are there for: ledgers that are wrong on purpose.

No cluster: a provider's log, and what each wrong ledger would have shown of it.
"""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal

import pytest

import budget_support
from budget_support import PAID, Price

DEAR = Price(PAID.input * 3, PAID.output * 3)
RESETS = datetime(2026, 12, 1, tzinfo=UTC)


def log(count: int, *, every: float = 1.0) -> list[dict]:
    """Attempts that were answered one after another."""
    return [{"prompt": 35, "completion": 20, "end": number * every} for number in range(count)]


def bill(attempts: list[dict], price: Price = PAID) -> Decimal:
    return sum((price.of(one) for one in attempts), Decimal(0))


def figures(measured: Decimal, estimated: Decimal = Decimal(0), **more: object) -> dict:
    return {
        "measured": f"{measured:.2f}",
        "estimated": f"{estimated:.2f}",
        "spent": f"{measured + estimated:.2f}",
        "bound": "0",
        **more,
    }


def red(check: Callable[[], None]) -> None:
    with pytest.raises(AssertionError):
        check()


def test_what_is_counted() -> None:
    attempts = log(20)
    exact = bill(attempts)
    budget_support.check_exact(figures(exact), exact)
    for wrong in (
        bill(attempts[::2]),  # those that fell back are free
        2 * exact,  # once per gateway
        bill(attempts[:13]),  # one gateway of two
        exact + Decimal("0.87"),  # one answer twice
    ):
        red(lambda wrong=wrong: budget_support.check_exact(figures(wrong), exact))
    red(lambda: budget_support.check_exact(figures(exact, Decimal(1)), exact))


def test_what_is_estimated() -> None:
    exact = bill(log(20))
    budget_support.check_bounded(figures(Decimal(0), 3 * exact), exact)
    for measured, estimated in (
        (Decimal(0), Decimal(0)),  # nothing, for nothing was reported
        (Decimal(0), exact / 2),  # the mean of others, too low
        (exact, Decimal(0)),  # said to be measured
        (Decimal(0), 50 * exact),  # a bound that says nothing
    ):
        red(lambda m=measured, e=estimated: budget_support.check_bounded(figures(m, e), exact))


def test_what_a_crash_loses() -> None:
    attempts = log(200, every=0.1)
    exact, at_risk = bill(attempts), bill(attempts[90:100])
    shown = {"gatewaysLost": 1, "bound": f"{at_risk:.2f}"}
    budget_support.check_crash(figures(exact - at_risk / 2, **shown), exact, at_risk, crashes=1)
    for wrong in (
        figures(bill(attempts[100:]), **shown),  # a counter that went back takes its past with it
        figures(exact + bill(attempts[:90]), **shown),  # its past twice
        figures(exact - at_risk, gatewaysLost=1, bound="1.00"),  # more than the bound
        figures(exact, gatewaysLost=6, bound="50.00"),  # told again with every read
    ):
        red(lambda wrong=wrong: budget_support.check_crash(wrong, exact, at_risk, crashes=1))


def test_which_price_applies() -> None:
    attempts = log(100, every=0.1)
    both = {"changed": 5.0, "before": PAID, "after": DEAR, "slack": Decimal(40)}
    right = bill(attempts[:51]) + bill(attempts[51:], DEAR)
    budget_support.check_prices(right, attempts, **both)
    red(lambda: budget_support.check_prices(bill(attempts), attempts, **both))  # it never changes
    red(lambda: budget_support.check_prices(bill(attempts, DEAR), attempts, **both))  # it rewrites history


def answers(count: int, denied_from: int, *, slips: int = 0) -> list[dict]:
    """One a second; from some moment on refused, but for some at the end."""
    error = {"message": "m", "type": "insufficient_quota", "param": None, "code": "budget_exceeded"}
    refused = {"status": 429, "error": json.dumps({"error": error})}
    return [
        {"start": float(number)} | (refused if denied_from <= number < count - slips else {"status": 200})
        for number in range(count)
    ]


def test_whether_the_ceiling_holds() -> None:
    held = {"ceiling": Decimal(60), "bound": Decimal(10)}
    budget_support.check_held(answers(100, 65), Decimal(65), **held)
    red(lambda: budget_support.check_held(answers(100, 100), Decimal(100), **held))  # nobody is refused
    red(lambda: budget_support.check_held(answers(100, 75), Decimal(75), **held))  # too late
    red(lambda: budget_support.check_held(answers(100, 5), Decimal(5), **held))  # far too early
    red(lambda: budget_support.check_held(answers(100, 65, slips=2), Decimal(67), **held))  # one gateway lets go


def test_what_the_refused_are_told() -> None:
    def record(name: str = "team/ceiling", until: str = "2026-12-01T00:00:00Z", **more: object) -> dict:
        message = f"NamespaceBudget {name} is exhausted: requests are denied until it resets at {until}"
        error = {"message": message, "type": "insufficient_quota", "param": None, "code": "budget_exceeded"}
        return {"error": json.dumps({"error": error}), "retry_after": "Tue, 01 Dec 2026 00:00:00 GMT", **more}

    def check(found: dict) -> None:
        budget_support.check_denial(found, budget="team/ceiling", resets_at=RESETS)

    check(record())
    red(lambda: check(record(name="team/another")))  # of two budgets the milder one
    red(lambda: check(record(until="2026-11-30T23:00:00Z")))  # an hour off, as a clock change makes it
    red(lambda: check(record(retry_after=None)))
