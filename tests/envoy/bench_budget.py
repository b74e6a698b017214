"""A month under ceilings: do they hold, is what they grant used, is the ledger right, do refusals explain themselves?

    python tests/envoy/bench_budget.py [--share 30 --share 60 ...] [--plant NAME] [--day] [--json FILE]

One month without a ceiling tells the natural spend; then the same demand meets ceilings at shares of it. `month.py`
says what of it is real and what is modelled. Exit 1 when a promise is broken:

- spent <= ceiling + 1 % of it + reaction time x burn rate (both printed; the reaction time is one step of the clock),
- unused <= 5 % of the ceiling, as far as there were requests that were refused,
- the ledger's sum differs from the independent count by less than 0.1 % of it,
- so do its tokens by class, tier and consumer, and its lines add up to its sum, to the cent,
- each refused request's body names the budget and says when it resets, and has a Retry-After,
- no request fails otherwise, upstreams and clients count the same, and the next period begins with answers.
"""

import argparse
import asyncio
import concurrent.futures
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path

import structlog
from month import play
from month_plants import PLANTS
from month_story import DAY, Outcome, Story

OVERSPEND_PERCENT = Decimal(1)
UNUSED_PERCENT = Decimal(5)
LEDGER_PERCENT = Decimal("0.1")
CENT = Decimal("0.01")
MOST_REQUESTS = 200_000


@dataclass(frozen=True, slots=True)
class Verdict:
    """One run against its promises; amounts in the budget's currency."""

    natural: Decimal
    outcome: Outcome

    @property
    def ceiling(self) -> Decimal:
        return self.outcome.story.ceiling or Decimal(0)

    @property
    def over(self) -> Decimal:
        return max(Decimal(0), self.outcome.spent - self.ceiling)

    @property
    def bound(self) -> Decimal:
        """Most that may be spent beyond the ceiling: 1 % of it, and what was spent in one reaction time."""
        return self.ceiling * OVERSPEND_PERCENT / 100 + self.outcome.steepest

    @property
    def unused(self) -> Decimal:
        return max(Decimal(0), self.ceiling - self.outcome.spent)

    @property
    def missed(self) -> Decimal:
        """What was left although somebody wanted it: as much as refused requests cost at the cheapest provider."""
        return min(self.unused, self.outcome.kept_out)

    @property
    def ledger(self) -> Decimal:
        """Error of the ledger in percent of what was spent."""
        return 100 * (self.outcome.counted + self.outcome.estimated - self.outcome.spent) / self.outcome.spent

    def broken(self) -> list[str]:
        """Promises that were not kept."""
        out, found = self.outcome, []
        if self.ceiling:
            if self.over > self.bound:
                found.append(f"overspent by {self.over:.2f}, the bound is {self.bound:.2f}")
            if self.missed > self.ceiling * UNUSED_PERCENT / 100:
                found.append(f"{self.missed:.2f} unused while requests were refused")
        if abs(self.ledger) >= LEDGER_PERCENT:
            found.append(f"the ledger is {self.ledger:+.3f} % off")
        apart, whole = out.mistold()
        if apart * 100 >= whole * LEDGER_PERCENT:
            found.append(f"{apart} of {whole} tokens are told of another class, tier or consumer, or not at all")
        if abs(out.told - out.counted - out.estimated) >= CENT:
            found.append(f"the ledger's lines add up to {out.told:.4f}")
        if out.seen.mute:
            told = out.seen.mute[0]
            found.append(f"{len(out.seen.mute)} refusals lack the budget, its reset or Retry-After, such as {told}")
        odd = {status: count for status, count in out.seen.statuses.items() if status not in {200, 429}}
        if odd or out.seen.lost:
            found.append(f"failed otherwise: {odd}, connections lost: {out.seen.lost}")
        found += out.unbalanced
        if set(out.after) != {200}:
            found.append(f"the next period does not begin with answers: {dict(out.after)}")
        return found


def _percent(part: Decimal, whole: Decimal) -> str:
    return f"{100 * part / whole:.2f} %"


def rows(verdicts: Iterable[Verdict]) -> list[tuple[str, ...]]:
    """The table, as one column per run."""
    columns = [_column(one) for one in verdicts]
    names = [name for name, _ in columns[0]]
    return [(name, *(column[number][1] for column in columns)) for number, name in enumerate(names)]


