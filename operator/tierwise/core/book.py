"""A budget's spend in detail: by hour, tier and origin, so that it can be shown who caused it.

Everything that an account charges is a line here as well, in whole trillionths of the currency: what lines add up to is
what the account says, without a remainder. Replicas are not caused by anyone: what a tier's replicas cost in five
minutes is shared among those whose tokens it made in them (`Window`), and what nobody used of them is idle cost, a line
of its own.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, date, datetime, time, timedelta
from decimal import ROUND_DOWN, Decimal
from typing import TypeAlias
from zoneinfo import ZoneInfo

from tierwise.core.capacity import PROMPT_WEIGHT
from tierwise.core.signals import Origin

PICO = Decimal("1e-12")
"""Every charge is a whole number of these, so that no sum of charges is ever rounded."""

MICRO = Decimal("1e-6")
"""Seconds and work are kept in whole numbers of these."""

SLOT_SECONDS = 300
"""The time over which a tier's replicas are shared among those who used them."""

PATIENCE_SECONDS = 6 * 3600.0
"""How long a slot waits for its tokens to be counted; after that its cost is idle."""

HOURS_KEPT = 48
"""Older hours are kept as days of the budget's calendar."""

MAX_KEYS = 256
"""Pairs of tier and origin that are told apart in a period; those that come later count together."""

IDLE = Origin(purpose="idle")
OTHER = Origin("(other)", "(other)", "(other)")
UNTOLD = Origin(purpose="untold")
"""Charged before a restart, without a record of whom it was for."""

ZERO = Decimal(0)
WEIGHT = Decimal(str(PROMPT_WEIGHT))
Key: TypeAlias = tuple[str, Origin]  # tier, whose


@dataclass(frozen=True, slots=True)
class Line:
    """What one origin used of one tier in some time.

    Attributes:
        input_tokens, cached_input_tokens, output_tokens: that upstreams reported; input without cached input.
        requests: that may be billed.
        replica_seconds, estimated_replica_seconds: its share of the replicas.
        input_cost, cached_input_cost, output_cost, replica_cost: measured.
        estimated_tokens_cost, estimated_replica_cost: bounded from above.
        untold_cost: measured, of which a checkpoint does not say what for.
        unpriced: requests, and seconds of replicas, that had no price.
    """

    input_tokens: Decimal = ZERO
    cached_input_tokens: Decimal = ZERO
    output_tokens: Decimal = ZERO
    requests: Decimal = ZERO
    replica_seconds: Decimal = ZERO
    estimated_replica_seconds: Decimal = ZERO
    input_cost: Decimal = ZERO
    cached_input_cost: Decimal = ZERO
    output_cost: Decimal = ZERO
    replica_cost: Decimal = ZERO
    estimated_tokens_cost: Decimal = ZERO
    estimated_replica_cost: Decimal = ZERO
    untold_cost: Decimal = ZERO
    unpriced: Decimal = ZERO

    def __add__(self, other: "Line") -> "Line":
        """Both."""
        return Line(*(getattr(self, name) + getattr(other, name) for name in FIELDS))

    @property
    def measured(self) -> Decimal:
        """Cost of what was counted."""
        return self.input_cost + self.cached_input_cost + self.output_cost + self.replica_cost + self.untold_cost

    @property
    def estimated(self) -> Decimal:
        """Cost of what was bounded."""
        return self.estimated_tokens_cost + self.estimated_replica_cost

    @property
    def cost(self) -> Decimal:
        """Both."""
        return self.measured + self.estimated


FIELDS = tuple(each.name for each in fields(Line))
Lines: TypeAlias = Mapping[Key, Line]


@dataclass(frozen=True, slots=True)
class Window:
    """A tier's replicas in one slot, not shared yet.

    Attributes:
        seconds, estimated_seconds, cost, estimated, unpriced_seconds: as in `Line`.
        room: work units that the replicas could have done within their objectives; 0: unknown.
        work: origin -> work units done: generated tokens, and prompt tokens at `capacity.PROMPT_WEIGHT`.
    """

    seconds: Decimal = ZERO
    estimated_seconds: Decimal = ZERO
    cost: Decimal = ZERO
    estimated: Decimal = ZERO
    unpriced_seconds: Decimal = ZERO
    room: Decimal = ZERO
    work: Mapping[Origin, Decimal] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Book:
    """One account's lines.

    Attributes:
        hours: start of an hour (UTC) -> lines, of the last two days.
        days: start of a day of the budget's calendar -> lines, before that.
        earlier: likewise, of the period before.
        windows: (tier, start of a slot) -> what is not shared yet.
        keys: what is told apart in this period.
    """

    hours: Mapping[datetime, Lines] = field(default_factory=dict)
    days: Mapping[datetime, Lines] = field(default_factory=dict)
    earlier: Mapping[datetime, Lines] = field(default_factory=dict)
    windows: Mapping[tuple[str, datetime], Window] = field(default_factory=dict)
    keys: frozenset[Key] = frozenset()


def hour(moment: datetime) -> datetime:
    """Start of its hour, UTC."""
    return moment.astimezone(UTC).replace(minute=0, second=0, microsecond=0)


