"""What the loop decided, as figures for the operator's own metrics: they move every round and never go to a status."""

from collections import Counter

from tierwise.core import realised
from tierwise.core.decision import Decision
from tierwise.core.memory import Realising
from tierwise.core.plan import Gauge
from tierwise.core.situation import Situation


def of_decision(seen: Situation, decision: Decision, window: Realising | None) -> list[Gauge]:
    """Costs of the present and the best mix, what binds, what gave way, and what the last decision really saved."""
    where = ("namespace", seen.namespace)
    money = realised.cost_currency(seen)
    found: list[Gauge] = []
    if money is not None:
        for mix, value in (("present", decision.stay_cost_per_hour), ("best", decision.cost_per_hour)):
            if value is not None:
                labels = (("currency", money), ("mix", mix), where, ("provenance", "Estimated"))
                found.append(Gauge("planned_cost_per_hour", labels, value))
    for key, outcome in decision.classes.items():
        binding = outcome.binding or "None"
        labels = (("binding", binding), ("class", key[2]), where, ("policy", key[1]))
        found.append(Gauge("class_binding", labels, 1.0))
        held = outcome.view.credit
        if held is not None and held.rate > 0:
            named = (("class", key[2]), where, ("policy", key[1]), ("provenance", "Estimated"))
            found.append(Gauge("quality_credit_hours", named, held.points / held.rate / 3600))
    if decision.solution is not None:
        found.append(Gauge("solver_status", (where, ("status", decision.solution.status)), 1.0))
        kinds = Counter(one.kind for one in decision.solution.relaxed)
        found += [Gauge("relaxed_constraints", (("kind", kind), where), count) for kind, count in sorted(kinds.items())]
    return found + _saving(where, window)


def _saving(where: tuple[str, str], window: Realising | None) -> list[Gauge]:
    if window is None:
        return []
    found: list[Gauge] = []
    costs = {"before": window.before_per_hour, "expected": window.expected_per_hour}
    savings: dict[str, float] = {}
    if window.before_per_hour > 0:
        savings["expected"] = 100 * (1 - window.expected_per_hour / window.before_per_hour)
    if window.finished:
        known = realised.outcome(window)
        if "cost_per_hour" in known:
            costs["realised"] = known["cost_per_hour"]
        if "saving_percent" in known:
            savings["realised"] = known["saving_percent"]
    for state, value in costs.items():
        source = "Measured" if state == "realised" else "Estimated"
        labels = (("currency", window.currency), where, ("provenance", source), ("state", state))
        found.append(Gauge("decision_cost_per_hour", labels, value))
    for state, value in savings.items():
        # Of what was measured too: the cost that it is against can only be estimated.
        found.append(Gauge("decision_saving_percent", (where, ("provenance", "Estimated"), ("state", state)), value))
    return found
