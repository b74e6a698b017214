"""Prints how much processor time the optimiser takes: `python tests/core/bench_balance.py`."""

import random
import statistics
import time

from tierwise.core import balance
from tierwise.core.problem import ClassLoad, Pair, Problem, Tier
from tierwise.core.quality import Floor


def make(tiers: int, classes: int, each: int, seed: int) -> Problem:
    """A namespace with `tiers` tiers (a fifth external) and `classes` classes that may each use `each` of them."""
    dice = random.Random(seed)
    made = {}
    for number in range(tiers):
        name = f"t{number:02}"
        outside = number % 5 == 4
        made[name] = Tier(name) if outside else Tier(name, dice.uniform(2, 30), 0, 20, dice.randint(0, 5), 0.1)
    loads = []
    for number in range(classes):
        pairs = []
        for name in dice.sample(sorted(made), min(each, tiers)):
            score = dice.uniform(0.6, 0.95)
            if made[name].external:
                pairs.append(Pair(name, cost_per_request=dice.uniform(0.001, 0.02), tokens=1000, score=score))
            else:
                speed = dice.uniform(3, 20)
                pairs.append(Pair(name, utilisation=1 / speed, limit=dice.choice([0.5, 0.7, 0.8]), score=score))
        best = max(pair.score or 0.0 for pair in pairs)
        loads.append(ClassLoad(("ns", "p", f"c{number:03}"), dice.uniform(0, 3), tuple(pairs), Floor(min(0.8, best))))
    return Problem(made, tuple(loads))


def main() -> None:
    """Median and worst of five seeds each."""
    for tiers, classes, each in ((3, 2, 3), (5, 6, 4), (8, 16, 6), (50, 200, 4), (50, 200, 8)):
        times, gaps = [], []
        for seed in range(5):
            problem = make(tiers, classes, each, seed)
            start = time.process_time()
            solution = balance.solve(problem)
            times.append(1000 * (time.process_time() - start))
            if solution is not None:
                gaps.append(solution.cost_per_hour)
        print(
            f"{tiers:3} tiers x {classes:3} classes, {each} tiers each: "
            f"median {statistics.median(times):6.1f} ms, worst {max(times):6.1f} ms, "
            f"mean cost {statistics.mean(gaps):8.2f}/h"
        )


if __name__ == "__main__":
    main()
