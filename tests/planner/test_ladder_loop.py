"""Ceilings, seen from outside: what budgets' statuses tell gateways, and what becomes of replicas."""

from typing import Any

from api_server import Demand, Server, budget, external, in_cluster, policy, route

from tierwise import planner
from tierwise.core import ledger
from tierwise.core.ledger import Ledger
from tierwise.core.memory import LoopMemory
from tierwise.core.signals import Missing, Signals

STEP_SECONDS = 10.0
FAST = {"interval": "10s", "cooldown": "60s", "maxStepPercent": 50}
LADDER = [
    {"atPercent": 50, "action": "Notify"},
    {"atPercent": 60, "action": "Downgrade"},
    {"atPercent": 80, "action": "Throttle"},
    {"atPercent": 100, "action": "Deny"},
]


class Metered:
    """A server whose gateways carry out what budgets decide; one class, `natural` requests/s want in."""

    def __init__(self, server: Server, natural: float, *, step: float = STEP_SECONDS) -> None:
        self.server, self.natural, self.step = server, natural, step
        self.which = next(iter(server.demands))
        self.budget_writes = 0
        self.denied = 0
        self.exempt = False

    @property
    def told(self) -> dict[str, Any]:
        found: dict[str, Any] = self.server.status("NamespaceBudget", "month").get("enforcement", {})
        return found

    def round(self, *, measured: bool = True) -> Any:
        told, rate = self.told, self.natural
        if self.exempt:
            pass
        elif told.get("action") == "Deny":
            rate = 0.0
        elif told.get("action") == "Throttle":
            rate = min(rate, float(told["requestsPerSecond"]))
        self.denied += rate < self.natural
        self.server.demands[self.which].rate = rate
        if measured:
            self.server.measure(self.step)
        plan = planner.plan(self.server.world())
        self.budget_writes += sum(one.target.kind == "NamespaceBudget" for one in plan.statuses)
        self.server.carry_out(plan)
        self.server.control()
        self.server.later(self.step)
        return plan

    def run(self, seconds: float, *, measured: bool = True) -> list[str]:
        """Actions in force, one a round."""
        found = []
        for _ in range(int(seconds / self.step)):
            self.round(measured=measured)
            found.append(self.told.get("action", ""))
        return found

    @property
    def spent(self) -> float:
        return float(self.server.status("NamespaceBudget", "month")["spent"])

    def account(self) -> Any:
        return self.server.store.ledger.accounts["legal", "month"]


def metered(ceiling: str, *, rate: float = 2.0, ladder: Any = LADDER, classes: Any = None, **spec: Any) -> Metered:
    """A dear provider (0.0048 a request) and a cheap one (0.0012), for the two hours that a day still lasts."""
    tiers = [{"name": "dear", "weight": 100, "minWeight": 30}, {"name": "cheap", "weight": 0}]
    server = Server(
        [
            external("dear", prices=("3.00", "15.00")),
            external("cheap", prices=("0.75", "3.75")),
            policy("chat", classes or [route("all", tiers)], rebalance=FAST),
            budget("month", ceiling, ladder=ladder, period="Day", timeZone="Pacific/Auckland", **spec),
        ],
        demands={("chat", "all"): Demand(rate, 600.0, 200.0)},
    )
    return Metered(server, rate)


def distinct(actions: list[str]) -> list[str]:
    return [a for a, b in zip(actions, ["-", *actions], strict=False) if a != b]


def test_the_rungs_follow_each_other_and_none_flaps() -> None:
    lab = metered("10")
    actions = distinct(lab.run(3600))
    assert actions == ["", "Downgrade", "Throttle"]
    told = lab.told
    assert told["tiers"] == ["cheap"]
    assert told["resetsAt"] == "2026-11-25T11:00:00Z"
    assert float(told["requestsPerSecond"]) > 0
    reasons = [e.reason for e in lab.server.events if e.regarding.kind == "NamespaceBudget"]
    assert reasons.count("CeilingRung") <= 2 * 3  # the rung's own, and its condition's


def test_a_throttle_spends_what_is_left_until_the_period_ends_and_deny_is_the_last_stop() -> None:
    lab = metered("10")
    lab.run(7140)
    spent = float(ledger.spend(lab.account()).total)
    assert 0.95 * 10 <= spent <= 10.0
    lab.run(180)
    assert lab.told == {}  # another day
    assert lab.server.condition("NamespaceBudget", "month", "CeilingRung") is None


def test_without_a_throttle_requests_are_denied_before_the_ceiling_is_passed() -> None:
    ladder = [{"atPercent": 80, "action": "Notify"}, {"atPercent": 100, "action": "Deny"}]
    lab = metered("10", ladder=ladder)
    actions = distinct(lab.run(2400))
    assert actions == ["", "Deny"]
    spent = float(ledger.spend(lab.account()).total)
    assert 9.5 <= spent <= 10.0


