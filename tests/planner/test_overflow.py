"""What goes elsewhere while replicas start: it comes back once they are there, and is left alone until then."""

import pytest
from api_server import Demand, Server, external, in_cluster, policy, route

from tierwise import planner

KEY = ("legal", "chat", "all")
TIERS = [{"name": "own", "weight": 100}, {"name": "provider", "weight": 0}]


def rounds(server: Server, count: int, seconds: float = 5.0) -> None:
    for _ in range(count):
        server.measure(seconds)
        server.carry_out(planner.plan(server.world()))
        server.control()
        server.later(seconds)


def moves(server: Server) -> int:
    return sum(event.reason == "WeightsMoved" for event in server.events)


def small(*, noise: float = 0.0) -> Server:
    rebalance = {"interval": "30s", "cooldown": "2m", "maxStepPercent": 10, "minSavingPercent": 5}
    return Server(
        [
            in_cluster("own", price="1.00", low=1, rps="8"),
            external("provider", prices=("3.00", "15.00")),
            policy("chat", [route("all", TIERS)], rebalance=rebalance),
        ],
        {("chat", "all"): Demand(4.0)},
        startup_seconds=5.0,
        noise=noise,
        seed=3,
    )


def test_what_went_elsewhere_comes_back_and_is_forgotten() -> None:
    server = small()
    rounds(server, 1)
    assert server.weights("chat", "all")["provider"] == 100, "own has no ready replica yet"
    assert server.store.memory.classes[KEY].home == {"own": 100}
    rounds(server, 30)
    assert server.weights("chat", "all") == {"own": 100, "provider": 0}
    assert server.store.memory.classes[KEY].home is None


@pytest.mark.parametrize("rate", [9.0, 12.0])
def test_replicas_that_never_come_are_no_reason_to_move_at_every_look(rate: float) -> None:
    server = small(noise=0.03)
    rounds(server, 60)
    server.startup_seconds = 1e7
    server.demands["chat", "all"].rate = rate
    rounds(server, 60)
    before = moves(server)
    rounds(server, 360)
    assert moves(server) - before <= 10, "half an hour of noise"
