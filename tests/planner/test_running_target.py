"""An autoscaler's learnt target outlives a restart; one that a user named does not outlive its removal."""

import copy

from api_server import Demand, Server, Truth, in_cluster, policy, route

from tierwise import planner
from tierwise.core.memory import LoopMemory


def server(**autoscaling):
    tier = in_cluster("own", price="1.00", low=1, rps="4")
    tier["spec"]["inCluster"]["autoscaling"] = {"signal": "RunningRequests", **autoscaling}
    return Server(
        [tier, policy("chat", [route("all", ["own"])])],
        {("chat", "all"): Demand(12.0)},
        {"own": Truth(saturation=8000.0)},
        startup_seconds=5.0,
        noise=0.02,
    )


def rounds(made, count):
    for _ in range(count):
        made.measure(5.0)
        made.carry_out(planner.plan(made.world()))
        made.control()
        made.later(5.0)


def target(made):
    return made.objects["HorizontalPodAutoscaler", "own"]["spec"]["metrics"][0]["pods"]["target"]["averageValue"]


def test_a_target_that_a_user_named_and_removed_is_no_learnt_one():
    preset = server()
    rounds(preset, 1)
    made = server(target=57)
    rounds(made, 3)
    assert target(made) == "57"
    inside = copy.deepcopy(made.objects["ModelTier", "own"]["spec"]["inCluster"])
    del inside["autoscaling"]["target"]
    made.change("ModelTier", "own", inCluster=inside)
    rounds(made, 1)
    assert target(made) == target(preset)
    rounds(made, 1)
    assert target(made) == target(preset)


def test_a_learnt_target_outlives_a_restart():
    made = server()
    rounds(made, 60)
    learnt = target(made)
    preset = server()
    rounds(preset, 1)
    assert learnt != target(preset)
    made.store.memory = LoopMemory()
    made.store._signals = None
    made.carry_out(planner.plan(made.world()))
    assert target(made) == learnt
    rounds(made, 2)
    assert target(made) == learnt