def test_a_ladder_that_does_not_deny_says_that_its_ceiling_is_soft() -> None:
    lab = metered("10", ladder=LADDER[:1])
    lab.run(60)
    found = lab.server.condition("NamespaceBudget", "month", "CeilingSoft")
    assert found is not None
    assert found["reason"] == "NoDenyRung"
    assert metered("10").run(60) is not None


def test_nothing_is_written_while_a_rung_holds_and_load_is_steady() -> None:
    for noise in (0.0, 0.03):
        lab = metered("10")
        lab.server.noise = noise
        lab.run(3600)
        assert lab.told["action"] == "Throttle"
        lab.budget_writes = 0
        lab.run(1800)
        assert lab.budget_writes <= 1 + 1800 / 300 + 2  # checkpoints, and hardly a rate


def test_with_metrics_gone_nothing_is_relaxed_and_the_worst_case_climbs() -> None:
    lab = metered("10")
    lab.run(1500)
    assert lab.told["action"] == "Downgrade"
    before = lab.told
    lab.server.store.put_signals(Signals(time=lab.server.now, gateways_up=Missing("down"), error="refused"))
    ranks = ["", "Downgrade", "Throttle", "Deny"]
    rank, rate = ranks.index(before["action"]), None
    for _ in range(360):
        lab.round(measured=False)
        now = ranks.index(lab.told.get("action", ""))
        assert now >= rank
        if lab.told.get("action") == "Throttle":
            each = float(lab.told["requestsPerSecond"])
            assert rate is None or each <= rate
            rate = each
        rank = now
    assert rank > ranks.index(before["action"])


def test_a_restarted_operator_goes_on_from_what_gateways_were_told() -> None:
    lab = metered("10", ladder=[{"atPercent": 100, "action": "Deny"}])
    lab.run(2400)
    assert lab.told["action"] == "Deny"
    since = lab.told["since"]
    lab.server.store.memory, lab.server.store.ledger = LoopMemory(), Ledger()
    assert set(lab.run(600)) == {"Deny"}
    assert lab.told["since"] == since


def test_a_raised_ceiling_lets_requests_in_again() -> None:
    lab = metered("10", ladder=[{"atPercent": 100, "action": "Deny"}])
    lab.run(2400)
    assert lab.told["action"] == "Deny"
    lab.server.change("NamespaceBudget", "month", ceiling="40")
    lab.run(30)
    assert lab.told == {}


def test_exempt_classes_are_left_alone() -> None:
    exempt = [{"policy": "chat", "class": "all"}]
    lab = metered("10", exempt=exempt)
    lab.exempt = True
    lab.run(3000)
    assert lab.server.weights("chat", "all")["dear"] >= 30  # its minWeight holds
    assert lab.spent > 10


def own(ceiling: str, *, enforce: bool = False, low: int = 1, ladder: Any = None) -> Metered:
    """A tier of one's own at 2.00 an hour that needs about seven replicas, bursts included."""
    server = Server(
        [
            in_cluster("own", price="2.00", rps="4", low=low, high=8, startup=10),
            policy("chat", [route("all", ["own"])], rebalance=FAST),
            budget(
                "month",
                ceiling,
                ladder=ladder or [{"atPercent": 100, "action": "Deny"}],
                period="Day",
                timeZone="Pacific/Auckland",
                enforceReplicas=enforce,
            ),
        ],
        demands={("chat", "all"): Demand(20.0)},
        startup_seconds=10.0,
    )
    return Metered(server, 20.0)


def test_deny_shrinks_replicas_to_the_minimum_that_was_reserved() -> None:
    """Two hours at 2.00 are committed: 8 less 4 is what may be spent on more."""
    lab = own("8")
    lab.run(300)
    assert len(lab.server.pods["own"]) >= 3
    lab.run(4500)
    assert lab.told["action"] == "Deny"
    assert len(lab.server.pods["own"]) == 1
    lab.run(7140 - 4800)
    assert 7.6 <= float(ledger.spend(lab.account()).total) <= 8


def test_enforce_replicas_takes_the_minimum_too_and_gives_it_back() -> None:
    lab = own("4", enforce=True)
    lab.run(4800)
    assert lab.told["action"] == "Deny"
    assert len(lab.server.pods["own"]) == 0
    spent = lab.spent
    assert 3.8 <= spent <= 4
    lab.run(600)
    assert lab.spent == spent
    lab.server.change("NamespaceBudget", "month", ceiling="300")
    lab.run(600)
    assert len(lab.server.pods["own"]) >= 1


