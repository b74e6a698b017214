"""The planner with a NamespaceBudget: the operator's own ledger and ladder on simulated spend.

What gateways would do about requests is in `Wanted`: classes that are denied, rates that are shared, and, where a
budget downgrades, weights on the tiers that it prefers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal

from tierwise.api.namespace_budget import NamespaceBudget
from tierwise.api.namespace_budget_status import LadderAction
from tierwise.core import accounts, budget_status, ceiling, enforcement, ledger, outlook, routing, sensitivity
from tierwise.core.decision import Decision
from tierwise.core.enforcement import Standing
from tierwise.core.ledger import Account
from tierwise.core.memory import LoopMemory
from tierwise.core.situation import Situation
from tierwise.core.world import World
from tierwise.simulate.driver import PlannerLoop, Wanted

UID = "00000000-0000-0000-0000-000000000001"


def budget(namespace: str, ceiling_usd: float, ladder: list[dict[str, object]]) -> NamespaceBudget:
    """A budget of a day, in UTC."""
    return NamespaceBudget.parse(
        {
            "apiVersion": "tierwise.dev/v1alpha1",
            "kind": "NamespaceBudget",
            "metadata": {"name": "day", "namespace": namespace, "uid": UID, "generation": 1},
            "spec": {"period": "Day", "ceiling": f"{ceiling_usd:.2f}", "ladder": ladder},
        }
    )


@dataclass(slots=True)
class BudgetLoop(PlannerLoop):
    """A `PlannerLoop` under a budget.

    Attributes:
        budget: the object; None: none yet.
        account: what was spent; None before the first round.
        actions: rounds in which each action held.
    """

    budget: NamespaceBudget | None = None
    account: Account | None = None
    actions: dict[str, int] = field(default_factory=dict)
    _standing: Standing | None = None

    @property
    def spent(self) -> Decimal:
        """Since counting began."""
        return ledger.spend(self.account).total if self.account is not None else Decimal(0)

    def wanted(self) -> Wanted:
        """What is in force: weights on preferred tiers, and what is held back."""
        plain = PlannerLoop.wanted(self)
        if self.budget is None or self.budget.status.enforcement is None:
            return plain
        budgets = {self.budget.metadata.name: self.budget}
        weights: dict[str, Mapping[str, float]] = dict(plain.weights)
        denied: set[str] = set()
        limits: dict[str, tuple[set[str], float]] = {}
        tiers = {key.name: tier for key, tier in self.tiers.items()}
        for policy in (self.policy, *self.others.values()):
            for spec in policy.spec.classes:
                name = self._name((self.namespace, policy.metadata.name, spec.name))
                found = ceiling.of_class(budgets, policy.metadata.name, spec.name)
                if found.denied is not None:
                    denied.add(name)
                for rate in found.rates:
                    if rate.requests_per_second is not None:
                        names, _ = limits.setdefault(rate.budget, (set(), float(rate.requests_per_second)))
                        names.add(name)
                if found.tiers is not None:
                    allowed = routing.cleared_tiers(spec, tiers, sensitivity.effective(policy, spec))
                    first = tuple(each for each in allowed if each in found.tiers) or allowed
                    shares = routing.weights_in_force(policy, spec, first)
                    weights[name] = {tier: float(percent) for tier, percent in shares.items()}
        shared = tuple((frozenset(names), rate) for names, rate in limits.values())
        return replace(plain, weights=weights, denied=frozenset(denied), limits=shared)

    def _held(self, world: World, view: Situation, memory: LoopMemory) -> Situation:
        if self.budget is None:
            return view
        key = (self.namespace, self.budget.metadata.name)
        self.account = accounts.account(world, view, self.budget, self.account)
        figures = outlook.outlook(view, self.budget, self.account)
        self._standing = enforcement.climbed(
            self.budget,
            self.account,
            figures,
            memory.ladders.get(key) or enforcement.recalled(self.budget, self.account, figures),
            blind=budget_status.uncounted(world, view, self.budget),
            present_per_hour=memory.without.get(self.namespace),
        )
        self.account = self._standing.account
        return replace(view, hold=enforcement.held(view, [self._standing]))

    def _enforced(self, view: Situation, decision: Decision, memory: LoopMemory) -> LoopMemory:
        if self.budget is None or self._standing is None:
            return memory
        decided, ladder = enforcement.decide(view, self._standing, decision)
        action = decided.action if decided is not None else LadderAction.NOTIFY
        self.actions[action.value] = self.actions.get(action.value, 0) + 1
        status = self.budget.status.model_copy(update={"enforcement": decided})
        self.budget = self.budget.model_copy(update={"status": status})
        key = (self.namespace, self.budget.metadata.name)
        without = dict(memory.without)
        if decision.without_per_hour is not None:
            without[self.namespace] = decision.without_per_hour
        return replace(memory, ladders={**memory.ladders, key: ladder}, without=without)
