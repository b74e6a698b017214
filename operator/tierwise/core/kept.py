"""An account as text and back: the ledger outlives the operator, with every line and to the last trillionth.

The text is JSON, compressed. What grows too large to be kept loses detail in a stated order, never a sum.
"""

import base64
import binascii
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import Any

from tierwise.core import book
from tierwise.core.book import Book, Key, Line, Lines, Window
from tierwise.core.charges import TokenPrices
from tierwise.core.ledger import Account, Entry, Seen
from tierwise.core.signals import Origin
from tierwise.errors import TierwiseError

FORMAT = "1"
MAX_BYTES = 900 * 1024
"""A ConfigMap holds a mebibyte."""

_MAX_CONTENT = 64 * 1024 * 1024
"""Largest content that is unpacked: the text could hold far more zeros."""


class UnreadableAccount(TierwiseError):  # noqa: N818 - reads as the state it reports
    """The text is not what `pack` wrote."""


@dataclass(frozen=True, slots=True)
class Kept:
    """An account, and of which budget it is.

    Attributes:
        name, uid, currency, zone, period: of the budget.
        account: as of its last round (`account.updated`).
    """

    name: str
    uid: str
    currency: str
    zone: str
    period: str
    account: Account


def pack(kept: Kept, *, max_bytes: int = MAX_BYTES) -> str:
    """The text; equal accounts give equal texts.

    What is larger than `max_bytes` is kept with less detail: hours as days, then the period before without consumers,
    then this period too, then tiers only.
    """
    found = ""
    for reduce in (_same, _by_day, _earlier_plain, _plain, _tiers_only):
        account = replace(kept.account, book=reduce(kept.account.book, kept.zone))
        content = json.dumps(_content(replace(kept, account=account)), sort_keys=True, separators=(",", ":"))
        found = base64.b64encode(zlib.compress(content.encode(), 6)).decode()
        if len(found) <= max_bytes:
            break
    return found


def unpack(text: str) -> Kept:
    """What was packed.

    Raises:
        UnreadableAccount: another format, or damaged.
    """
    try:
        inflate = zlib.decompressobj()
        content = inflate.decompress(base64.b64decode(text, validate=True), _MAX_CONTENT)
        if not inflate.eof:
            raise UnreadableAccount(f"content is cut short or larger than {_MAX_CONTENT} bytes")
        return _kept(json.loads(content))
    except (
        KeyError,
        IndexError,
        TypeError,
        ValueError,
        AttributeError,
        InvalidOperation,
        binascii.Error,
        zlib.error,
    ) as error:
        raise UnreadableAccount(f"{type(error).__name__}: {error}") from error


def _same(held: Book, _: str) -> Book:
    return held


def _by_day(held: Book, zone: str) -> Book:
    done = [(book.day(start, zone), lines) for start, lines in held.hours.items()]
    return replace(held, hours={}, days=book.merged([*held.days.items(), *done]))


def _earlier_plain(held: Book, zone: str) -> Book:
    return replace(_by_day(held, zone), earlier=_without_consumers(held.earlier))


def _plain(held: Book, zone: str) -> Book:
    held = _earlier_plain(held, zone)
    return replace(held, days=_without_consumers(held.days), keys=frozenset())


def _tiers_only(held: Book, zone: str) -> Book:
    held = _plain(held, zone)

    def untold(parts: Mapping[datetime, Lines]) -> dict[datetime, Lines]:
        return book.merged(
            (start, {(tier, book.OTHER): line}) for start, lines in parts.items() for (tier, _), line in lines.items()
        )

    return replace(held, days=untold(held.days), earlier=untold(held.earlier))


def _without_consumers(parts: Mapping[datetime, Lines]) -> dict[datetime, Lines]:
    return book.merged(
        (start, {(tier, replace(origin, consumer="(other)") if origin.consumer else origin): line})
        for start, lines in parts.items()
        for (tier, origin), line in lines.items()
    )


def _number(value: Decimal) -> str:
    return format(value.normalize(), "f") if value else "0"


def _maybe(value: Decimal | None) -> str | None:
    return None if value is None else _number(value)


def _time(value: datetime | None) -> str | None:
    return None if value is None else value.astimezone(UTC).isoformat()


def _moment(text: str | None) -> datetime | None:
    return None if text is None else _at(text)


def _at(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"a time without a zone: {text}")
    return moment


def _decimal(text: str | None) -> Decimal | None:
    return None if text is None else Decimal(text)


def _prices(prices: TokenPrices | None) -> list[str] | None:
    return None if prices is None else [_number(prices.input), _number(prices.cached_input), _number(prices.output)]


def _from_prices(found: list[str] | None) -> TokenPrices | None:
    return None if found is None else TokenPrices(*(Decimal(text) for text in found))