def slot(moment: datetime) -> datetime:
    """Start of its slot; slots divide hours."""
    stamp = int(moment.timestamp())
    return datetime.fromtimestamp(stamp - stamp % SLOT_SECONDS, UTC)


def day(moment: datetime, zone: str) -> datetime:
    """Start, in UTC, of the calendar day of `zone` around a moment."""
    place = ZoneInfo(zone)
    return midnight(moment.astimezone(place).date(), place)


def midnight(of: date, place: ZoneInfo) -> datetime:
    """Start of a calendar day, in UTC."""
    return datetime.combine(of, time(), tzinfo=place).astimezone(UTC)


class Pen:
    """Writes into a copy of a book; `done` is the book afterwards."""

    def __init__(self, book: Book) -> None:
        self._hours: dict[datetime, Lines] = dict(book.hours)
        self._earlier: dict[datetime, Lines] = dict(book.earlier)
        self._windows: dict[tuple[str, datetime], Window] = dict(book.windows)
        self._keys = set(book.keys)
        self._days = book.days

    def done(self) -> Book:
        """The book as it is now."""
        return Book(self._hours, self._days, self._earlier, self._windows, frozenset(self._keys))

    def write(self, moment: datetime, tier: str, lines: Lines) -> None:
        """Add lines to a moment's hour."""
        start = hour(moment)
        held = dict(self._hours.get(start, {}))
        for (_, origin), line in lines.items():
            key = self._key(tier, origin)
            held[key] = held.get(key, Line()) + line
        self._hours[start] = held

    def write_earlier(self, lines: Lines) -> None:
        """Add lines to the last day of the period before."""
        if not self._earlier:
            return
        last = max(self._earlier)
        held = dict(self._earlier[last])
        for key, line in lines.items():
            held[key] = held.get(key, Line()) + line
        self._earlier[last] = held

    def _key(self, tier: str, origin: Origin) -> Key:
        key = (tier, origin)
        if key in self._keys:
            return key
        if origin not in {IDLE, UNTOLD} and len(self._keys) >= MAX_KEYS:
            return (tier, OTHER)
        self._keys.add(key)
        return key

    def replicas(self, tier: str, moment: datetime, window: Window) -> None:
        """Add what replicas cost in a moment's slot."""
        key = (tier, slot(moment))
        held = self._windows.get(key, Window())
        self._windows[key] = Window(
            held.seconds + window.seconds,
            held.estimated_seconds + window.estimated_seconds,
            held.cost + window.cost,
            held.estimated + window.estimated,
            held.unpriced_seconds + window.unpriced_seconds,
            held.room + window.room,
            held.work,
        )

    def worked(self, tier: str, until: datetime, work: Mapping[Origin, Decimal]) -> None:
        """Add work that was counted at a moment: to its slot, or to the nearest that is still open."""
        if not any(work.values()):
            return
        wanted = slot(until - timedelta(microseconds=1))
        open_slots = sorted(start for name, start in self._windows if name == tier)
        if wanted not in open_slots:
            wanted = next((start for start in reversed(open_slots) if start < wanted), (*open_slots, wanted)[0])
        held = self._windows.get((tier, wanted), Window())
        sums = {origin: held.work.get(origin, ZERO) + work.get(origin, ZERO) for origin in {*held.work, *work}}
        self._windows[tier, wanted] = replace(held, work=sums)

    def close(self, now: datetime, counted: Mapping[str, datetime | None], *, everything: bool = False) -> None:
        """Share the slots that are over and whose tokens are counted.

        Args:
            now: aware.
            counted: tier -> until when its tokens are counted.
            everything: share all.
        """
        for tier, start in sorted(self._windows):
            end = start + timedelta(seconds=SLOT_SECONDS)
            told = counted.get(tier)
            ripe = end <= now and ((told is not None and told >= end) or (now - end).total_seconds() > PATIENCE_SECONDS)
            if everything or ripe:
                self.write(
                    start, tier, {(tier, o): line for o, line in shared(self._windows.pop((tier, start))).items()}
                )


def shared(window: Window) -> dict[Origin, Line]:
    """A slot's replicas, shared by work; what nobody used is idle. The parts add up to the whole exactly.

    Where the replicas' room is known, the work takes its part of it and the rest is idle; where it is not, work of any
    kind takes all.
    """
    total = sum(window.work.values(), ZERO)
    used = ZERO if total <= 0 else min(total, window.room) if window.room > 0 else total
    room = window.room if window.room > 0 else total
    amounts = {
        "replica_seconds": (window.seconds, MICRO),
        "estimated_replica_seconds": (window.estimated_seconds, MICRO),
        "replica_cost": (window.cost, PICO),
        "estimated_replica_cost": (window.estimated, PICO),
        "unpriced": (window.unpriced_seconds, MICRO),
    }
    found: dict[Origin, Line] = {}
    left = {name: value for name, (value, _) in amounts.items()}
    workers = sorted((work, origin) for origin, work in window.work.items() if work > 0)
    for work, origin in workers:
        last = (work, origin) == workers[-1] and used >= room
        parts: dict[str, Decimal] = {}
        for name, (value, unit) in amounts.items():
            part = left[name] if last else (value * used * work / (room * total)).quantize(unit, ROUND_DOWN)
            parts[name] = part
            left[name] -= part
        found[origin] = Line(**parts)
    if any(left.values()):
        found[IDLE] = Line(**left)
    return found


