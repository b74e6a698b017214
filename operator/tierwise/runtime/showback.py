"""What the ledger's lines show in /metrics: cost, tokens and replica-seconds by who caused them.

Counters of a budget's present period, out of the account itself: they go on where they were after a restart of the
operator, and start at zero with the next period, as counters may. A tier's replicas show with whom they are shared as
soon as the tokens of those five minutes are counted.
"""

from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from tierwise.core import book, ledger
from tierwise.core.book import IDLE, UNTOLD, Key, Line
from tierwise.core.ledger import Account

_WHO = ("namespace", "budget", "policy", "class", "tier", "consumer", "purpose")
_NAMED = {IDLE: "idle", UNTOLD: "no detail"}


class Showback(Collector):
    """Collects from the accounts of this replica's last planning round; nothing where it never decided."""

    def __init__(self) -> None:
        self._accounts: Mapping[tuple[str, str], Account] = {}

    def show(self, accounts: Mapping[tuple[str, str], Account]) -> None:
        """These accounts from now on."""
        self._accounts = accounts

    def describe(self) -> Iterable[Metric]:
        """Nothing: what there is depends on the accounts."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """All families."""
        cost = CounterMetricFamily(
            "tierwise_cost", "Spend in the budget's period.", labels=[*_WHO, "currency", "provenance"]
        )
        tokens = CounterMetricFamily("tierwise_tokens", "Tokens that upstreams reported.", labels=[*_WHO, "kind"])
        seconds = CounterMetricFamily(
            "tierwise_replica_seconds", "Replicas, shared by the work done on them.", labels=[*_WHO, "provenance"]
        )
        unpriced = CounterMetricFamily(
            "tierwise_unpriced_use", "Requests, and seconds of replicas, without a known price.", labels=_WHO
        )
        bound = GaugeMetricFamily(
            "tierwise_ledger_bound",
            "Most that gateways which ended in the period can have counted and told nobody.",
            labels=["namespace", "budget", "currency"],
        )
        crashes = CounterMetricFamily(
            "tierwise_ledger_gateways_lost", "Gateways that ended in the period.", labels=["namespace", "budget"]
        )
        waiting = GaugeMetricFamily(
            "tierwise_cost_not_shared",
            "Cost of replicas that is not shared yet, and of tokens that are not counted yet (at most).",
            labels=["namespace", "budget", "currency"],
        )
        for (namespace, budget), account in sorted(self._accounts.items()):
            lines = book.lines_of(account.book)
            for key, line in sorted(lines.items()):
                who = [namespace, budget, *_labels(key)]
                _add(cost, (([*who, account.currency, name], value) for name, value in _cost(line)))
                _add(tokens, (([*who, kind], value) for kind, value in _tokens(line)))
                _add(
                    seconds,
                    (
                        ([*who, "measured"], line.replica_seconds),
                        ([*who, "estimated"], line.estimated_replica_seconds),
                    ),
                )
                _add(unpriced, [(who, line.unpriced)])
            of = [namespace, budget, account.currency]
            bound.add_metric(of, float(account.bound))
            crashes.add_metric(of[:2], float(account.crashes))
            shared = sum((line.cost for line in lines.values()), Decimal(0))
            waiting.add_metric(of, float(ledger.spend(account).total - shared))
        yield from (cost, tokens, seconds, unpriced, bound, crashes, waiting)


def _labels(key: Key) -> list[str]:
    tier, origin = key
    purpose = _NAMED.get(origin, origin.purpose or "answer")
    return [origin.policy, origin.class_name, tier, origin.consumer, purpose]


def _cost(line: Line) -> list[tuple[str, Decimal]]:
    return [("measured", line.measured), ("estimated", line.estimated)]


def _tokens(line: Line) -> list[tuple[str, Decimal]]:
    return [
        ("input", line.input_tokens),
        ("cached_input", line.cached_input_tokens),
        ("output", line.output_tokens),
    ]


def _add(family: CounterMetricFamily, samples: Iterable[tuple[list[str], Decimal]]) -> None:
    for labels, value in samples:
        if value:
            family.add_metric(labels, float(value))