def test_the_autoscaler_may_not_start_more_than_can_be_paid() -> None:
    lab = own("8", ladder=[{"atPercent": 50, "action": "Throttle"}, {"atPercent": 100, "action": "Deny"}])
    lab.run(3600)
    assert lab.told["action"] == "Throttle"
    bounds = lab.server.objects["HorizontalPodAutoscaler", "own"]["spec"]
    assert (bounds["maxReplicas"] - 1) * 2.0 * 1.0 <= 8 - lab.spent


def graded(factor: float) -> tuple[Metered, float, float]:
    """A class whose floor takes the dear provider nearly always; the ceiling is `factor` times what that costs.

    With it what the rest of the day costs within the floor, and the mean quality of what was answered.
    """
    quality = [[{"task": "qa", "score": score}] for score in ("0.90", "0.60")]
    per_hour = 2.0 * 3600 * (0.9 * 0.0048 + 0.1 * 0.0012)  # 0.87 is reached with 90% dear
    ladder = [{"atPercent": 1, "action": "Downgrade", "belowFloor": True}, {"atPercent": 100, "action": "Deny"}]
    one = route("all", ["dear", "cheap"], task="qa", quality={"minScore": "0.87"})
    server = Server(
        [
            external("dear", prices=("3.00", "15.00"), quality=quality[0]),
            external("cheap", prices=("0.75", "3.75"), quality=quality[1]),
            policy("chat", [one], rebalance=FAST),
            budget(
                "month",
                f"{factor * 2 * per_hour:.2f}",
                ladder=ladder,
                period="Day",
                timeZone="Pacific/Auckland",
            ),
        ],
        demands={("chat", "all"): Demand(2.0, 600.0, 200.0)},
    )
    lab = Metered(server, 2.0)
    points, denied = [], 0
    for _ in range(717):
        lab.round()
        weights = lab.server.weights("chat", "all")
        points.append((0.9 * weights["dear"] + 0.6 * weights.get("cheap", 0)) / 100)
    denied = lab.denied
    assert denied <= 12
    return lab, 2 * per_hour, sum(points) / len(points)


def test_under_a_ceiling_floors_give_way_by_as_little_as_it_asks_for() -> None:
    lab, natural, quality = graded(0.85)
    spent = float(ledger.spend(lab.account()).total)
    assert 0.80 * natural <= spent <= 0.85 * natural
    # 15% less money is 20 of 100 requests that go to the cheap provider: 0.06 of quality.
    assert 0.79 <= quality <= 0.83


def test_a_ceiling_above_what_is_wanted_costs_no_quality() -> None:
    lab, natural, quality = graded(1.10)
    assert float(ledger.spend(lab.account()).total) <= 1.02 * natural
    assert quality >= 0.868


def test_a_tier_without_a_price_is_withheld_and_said() -> None:
    tiers = [{"name": "free", "weight": 90}, {"name": "priced", "weight": 10}]
    server = Server(
        [
            external("free", prices=None),
            external("priced"),
            policy("chat", [route("all", tiers)], rebalance=FAST),
            policy("other", [route("all", ["free"])], rebalance=FAST),
            budget("month", "1000", ladder=LADDER),
        ],
        demands={("chat", "all"): Demand(2.0)},
    )
    lab = Metered(server, 2.0)
    lab.run(120)
    assert server.weights("chat", "all") == {"priced": 100}
    told = server.condition("RoutingPolicy", "chat", "TierUnpriced")
    assert told is not None
    assert "free" in told["message"]
    ready = server.condition("RoutingPolicy", "other")
    assert ready is not None
    assert (ready["status"], ready["reason"]) == ("False", "NoPricedTier")
    server.change("NamespaceBudget", "month", unpriced="Allow")
    lab.run(120)
    assert server.condition("RoutingPolicy", "chat", "TierUnpriced") is None


def test_weights_by_hand_are_downgraded_by_gateways_and_not_written() -> None:
    tiers = [{"name": "dear", "weight": 100}, {"name": "cheap", "weight": 0}]
    server = Server(
        [
            external("dear", prices=("3.00", "15.00")),
            external("cheap", prices=("0.75", "3.75")),
            policy("chat", [route("all", tiers)], rebalance={"mode": "Manual"}),
            budget("month", "10", ladder=LADDER[:2], period="Day", timeZone="Pacific/Auckland"),
        ],
        demands={("chat", "all"): Demand(2.0, 600.0, 200.0)},
    )
    lab = Metered(server, 2.0)
    lab.run(900)
    assert lab.told["action"] == "Downgrade"
    assert lab.told["tiers"] == ["cheap"]
    assert server.weights("chat", "all")["dear"] == 100
