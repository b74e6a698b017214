"""A report on accounts: lines by what they are asked for, in cents that add up. Pure.

Rounding is by largest remainder: each row is rounded down to cents, and what is missing from the rounded sum goes to
the rows that lost most. So the rows add up to the sum, and the sum of a whole period is what the ledger says.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import ROUND_FLOOR, ROUND_HALF_EVEN, Decimal
from zoneinfo import ZoneInfo

from tierwise.core import accounts, book, budget, ledger
from tierwise.core.book import IDLE, UNTOLD, Key, Line, Lines
from tierwise.core.kept import Kept
from tierwise.core.ledger import Account
from tierwise.core.signals import Origin
from tierwise.errors import TierwiseError

CENT = Decimal("0.01")
DIMENSIONS = ("tier", "policy", "class", "consumer", "purpose")
"""What lines can be put together by."""

PENDING = Origin(purpose="uncounted")
"""At most what providers cost since their tokens were last counted: of no tier and no caller yet."""


class ReportError(TierwiseError):
    """What is asked for can not be reported."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """Lines of one hour or day.

    Attributes:
        start, end: aware.
        billing: start and end of the budget's period that it is of.
        lines: by tier and origin.
    """

    start: datetime
    end: datetime
    billing: tuple[datetime, datetime]
    lines: Lines


@dataclass(frozen=True, slots=True)
class Source:
    """What is known of one budget.

    Attributes:
        namespace: of the budget.
        kept: its account, whole; of one that only the status tells of, without detail.
        spent, spent_at: what its status says, and of when; None where it does not.
        whole: whether the account is the one that was kept whole.
    """

    namespace: str
    kept: Kept
    spent: Decimal | None = None
    spent_at: datetime | None = None
    whole: bool = True


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a report.

    Attributes:
        namespace, currency: of all of it.
        group: values of the dimensions that were asked for, in their order.
        line: amounts, exact.
        measured, estimated: cost in cents that add up over the report; None where nothing of it has a price.
    """

    namespace: str
    currency: str
    group: tuple[str, ...]
    line: Line
    measured: Decimal | None = None
    estimated: Decimal | None = None

    @property
    def cost(self) -> Decimal | None:
        """Both."""
        return None if self.measured is None or self.estimated is None else self.measured + self.estimated

    @property
    def provenance(self) -> str:
        """How the cost is known."""
        if self.cost is None:
            return "unknown"
        kinds = [
            name for name, value in (("measured", self.line.measured), ("estimated", self.line.estimated)) if value
        ]
        return "+".join([*(kinds or ["measured"]), *(["unknown"] if self.line.unpriced else [])])


@dataclass(frozen=True, slots=True)
class Check:
    """Whether detail and sums agree, for one budget's present period.

    Attributes:
        namespace, budget, currency: whose.
        lines: sum of all lines, and of what is not counted yet. ledger: the account's own sum, by tier.
        status: what the budget's status says, where it is of the same moment; else None.
    """

    namespace: str
    budget: str
    currency: str
    lines: Decimal
    ledger: Decimal
    status: Decimal | None

    @property
    def agrees(self) -> bool:
        """To the cent."""
        return cents(self.lines) == cents(self.ledger) and self.status in {None, cents(self.ledger)}


@dataclass(frozen=True, slots=True)
class Report:
    """Rows, and what they rest on.

    Attributes:
        dimensions: of the rows' groups.
        since, until: what they cover; since is the start of the earliest hour or day in it.
        rows: sorted by namespace, then dearest first. checks: one per budget.
    """

    dimensions: tuple[str, ...]
    since: datetime
    until: datetime
    rows: tuple[Row, ...]
    checks: tuple[Check, ...]


def cents(value: Decimal) -> Decimal:
    """Rounded to cents, as statuses are."""
    return value.quantize(CENT, ROUND_HALF_EVEN)


def spread(values: Sequence[Decimal], total: Decimal) -> list[Decimal]:
    """Values in cents that add up to a total in cents, by largest remainder; none is further than a cent off.

    Raises:
        ReportError: the total is not theirs.
    """
    floors = [value.quantize(CENT, ROUND_FLOOR) for value in values]
    missing = int((total - sum(floors, Decimal(0))) / CENT)
    if not 0 <= missing <= len(values):
        raise ReportError(f"{sum(values, Decimal(0))} can not be {total}")
    order = sorted(range(len(values)), key=lambda n: (floors[n] - values[n], n))
    for place in order[:missing]:
        floors[place] += CENT
    return floors


def since(text: str, kept: Kept, now: datetime) -> datetime:
    """The start that a user names: `period`, `last-period`, a duration such as 36h or 7d, a date, or a time.

    Raises:
        ReportError: it is none of these, or in the future.
    """
    zone = ZoneInfo(kept.zone)
    if text == "period":
        return kept.account.start
    if text == "last-period":
        return budget.period(kept.period, kept.zone, kept.account.start - timedelta(seconds=1))[0]
    if text[:-1].isdigit() and text[-1:] in {"m", "h", "d", "w"}:
        unit = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}[text[-1]]
        try:
            return now - timedelta(**{unit: int(text[:-1])})
        except OverflowError:
            raise ReportError(f"--since {text}: lies before all time; name a shorter duration") from None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ReportError(f"--since {text}: name period, last-period, a duration (36h, 7d), a date or a time") from None
    moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=zone)
    if moment > now:
        raise ReportError(f"--since {text}: lies in the future")
    return moment