def _column(one: Verdict) -> list[tuple[str, str]]:
    out, capped = one.outcome, bool(one.ceiling)
    step = out.story.step
    hours = Decimal(str(step.total_seconds())) / 3600
    refused = out.seen.refused
    asked = sum(out.seen.statuses.values())

    def only(text: str) -> str:
        return text if capped else ""

    return [
        ("", _percent(one.ceiling, one.natural) + " of natural" if capped else "no ceiling"),
        ("ceiling", only(f"{one.ceiling:.2f}")),
        ("spent, independent count", f"{out.spent:.2f}"),
        ("of it replica-hours", f"{out.replicas:.2f}"),
        ("spent, ledger", f"{out.counted + out.estimated:.2f}"),
        ("of it estimated", f"{out.estimated:.2f}"),
        ("ledger's error", f"{one.ledger:+.4f} %"),
        ("of it lost with a gateway that was killed", f"{-100 * out.lost / out.spent:+.4f} %"),
        ("what the ledger says that it is at most", _percent(out.bound, out.spent)),
        ("tokens told of others, or lost", "{} of {}".format(*out.mistold())),
        ("sum of the ledger's lines", f"{out.told:.4f}"),
        ("overspent", only(_percent(one.over, one.ceiling or Decimal(1)))),
        ("burn rate before the ceiling, per hour", only(f"{out.steepest / hours:.3f}")),
        ("bound: 1 % + reaction time x burn rate", only(_percent(one.bound, one.ceiling or Decimal(1)))),
        ("unused", only(_percent(one.unused, one.ceiling or Decimal(1)))),
        ("unused though wanted", only(_percent(one.missed, one.ceiling or Decimal(1)))),
        ("requests", str(asked)),
        ("answered", str(out.seen.statuses[200])),
        ("answered by a cheaper tier for the ladder's sake", only(str(out.downgraded))),
        ("throttled (429)", only(str(refused["budget_throttled"]))),
        ("denied (429)", only(str(refused["budget_exceeded"]))),
        (
            "429 that name budget and reset",
            only(f"{sum(refused.values()) - len(out.seen.mute)} of {sum(refused.values())}"),
        ),
        ("replicas, most", str(out.most_replicas)),
        ("replica-hours", f"{out.replica_hours:.1f}"),
        ("rounds, configurations", f"{out.rounds}, {out.publishes}"),
        ("seconds", f"{out.seconds:.0f}"),
    ]


def table(found: list[tuple[str, ...]]) -> str:
    """As Markdown."""
    head, *rest = found
    lines = [f"| {' | '.join(row)} |" for row in rest]
    return "\n".join([f"| {' | '.join(head)} |", "|---" * len(head) + "|", *lines])


def rungs(one: Verdict) -> str:
    """What the ladder did, and when."""
    moves = [f"{moment:%d %H:%M} {action or 'nothing held back'}" for moment, action in one.outcome.rungs]
    shown = moves if len(moves) <= 8 else [*moves[:5], f"... {len(moves) - 7} more ...", *moves[-2:]]
    return "; ".join(shown)


def run(story: Story) -> Outcome:
    """One story in a process of its own."""
    logging.getLogger().setLevel(logging.WARNING)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    beside = str(Path(sys.executable).parent)
    os.environ["PATH"] = f"{beside}{os.pathsep}{os.environ['PATH']}"
    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(play(Path(folder), story))


def judge(story: Story, shares: Iterable[int], *, at_once: int = 2) -> list[Verdict]:
    """The natural run, then one per share of its spend."""
    with concurrent.futures.ProcessPoolExecutor(at_once) as pool:
        natural = pool.submit(run, replace(story, plant="")).result()
        ceilings = [(natural.spent * share / 100).quantize(Decimal("0.01")) for share in shares]
        capped = [pool.submit(run, replace(story, ceiling=ceiling)) for ceiling in ceilings]
        return [Verdict(natural.spent, natural), *(Verdict(natural.spent, each.result()) for each in capped)]


def main() -> int:
    """Run, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, help="of each run")
    parser.add_argument("--share", type=int, action="append", help="ceiling in percent of natural spend")
    parser.add_argument("--plant", choices=PLANTS, default="", help="a defect that has to be noticed")
    parser.add_argument("--day", action="store_true", help="one day and its budget, and no gateway is killed: a minute")
    parser.add_argument("--at-once", type=int, default=2, help="runs at the same time")
    parser.add_argument("--json", type=Path, help="keep the figures")
    options = parser.parse_args()
    shares = options.share or [30, 60, 90]
    form = replace(DAY, crash=None) if options.day else Story()
    story = replace(form, requests=options.requests or form.requests, plant=options.plant)
    if story.requests * (1 + len(shares)) > MOST_REQUESTS:
        parser.error(f"more than {MOST_REQUESTS} requests in all")
    began = time.monotonic()
    verdicts = judge(story, shares, at_once=options.at_once)
    print(table(rows(verdicts)))
    print(f"\nreaction time: {story.step.total_seconds() / 60:.0f} minutes of the injected clock, one step")
    for one in verdicts[1:]:
        print(f"ladder at {one.ceiling:.2f}: {rungs(one)}")
    total = sum(sum(one.outcome.seen.statuses.values()) for one in verdicts)
    print(f"{total} requests in {time.monotonic() - began:.0f} s")
    if options.json:
        options.json.write_text(json.dumps(rows(verdicts), indent=1))
    broken = [f"at {one.ceiling:.2f}: {why}" for one in verdicts for why in one.broken()]
    print("\n".join(["BROKEN:", *broken]) if broken else "every promise was kept")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
