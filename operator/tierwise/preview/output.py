"""How a preview is shown to people."""

import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal

import click

from tierwise.preview import diff
from tierwise.preview.climb import Climb
from tierwise.preview.diff import Change
from tierwise.preview.estimate import (
    HOURS_PER_MONTH,
    Amount,
    BudgetEstimate,
    ClassEstimate,
    NamespaceEstimate,
    TierEstimate,
)
from tierwise.preview.preview import Preview

WIDTH = 112
"""Columns of a route before it is folded."""

FOLD = 24
"""Lines of one object's diff that are shown without --full."""

_SIGNS = {"create": ("+", "green"), "change": ("~", "yellow"), "delete": ("-", "red")}
UNKNOWN = "unknown"


def text(found: Preview, *, full: bool = False, colour: bool = False) -> str:
    """The preview for people."""
    paint = _Paint(colour)
    parts = [
        paint.head(f"Plan for {found.read} against {found.against}"),
        _problems(found, paint),
        _objects("Objects", found.objects, paint, full=full),
        _objects("What the operator makes of them", found.children, paint, full=full),
        _routes(found, paint, full=full),
        _envoy(found, paint, full=full),
        _figures(found, paint),
        _notes(found, paint),
        _summary(found, paint),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


class _Paint:
    def __init__(self, colour: bool) -> None:  # noqa: FBT001 - private
        self.colour = colour

    def head(self, words: str) -> str:
        return click.style(words, bold=True) if self.colour else words

    def of(self, words: str, colour: str) -> str:
        return click.style(words, fg=colour) if self.colour else words

    def line(self, words: str) -> str:
        colour = {"+": "green", "-": "red", "@": "cyan"}.get(words[:1])
        return self.of(words, colour) if colour else words

    def as_first(self, words: str, sign: str) -> str:
        colour = {"+": "green", "-": "red"}.get(sign)
        return self.of(words, colour) if colour else words


def _problems(found: Preview, paint: _Paint) -> str:
    if not found.problems:
        return ""
    lines = [paint.head(f"Problems ({len(found.problems)}): nothing of this will work as it stands")]
    return "\n".join([*lines, *(paint.of(f"  ! {problem}", "red") for problem in found.problems)])


def _objects(title: str, changes: Sequence[Change], paint: _Paint, *, full: bool) -> str:
    if not changes:
        return ""
    width = max(len(f"{each.kind} {each.namespace}/{each.name}") for each in changes)
    lines = [paint.head(f"{title} ({_counted(changes)})")]
    for each in changes:
        sign, colour = _SIGNS[each.action]
        named = f"{each.kind} {each.namespace}/{each.name}"
        lines.append(paint.of(f"  {sign} {named:<{width}}  {each.where}".rstrip(), colour))
        # What is new or gone is in its manifest; what changes is not to be found by looking at one.
        if each.action == "change" or full:
            lines += [f"      {paint.line(line)}" for line in diff.folded(each.lines, 0 if full else FOLD)]
    return "\n".join(lines)


def _counted(changes: Iterable[Change]) -> str:
    count = Counter(each.action for each in changes)
    words = {"create": "new", "change": "changed", "delete": "deleted"}
    return ", ".join(f"{count[action]} {word}" for action, word in words.items() if count[action])


def _routes(found: Preview, paint: _Paint, *, full: bool) -> str:
    blocks = []
    for namespace, (old, new) in sorted(found.routes.items()):
        if old == new:
            continue
        lines = [paint.head(f"Routes of namespace {namespace}, first match wins")]
        shown = [line for line in diff.unified(old, new) if full or not line.startswith(" ") or len(old) <= FOLD]
        for line in shown:
            colour = line[:1]
            lines += [
                f"  {paint.line(colour + part[1:]) if i == 0 else paint.as_first(part, colour)}"
                for i, part in enumerate(_wrapped(line))
            ]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def _wrapped(line: str) -> list[str]:
    """A long route in several lines."""
    return textwrap.wrap(line, WIDTH, subsequent_indent=" " * 8, break_long_words=False, break_on_hyphens=False)


def _envoy(found: Preview, paint: _Paint, *, full: bool) -> str:
    if not found.envoy:
        return ""
    lines = [paint.head(f"Envoy resources ({_counted(found.envoy)})")]
    for action, (sign, colour) in _SIGNS.items():
        chosen = [each for each in found.envoy if each.action == action]
        if action != "change" and not full:
            kinds = Counter(each.kind for each in chosen)
            lines += [paint.of(f"  {sign} {count} {kind}", colour) for kind, count in sorted(kinds.items())]
            continue
        for each in chosen:
            lines.append(paint.of(f"  {sign} {each.kind} {each.name or each.namespace}", colour))
            # Routes are told above, in a form that can be read.
            if full or not each.kind.endswith("RouteConfiguration"):
                lines += [f"      {paint.line(line)}" for line in diff.folded(each.lines, 0 if full else FOLD)]
    return "\n".join(lines)


def table(head: Sequence[str], rows: Sequence[Sequence[str]], right: frozenset[int] = frozenset()) -> list[str]:
    """Aligned columns; `right` are those of figures."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]

    def line(row: Sequence[str]) -> str:
        cells = [f"{c:>{w}}" if i in right else f"{c:<{w}}" for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        return "  " + "   ".join(cells).rstrip()

    return [line(head), *map(line, rows)]


def money(value: Decimal | None) -> str:
    """With thousands apart, to the cent."""
    return UNKNOWN if value is None else f"{value:,.2f}"


def _month(amount: Amount | None) -> str:
    if amount is None:
        return "-"
    return ("" if amount.whole else ">= ") + money(amount.value * HOURS_PER_MONTH)


def _figures(found: Preview, paint: _Paint) -> str:
    blocks = []
    for namespace in sorted({*found.before, *found.after}):
        old, new = found.before.get(namespace), found.after.get(namespace)
        lines = [paint.head(f"Namespace {namespace}, estimated{f' for {found.metrics}' if found.metrics else ''}")]
        lines += _costs(old, new)
        lines += ["", *_classes(old, new)] if new is not None and new.classes else []
        lines += _budgets(old, new, paint)
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def _arrow(old: str | None, new: str | None) -> str:
    """Before and after in one cell."""
    if old is None or old == new:
        return new or "-"
    return f"{old} -> {new or '-'}"


def _replicas(tier: TierEstimate | None) -> str | None:
    if tier is None:
        return None
    return "per token" if tier.replicas is None else f"{tier.replicas} (max {tier.most})"


def _costs(old: NamespaceEstimate | None, new: NamespaceEstimate | None) -> list[str]:
    before = {tier.name: tier for tier in old.tiers} if old is not None else {}
    after = {tier.name: tier for tier in new.tiers} if new is not None else {}
    rows: list[list[str]] = []
    for name in sorted({*before, *after}):
        left, right = before.get(name), after.get(name)
        one = right or left
        load = f"{100 * right.utilisation:.0f}%" if right is not None and right.utilisation is not None else "-"
        source = right.capacity if right is not None and right.capacity else "-"
        rows.append(
            [
                name,
                _arrow(_replicas(left), _replicas(right)),
                load,
                source,
                _tier_month(left),
                _tier_month(right),
                (one.currency if one is not None else None) or "no price",
            ]
        )
    for currency in sorted({*(old.costs if old else ()), *(new.costs if new else ())}):
        amounts = [each.costs.get(currency) if each is not None else None for each in (old, new)]
        rows.append(["total", "", "", "", *map(_month, amounts), currency])
        left_sum, right_sum = amounts
        if left_sum is not None and right_sum is not None and left_sum.whole and right_sum.whole:
            difference = (right_sum.value - left_sum.value) * HOURS_PER_MONTH
            rows.append(["difference", "", "", "", "", f"{difference:+,.2f}", currency])
    return table(
        ("TIER", "REPLICAS", "LOAD", "CAPACITY", "MONTH BEFORE", "MONTH AFTER", "CURRENCY"), rows, frozenset({2, 4, 5})
    )


def _tier_month(tier: TierEstimate | None) -> str:
    if tier is None:
        return "-"
    if not tier.used:
        return "not used"
    if tier.cost_per_hour is None:
        return UNKNOWN
    return (">= " if tier.why else "") + money(tier.cost_per_hour * HOURS_PER_MONTH)


def _weights(weights: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {percent}%" for name, percent in weights.items()) or "none"


def _classes(old: NamespaceEstimate | None, new: NamespaceEstimate) -> list[str]:
    before = {(each.policy, each.name): each for each in old.classes} if old is not None else {}
    rows: list[list[str]] = []
    for each in new.classes:
        was = before.get((each.policy, each.name))
        then = [_weights(was.weights), was.binding or "-", _held(was)] if was is not None else None
        now = [_weights(each.weights), each.binding or "-", _held(each)]
        name, load = f"{each.policy}/{each.name}", _load(each)
        if then is not None and then != now:
            rows += [[name, load, "before", *then], ["", "", "after", *now]]
        else:
            rows.append([name, load, "", *now])
    return table(("CLASS", "REQUESTS/S", "", "WEIGHTS", "BINDS", "WITHIN OBJECTIVE"), rows, frozenset({1}))


def _load(each: ClassEstimate) -> str:
    if each.load is None:
        return UNKNOWN
    peak = f" (peak {each.load.peak:g})" if each.load.peak > each.load.mean else ""
    return f"{each.load.mean:g}{peak}"


def _held(each: ClassEstimate) -> str:
    if each.attainment is None:
        return f"unknown: {each.basis}" if each.objective else "no objective"
    return f"{100 * each.attainment:.0f}% ({each.basis})"


def _budgets(old: NamespaceEstimate | None, new: NamespaceEstimate | None, paint: _Paint) -> list[str]:
    before = {each.name: each for each in old.budgets} if old is not None else {}
    lines: list[str] = []
    for each in new.budgets if new is not None else ():
        lines += ["", *_budget(before.get(each.name), each, paint)]
    return lines


def _budget(old: BudgetEstimate | None, new: BudgetEstimate, paint: _Paint) -> list[str]:
    was = f"{_percent(old)} -> " if old is not None and _percent(old) != _percent(new) else ""
    whole = f"a whole {new.period.lower()} at this cost is {was}{_percent(new)}"
    lines = [f"  Budget {new.name}: {money(new.ceiling)} {new.currency} per {new.period}; {whole}"]
    sure = new.period_cost is not None and new.period_cost.whole
    if new.whole is None:
        lines += [f"    {percent:>3}% {action:<9} unknown" for percent, action in new.ladder]
    else:
        lines += _climb(f"a whole {new.period.lower()}", new.whole, new, sure=sure)
    if new.present is not None:
        lines += _climb(f"the rest of this {new.period.lower()}", new.present, new, sure=sure)
    if new.percent is not None and new.percent > 100:
        lines.append(
            paint.of("    does not fit: without the ladder the ceiling is reached before the period ends", "red")
        )
    then = "requests are kept off it, its replicas' cost is unknown"
    if not new.unpriced_denied:
        then = "requests pass, and its cost does not count"
    lines += [
        paint.of(f"    tier {tier} of {policy}/{name} has no price in {new.currency}: {then}", "yellow")
        for policy, name, tier in new.unpriced
    ]
    return lines


def _climb(what: str, found: Climb, of: BudgetEstimate, *, sure: bool) -> list[str]:
    """One ladder in one period: a line per rung, times in the budget's zone."""
    head = f"    In {what}, from {found.start:%Y-%m-%d %H:%M} {found.start.tzinfo}"
    lines = [f"{head}, {money(found.spent)} {of.currency} spent:" if found.spent else f"{head}:"]
    for step in found.steps:
        if step.at is None:
            when = "not reached" if sure else "not reached by what is known"
        else:
            after = f"after {_time(step.hours)}" if step.hours else "at once"
            when = f"{step.at:%Y-%m-%d %H:%M}{'' if sure else ' at the latest'} ({after}): {step.does}"
        line = f"    {step.percent:>3}% {step.action.value:<9} {when}"
        lines += textwrap.wrap(
            line,
            WIDTH,
            subsequent_indent=" " * 19,
            break_long_words=False,
            break_on_hyphens=False,
            drop_whitespace=True,
        )
    share = 100 * found.total / of.ceiling
    lines.append(f"      at its end {'' if sure else 'at least '}{money(found.total)} {of.currency} ({share:.0f}%)")
    return lines


def _percent(each: BudgetEstimate) -> str:
    if each.percent is None or each.period_cost is None:
        return "unknown"
    sign = "" if each.period_cost.whole else "at least "
    return f"{sign}{money(each.period_cost.value)} {each.currency} ({each.percent:.0f}%)"


def _time(hours: Decimal) -> str:
    days, rest = divmod(hours, 24)
    return f"{int(days)} d {int(rest)} h" if days >= 1 else f"{hours:.1f} h"


def _notes(found: Preview, paint: _Paint) -> str:
    if not found.notes:
        return ""
    return "\n".join([paint.head("Notes"), *(f"  - {note}" for note in found.notes)])


def _summary(found: Preview, paint: _Paint) -> str:
    if found.problems:
        return paint.of(f"{len(found.problems)} problems: exit code 1", "red")
    if not found.changed:
        return "No change: exit code 0"
    return (
        f"Changes: {len(found.objects)} objects of yours, {len(found.children)} of the operator's, "
        f"{len(found.envoy)} Envoy resources: exit code 2"
    )