def _content(kept: Kept) -> dict[str, Any]:
    account, held = kept.account, kept.account.book
    parts = {"hours": held.hours, "days": held.days, "earlier": held.earlier}
    keys: set[Key] = set(held.keys) | {key for part in parts.values() for lines in part.values() for key in lines}
    origins = sorted({origin for _, origin in keys} | {o for w in held.windows.values() for o in w.work})
    place = {origin: number for number, origin in enumerate(origins)}
    return {
        "format": FORMAT,
        "budget": [kept.name, kept.uid, kept.currency, kept.zone, kept.period],
        "period": [_time(account.start), _time(account.end), _time(account.updated)],
        "ladder": [account.rung, _time(account.since)],
        "sums": [_number(value) for value in (*account.before, account.pending, account.bound)],
        "crashes": account.crashes,
        "earlierUntil": _time(account.earlier_until),
        "entries": {tier: _entry(entry) for tier, entry in account.entries.items()},
        "seen": {tier: _seen(one) for tier, one in account.seen.items()},
        "origins": [[o.policy, o.class_name, o.consumer, o.purpose] for o in origins],
        "keys": sorted([tier, place[origin]] for tier, origin in held.keys),
        "lines": {
            name: {
                start.astimezone(UTC).isoformat(): [
                    [tier, place[origin], *_amounts(line)] for (tier, origin), line in sorted(lines.items())
                ]
                for start, lines in part.items()
            }
            for name, part in parts.items()
        },
        "windows": [
            [
                tier,
                _time(start),
                [_number(getattr(one, name)) for name in _WINDOW],
                [[place[origin], _number(work)] for origin, work in sorted(one.work.items())],
            ]
            for (tier, start), one in sorted(held.windows.items())
        ],
    }


_WINDOW = ("seconds", "estimated_seconds", "cost", "estimated", "unpriced_seconds", "room")
_NOTHING = Entry()
_NUMBERS = tuple(each.name for each in fields(Entry) if each.name != "counted_until")


def _entry(entry: Entry) -> dict[str, str | None]:
    # A cost of zero is known, one that is None is not.
    found = {name: _maybe(getattr(entry, name)) for name in _NUMBERS if getattr(entry, name) != getattr(_NOTHING, name)}
    return found | {"until": _time(entry.counted_until)}


def _from_entry(found: Mapping[str, str | None]) -> Entry:
    numbers: dict[str, Any] = {name: _decimal(found[name]) for name in _NUMBERS if name in found}
    return replace(Entry(counted_until=_moment(found["until"])), **numbers)


def _seen(seen: Seen) -> list[Any]:
    # What most tiers do not have stands last, and only where there is some: older operators read the rest.
    rare = [_time(seen.first), _time(seen.gone)] if seen.first is not None or seen.gone is not None else []
    return [
        _time(seen.moment),
        seen.external,
        seen.replicas,
        _maybe(seen.price_per_hour),
        _prices(seen.token_prices),
        _prices(seen.earlier),
        None if seen.changed is None else [_time(moment) for moment in seen.changed],
        str(seen.rate),
        *rare,
    ]


def _from_seen(found: list[Any]) -> Seen:
    moment, external, replicas, price, prices, earlier, changed, rate, *rare = found
    first, gone = rare or (None, None)
    return Seen(
        moment=_at(moment),
        external=bool(external),
        replicas=None if replicas is None else int(replicas),
        price_per_hour=_decimal(price),
        token_prices=_from_prices(prices),
        earlier=_from_prices(earlier),
        changed=None if changed is None else (_at(changed[0]), _at(changed[1])),
        rate=Decimal(rate),
        first=_moment(first),
        gone=_moment(gone),
    )


def _amounts(line: Line) -> list[str | int]:
    """All fields up to the last that is not zero; 0 as a number, which is shorter."""
    found: list[str | int] = [_number(value) if value else 0 for value in (getattr(line, n) for n in book.FIELDS)]
    while found and not found[-1]:
        found.pop()
    return found


def _kept(found: Mapping[str, Any]) -> Kept:
    if found["format"] != FORMAT:
        raise UnreadableAccount(f"format {found['format']!r} is not {FORMAT!r}")
    origins = [Origin(*(str(part) for part in each)) for each in found["origins"]]

    def lines(name: str) -> dict[datetime, Lines]:
        return {
            _at(start): {
                (str(tier), origins[number]): Line(*(Decimal(amount) for amount in amounts))
                for tier, number, *amounts in each
            }
            for start, each in found["lines"][name].items()
        }

    windows = {
        (str(tier), _at(start)): Window(
            **{name: Decimal(text) for name, text in zip(_WINDOW, numbers, strict=True)},
            work={origins[number]: Decimal(text) for number, text in work},
        )
        for tier, start, numbers, work in found["windows"]
    }
    start, end, updated = (_at(text) for text in found["period"])
    measured, estimated, pending, bound = (Decimal(text) for text in found["sums"])
    name, uid, currency, zone, period = (str(text) for text in found["budget"])
    rung, since = found["ladder"]
    return Kept(
        name,
        uid,
        currency,
        zone,
        period,
        Account(
            start,
            end,
            updated,
            entries={str(tier): _from_entry(entry) for tier, entry in sorted(found["entries"].items())},
            rung=None if rung is None else int(rung),
            since=_moment(since),
            before=(measured, estimated),
            pending=pending,
            bound=bound,
            crashes=int(found["crashes"]),
            seen={str(tier): _from_seen(one) for tier, one in sorted(found["seen"].items())},
            book=Book(
                hours=lines("hours"),
                days=lines("days"),
                earlier=lines("earlier"),
                windows=windows,
                keys=frozenset((str(tier), origins[number]) for tier, number in found["keys"]),
            ),
            earlier_until=_moment(found["earlierUntil"]),
            currency=currency,
        ),
    )
