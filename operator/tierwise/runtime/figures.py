"""The operator's own metrics of what it decided: weights, replicas, cost, budgets."""

from decimal import Decimal

from prometheus_client import Gauge as PrometheusGauge

from tierwise.core.plan import Plan
from tierwise.core.world import World
from tierwise.runtime.showback import Showback
from tierwise.runtime.telemetry import Metrics


class Figures:
    """Shows the world and plan of the last round; what is unknown is absent."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._free: dict[tuple[str, tuple[str, ...]], PrometheusGauge] = {}
        self._showback = Showback()
        metrics.registry.register(self._showback)

    def show(self, world: World, plan: Plan) -> None:
        """Replace all figures by those of this round."""
        metrics = self._metrics
        shown = (metrics.weight, metrics.replicas, metrics.cost_per_hour, metrics.budget, metrics.budget_rung)
        for gauge in (*shown, *self._free.values()):
            gauge.clear()
        self._weights(world)
        self._tiers(world)
        self._budgets(world)
        self._showback.show(plan.ledger.accounts)
        for figure in plan.gauges:
            names = tuple(name for name, _ in figure.labels)
            found = self._free.get((figure.name, names))
            if found is None:
                found = PrometheusGauge(
                    f"tierwise_{figure.name}", "From the last planning round.", names, registry=metrics.registry
                )
                self._free[figure.name, names] = found
            values = tuple(value for _, value in figure.labels)
            (found.labels(*values) if values else found).set(figure.value)

    def _weights(self, world: World) -> None:
        for key, policy in world.policies.items():
            for one in policy.status.classes:
                for weight in one.weights:
                    for state, percent in (("in-force", weight.percent), ("wanted", weight.wanted)):
                        labels = (key.namespace, key.name, one.name, weight.tier, state)
                        _set(self._metrics.weight, labels, None if percent is None else percent / 100)

    def _tiers(self, world: World) -> None:
        for key, tier in world.tiers.items():
            replicas, cost = tier.status.replicas, tier.status.cost
            if replicas is not None:
                for state in ("desired", "min", "max", "current", "ready"):
                    _set(self._metrics.replicas, (key.namespace, key.name, state), getattr(replicas, state))
            if cost is not None:
                labels = (key.namespace, key.name, cost.currency, cost.provenance.value)
                _set(self._metrics.cost_per_hour, labels, cost.per_hour)

    def _budgets(self, world: World) -> None:
        for key, budget in world.budgets.items():
            amounts = {"ceiling": budget.spec.ceiling} | {
                name: getattr(budget.status, name)
                for name in ("spent", "measured", "estimated", "bound", "forecast", "remaining")
            }
            for amount, value in amounts.items():
                _set(self._metrics.budget, (key.namespace, key.name, budget.spec.currency, amount), value)
            rung = budget.status.rung
            if rung is not None:
                _set(self._metrics.budget_rung, (key.namespace, key.name, rung.action.value), rung.at_percent)


def _set(gauge: PrometheusGauge, labels: tuple[str, ...], value: Decimal | float | None) -> None:
    if value is not None:
        gauge.labels(*labels).set(float(value))
