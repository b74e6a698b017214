"""Where learning starts: a load that begins fills no window."""

import dataclasses

from api_server import Demand, Server, Truth, external, in_cluster, policy, route

from tierwise import planner
from tierwise.core.signals import Missing, Reading

WINDOW = 15.0
REQUEST_SECONDS = 6.0


class Began(Server):
    """From where its load begins: rates are means over a window that was empty, and no request has ended yet."""

    begun = None

    def measure(self, seconds=5.0):
        super().measure(seconds)
        signals = self.store._signals
        if self.begun is None and self.demands["chat", "all"].rate > 0:
            self.begun = self.now
        age = (self.now - self.begun).total_seconds() + 0.5 if self.begun is not None else 0.0
        share = min(1.0, age / WINDOW)

        def part(signal):
            return Reading(signal.value * share, 1.0) if isinstance(signal, Reading) else signal

        tiers = {
            key: dataclasses.replace(
                each,
                request_rate=part(each.request_rate),
                prompt_token_rate=part(each.prompt_token_rate),
                generation_token_rate=part(each.generation_token_rate),
                **({"inter_token_mean_seconds": Missing("none")} if age < 3.0 else {}),
            )
            for key, each in signals.tiers.items()
        }
        unknown = {"prompt_tokens": Missing("none"), "completion_tokens": Missing("none")}
        classes = {
            key: {
                name: dataclasses.replace(
                    each, request_rate=part(each.request_rate), **(unknown if age < REQUEST_SECONDS else {})
                )
                for name, each in by_tier.items()
            }
            for key, by_tier in signals.classes.items()
        }
        self.store.put_signals(dataclasses.replace(signals, tiers=tiers, classes=classes))


def rounds(made, count, seconds=2.0):
    for _ in range(count):
        made.measure(seconds)
        made.carry_out(planner.plan(made.world()))
        made.control()
        made.later(seconds)


def test_a_load_that_has_only_just_begun_takes_no_capacity_away():
    """Running requests over the tokens of a window that is nearly empty look like a replica as slow as can be."""
    tiers = [{"name": "own", "weight": 100}, {"name": "provider", "weight": 0}]
    objective = {"ttftP95": "2s", "interTokenP95": "100ms"}
    rebalance = {"interval": "2s", "cooldown": "8s", "maxStepPercent": 50, "minSavingPercent": 5}
    demand = Demand(0.0, prompt=150, completion=200)
    made = Began(
        [
            in_cluster("own", price="1.00", low=1, high=6, rps="2", startup=5),
            external("provider", prices=("20.00", "60.00")),
            policy("chat", [route("all", tiers, objective=objective)], rebalance=rebalance),
        ],
        {("chat", "all"): demand},
        {"own": Truth(idle_itl=0.025, saturation=1400.0)},
        startup_seconds=5.0,
    )
    rounds(made, 10)
    demand.rate = 1.8
    rounds(made, 90)
    assert made.weights("chat", "all") == {"own": 100, "provider": 0}
    assert made.store.memory.tiers["legal", "own"].capacity.saturation * 0.7 > 245 * 1.8