def buckets(kept: Kept) -> list[Bucket]:
    """All that an account knows, by hour and day, oldest first; what is not shared yet as far as it is known."""
    account, zone = kept.account, ZoneInfo(kept.zone)
    done = book.settled(account.book)
    now = (account.start, account.end)
    before = budget.period(kept.period, kept.zone, account.start - timedelta(seconds=1))
    found: list[Bucket] = []
    for billing, days in ((before, done.earlier), (now, done.days)):
        for start, lines in days.items():
            tomorrow = start.astimezone(zone).date() + timedelta(days=1)
            found.append(_bucket(start, book.midnight(tomorrow, zone), billing, lines))
    found += [_bucket(start, start + timedelta(hours=1), now, lines) for start, lines in done.hours.items()]
    if account.pending:
        line = Line(estimated_tokens_cost=account.pending)
        hour = book.hour(account.updated)
        found.append(_bucket(hour, hour + timedelta(hours=1), now, {("", PENDING): line}))
    return sorted(found, key=lambda each: (each.start, each.end))


def _bucket(start: datetime, end: datetime, billing: tuple[datetime, datetime], lines: Lines) -> Bucket:
    return Bucket(max(start, billing[0]), min(end, billing[1]), billing, lines)


def chosen(source: Source, start: datetime) -> list[Bucket]:
    """The buckets that begin at a start or later, and the one that it falls into."""
    return [each for each in buckets(source.kept) if each.end > start]


def group_of(key: Key, dimensions: Iterable[str]) -> tuple[str, ...]:
    """What a line shows for each dimension."""
    tier, origin = key
    named = {"tier": tier, "policy": origin.policy, "class": origin.class_name, "consumer": origin.consumer}
    special = {IDLE: "(idle)", UNTOLD: "(no detail)", PENDING: "(not counted yet)"}.get(origin)
    found: list[str] = []
    for dimension in dimensions:
        if dimension == "purpose":
            found.append(origin.purpose or "answer")
        elif dimension == "tier":
            found.append(tier or special or "")
        else:
            found.append(special or named[dimension] or "(none)")
    return tuple(found)


def total_of(account: Account) -> Decimal:
    """The account's own sum."""
    return ledger.spend(account).total


def check(source: Source) -> Check:
    """Compare all lines of the present period with the account, and with the status."""
    account = source.kept.account
    lines = sum((each.cost for each in _present(source.kept)), Decimal(0))
    same = source.spent_at is not None and abs((source.spent_at - account.updated).total_seconds()) < 1
    return Check(
        source.namespace,
        source.kept.name,
        source.kept.currency,
        lines=lines,
        ledger=total_of(account),
        status=cents(source.spent) if same and source.spent is not None else None,
    )


def _present(kept: Kept) -> list[Line]:
    start = kept.account.start
    return [line for each in buckets(kept) if each.billing[0] == start for line in each.lines.values()]


def report(sources: Iterable[Source], dimensions: Sequence[str], start: str, now: datetime) -> Report:
    """Rows of all sources since a start that a user names.

    Raises:
        ReportError: the start is none.
    """
    sources = list(sources)
    rows: list[Row] = []
    begins: list[datetime] = []
    ends: list[datetime] = []
    for source in sources:
        wanted = since(start, source.kept, now)
        found = chosen(source, wanted)
        if start == "last-period":
            found = [each for each in found if each.billing[0] < source.kept.account.start]
        begins.append(min((each.start for each in found), default=max(wanted, source.kept.account.start)))
        ends.append(source.kept.account.updated if start != "last-period" else source.kept.account.start)
        rows += _rows(source, dimensions, found)
    return Report(
        tuple(dimensions),
        since=min(begins, default=now).astimezone(UTC),
        until=max(ends, default=now).astimezone(UTC),
        rows=tuple(rows),
        checks=tuple(check(source) for source in sources),
    )


def _rows(source: Source, dimensions: Sequence[str], found: Iterable[Bucket]) -> list[Row]:
    sums: dict[tuple[str, ...], Line] = {}
    for each in found:
        for key, line in each.lines.items():
            group = group_of(key, dimensions)
            sums[group] = sums.get(group, Line()) + line
    rows = [Row(source.namespace, source.kept.currency, group, line) for group, line in sums.items() if line != Line()]
    rows.sort(key=lambda row: (-row.line.cost, row.group))
    return _rounded(rows)


def _rounded(rows: list[Row]) -> list[Row]:
    """Rows with costs in cents; what has no price at all keeps none."""
    priced = [n for n, row in enumerate(rows) if row.line.cost or not row.line.unpriced]
    whole = sum((rows[n].line.measured for n in priced), Decimal(0))
    bounded = sum((rows[n].line.estimated for n in priced), Decimal(0))
    # Measured is rounded, and estimated is the rest: together they are what the status says is spent.
    measured = spread([rows[n].line.measured for n in priced], cents(whole))
    rest = cents(whole + bounded) - cents(whole)
    estimated = _spread_near([rows[n].line.estimated for n in priced], rest)
    made = list(rows)
    for place, n in enumerate(priced):
        made[n] = replace(rows[n], measured=measured[place], estimated=estimated[place])
    return made


def _spread_near(values: list[Decimal], total: Decimal) -> list[Decimal]:
    """As `spread`; where rounding twice left a cent more or less than theirs, the largest takes it."""
    if not values:
        return []
    own = cents(sum(values, Decimal(0)))
    found = spread(values, own)
    found[max(range(len(values)), key=lambda n: values[n])] += total - own
    return found


def from_status(namespace: str, body: Mapping[str, object]) -> Source | None:
    """What a budget's status alone tells: sums by tier. None where it has no checkpoint.

    Raises:
        InvalidObject: it is no valid NamespaceBudget.
    """
    found = accounts.from_status(body)
    if found is None:
        return None
    parsed, held = found
    return Source(namespace, accounts.kept(parsed, held), whole=False)
