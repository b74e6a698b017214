"""A small scenario of its own: the published data need not be there."""

import csv
import json
import math
import random
import shutil

import pytest

from tierwise.economics import bench, scenarios, variants

MINUTES = 180


def per_minute(path, scale, seed):
    source = random.Random(seed)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["minute", "requests", "prompt_tokens", "output_tokens", "max_requests_in_10s"])
        for minute in range(MINUTES):
            rate = scale * (1 + 0.5 * math.sin(minute / 30)) * source.uniform(0.85, 1.15)
            count = round(60 * rate)
            writer.writerow([minute, count, count * 600, count * 150, math.ceil(count / 6 * source.uniform(1, 1.6))])


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """`scenarios.json`, replica parameters and two traces of three hours."""
    tmp_path = tmp_path_factory.mktemp("scenarios")
    per_minute(tmp_path / "chat.csv", 60.0, 1)
    per_minute(tmp_path / "code.csv", 25.0, 2)
    (tmp_path / "perf_replica_params.csv").write_text(
        "model,system,tp,itl_alpha_ms,itl_beta_ms_per_seq,itl_gamma_ms_per_1k_kv_tokens,"
        "prefill_p0_ms,prefill_p1_ms_per_1k_tok,prefill_p2_ms_per_1M_tok2\n"
        "small,gpu,1,8.0,0.1,0.05,10,20,0.5\n"
    )
    limits = {"itl_ms": 40, "ttft_ms": 2000, "p95_prompt": 2000}
    body = {
        "name": "small",
        "reference_tier": "api.large",
        "floor": "class",
        "tiers": [
            {
                "kind": "replica",
                "name": "inside",
                "perf_key": ["small", "gpu", 1],
                "usd_per_hour": 4.0,
                "kv_tokens": 400_000,
                "cold_start_s": 120,
            },
            {"kind": "api", "name": "api.large", "usd_per_mtok_in": 3, "usd_per_mtok_out": 15},
        ],
        "classes": [
            {
                "name": "chat",
                "trace": "chat.csv",
                "load_scale": 1.0,
                "slo": limits,
                "quality": {"inside": 80.0, "api.large": 79.0},
                "output_mult": {"inside": 1.0, "api.large": 0.8},
            },
            {
                "name": "code",
                "trace": "code.csv",
                "load_scale": 2.0,
                "slo": limits,
                "quality": {"inside": 70.0, "api.large": 72.0},
                "output_mult": {"inside": 1.0, "api.large": 0.8},
            },
        ],
    }
    (tmp_path / "scenarios.json").write_text(json.dumps([body]))
    return tmp_path


@pytest.fixture
def directory(made, tmp_path):
    """One that a test may change."""
    return shutil.copytree(made, tmp_path, dirs_exist_ok=True)


@pytest.fixture(scope="session")
def scenario(made):
    return scenarios.load(made / "scenarios.json", made)[0]


@pytest.fixture(scope="session")
def hour(scenario):
    """Its first hour, and the planner's run of it."""
    part = variants.part(scenario, 0, 1)
    return part, bench.planner_run(part)[1]
