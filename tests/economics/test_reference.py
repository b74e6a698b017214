"""Ours against the reference figures, where the shared data is there: cost to 0.1%, attainment to 1.5 points."""

import pytest

from tierwise.economics import baselines, bench, bound, scenarios
from tierwise.economics.__main__ import shared_data
from tierwise.economics.loads import loads

DATA = shared_data()
pytestmark = pytest.mark.skipif(not (DATA / "reference_results.json").exists(), reason="the shared data is not here")


@pytest.fixture(params=["halfhour-azure", "halfhour-longctx", "halfday-reasoning"])
def known(request):
    found = scenarios.load(DATA / "scenarios.json", DATA, (request.param,))[0]
    return found, loads(found), bench.references(DATA / "reference_results.json")[request.param]


def test_bound_and_replay(known):
    scenario, have, reference = known
    mean = bound.schedule(scenario, known=have)
    burst = bound.schedule(scenario, known=have, burst=True)
    online = reference["online"]
    assert mean.usd_per_hour == pytest.approx(reference["lp_lower_1min_usd_h"], rel=1e-3)
    assert burst.usd_per_hour == pytest.approx(reference["burst_safe_lp_usd_h"], rel=1e-3)
    replay = online["clairvoyant_replay_burst_safe"]["usd_per_hour"]
    assert bound.replay_cost(scenario, burst) == pytest.approx(replay, rel=1e-3)
    assert bench.replay_run(scenario, burst).attainment == pytest.approx(100, abs=0.01)
    for name, limit in have.limits.items():
        assert limit == pytest.approx(reference["rho_max"][name], abs=1e-3)


def test_static_split_and_autoscalers(known):
    scenario, have, reference = known
    elastic = baselines.best_split(scenario, have, 0.7)
    rows = {
        "static_peak": baselines.fixed(scenario, elastic)[0],
        "hpa_70": baselines.autoscaled(scenario, have, elastic, 0.7)[0],
        "hpa_50": baselines.autoscaled(scenario, have, elastic, 0.5)[0],
    }
    for name, score in rows.items():
        wanted = reference["online"][name]
        assert score.usd_per_hour == pytest.approx(wanted["usd_per_hour"], rel=1e-3), name
        assert score.attainment == pytest.approx(wanted["slo_pct"], abs=1.5), name
        assert score.replica_changes == pytest.approx(wanted["replica_changes_per_hour"], rel=0.02, abs=0.1), name
        assert score.reversals == pytest.approx(wanted["oscillations_per_day"], rel=0.02, abs=0.1), name


def test_all_large(known):
    scenario, have, reference = known
    large = baselines.split_of(have, baselines.all_large(scenario))
    score = baselines.fixed(scenario, large)[0]
    if not any(large.peaks.values()):
        assert score.usd_per_hour == pytest.approx(reference["all_large_peak_usd_h"], rel=1e-3)