def work_of(prompt_tokens: Decimal, completion_tokens: Decimal) -> Decimal:
    """Work units of tokens."""
    return (completion_tokens + WEIGHT * prompt_tokens).quantize(MICRO)


def tidied(book: Book, now: datetime, zone: str) -> Book:
    """With hours of the days before yesterday put together by day."""
    limit = day(now - timedelta(hours=HOURS_KEPT), zone)
    old = {start: lines for start, lines in book.hours.items() if start + timedelta(hours=1) <= limit}
    if not old:
        return book
    return replace(
        book,
        hours={start: lines for start, lines in book.hours.items() if start not in old},
        days=merged([*book.days.items(), *((day(start, zone), lines) for start, lines in sorted(old.items()))]),
    )


def merged(parts: Iterable[tuple[datetime, Lines]]) -> dict[datetime, Lines]:
    """Lines by their start; those with the same start together."""
    found: dict[datetime, dict[Key, Line]] = {}
    for start, lines in parts:
        held = found.setdefault(start, {})
        for key, line in lines.items():
            held[key] = held.get(key, Line()) + line
    return dict(sorted(found.items()))


def settled(book: Book) -> Book:
    """With all slots shared as far as they are known."""
    pen = Pen(book)
    pen.close(datetime.max.replace(tzinfo=UTC), {}, everything=True)
    return pen.done()


def turned(book: Book, zone: str, end: datetime) -> Book:
    """The book of the period after: this one's lines, by day, are the earlier ones.

    Its last day is among them, whatever is known of it: what is counted late is written there.
    """
    done = settled(book)
    by_day = [*done.days.items(), *((day(start, zone), lines) for start, lines in done.hours.items())]
    return Book(earlier=merged([*by_day, (day(end - timedelta(microseconds=1), zone), {})]))


def narrowed(book: Book, start: datetime, zone: str) -> Book:
    """The book of a shorter period within this one: what began before its start is left out.

    An hour or a day that reaches over the start is kept whole: rather too much than too little.
    """
    place = ZoneInfo(zone)

    def ends(of: datetime) -> datetime:
        return midnight(of.astimezone(place).date() + timedelta(days=1), place)

    windows = {key: one for key, one in book.windows.items() if key[1] + timedelta(seconds=SLOT_SECONDS) > start}
    hours = {at: lines for at, lines in book.hours.items() if at + timedelta(hours=1) > start}
    days = {at: lines for at, lines in book.days.items() if ends(at) > start}
    keys = frozenset(key for part in (hours, days) for lines in part.values() for key in lines)
    return Book(hours, days, windows=windows, keys=keys)


def filled(book: Book, totals: Mapping[str, Line], at: datetime) -> Book:
    """With a line for what the book lacks of each tier's totals; totals do not say what cost is for.

    Args:
        book: with all slots shared.
        totals: tier -> what it is to add up to; the estimated cost is in one of its fields, the measured in
            `untold_cost`.
        at: when to note it.
    """
    held: dict[str, Line] = {}
    for (tier, _), line in lines_of(book).items():
        held[tier] = held.get(tier, Line()) + line
    lacking: dict[Key, Line] = {}
    for tier, wanted in totals.items():
        found = held.get(tier, Line())
        lack = Line(
            input_tokens=wanted.input_tokens - found.input_tokens,
            cached_input_tokens=wanted.cached_input_tokens - found.cached_input_tokens,
            output_tokens=wanted.output_tokens - found.output_tokens,
            replica_seconds=wanted.replica_seconds - found.replica_seconds - found.estimated_replica_seconds,
            untold_cost=wanted.measured - found.measured,
            estimated_tokens_cost=wanted.estimated - found.estimated,
        )
        if lack != Line():
            lacking[tier, UNTOLD] = lack
    if not lacking:
        return book
    start = hour(at)
    keys = book.keys | lacking.keys()
    return replace(book, hours=merged([*book.hours.items(), (start, lacking)]), keys=frozenset(keys))


def lines_of(book: Book) -> dict[Key, Line]:
    """This period's lines by tier and origin, without what is not shared yet."""
    found: dict[Key, Line] = {}
    for part in (book.days, book.hours):
        for lines in part.values():
            for key, line in lines.items():
                found[key] = found.get(key, Line()) + line
    return found


def by_tier(book: Book) -> dict[str, Line]:
    """This period's sum of each tier, with what is not shared yet."""
    found: dict[str, Line] = {}
    for (tier, _), line in lines_of(book).items():
        found[tier] = found.get(tier, Line()) + line
    for (tier, _), window in book.windows.items():
        found[tier] = sum(shared(window).values(), found.get(tier, Line()))
    return found


def total(book: Book) -> Line:
    """This period's sum, with what is not shared yet."""
    return sum(by_tier(book).values(), Line())
