"""The measurement measures what it says: each part of the real chain, once, in order, and every variant serves."""

import itertools

import bench_dataplane as bench
import bench_variants
import pytest
from rich.console import Console

from tierwise.devcluster import build
from tierwise.render.envoy import filters, gateway
from tierwise.render.envoy.fields import LISTENER_NAME
from tierwise.render.envoy.protos import LISTENER, parse


def made():
    own, outside = bench_variants.worlds(8000)
    config = gateway.render(own, bench_variants.OPTIONS)
    return config, bench_variants.variants(config, own, outside)


def parts(config):
    """Names of all that a configuration has."""
    manager = bench_variants.manager_of(config)
    return [
        *(each["name"] for each in manager["http_filters"]),
        *(f"upstream {each['name']}" for each in bench_variants.upstream_filters(config)),
        *(f"log {each['name']}" for each in manager["access_log"]),
    ]


def test_the_variants_go_from_nothing_to_the_real_configuration_and_each_has_more_than_the_one_before():
    config, variants = made()
    steps = [variant.change(config) for variant in variants[:-2]]
    assert parts(steps[0]) == [bench_variants.ROUTER]
    assert steps[-1] == config
    for before, after in itertools.pairwise(steps):
        assert set(parts(before)) <= set(parts(after))
        assert before != after
    for step in steps:
        parse(step.shared[LISTENER][LISTENER_NAME])
    # The one before the last differs by what the last is named after, and by nothing else.
    assert set(parts(config)) - set(parts(steps[-2])) == {"log stdout"}
    manager, real = bench_variants.manager_of(steps[-2]), bench_variants.manager_of(config)
    assert {key for key in real if real[key] != manager[key]} == {"access_log"}


def test_a_filter_that_the_product_gets_is_measured(monkeypatch):
    _, before = made()
    new = filters.extension("tierwise.new", "envoy.extensions.filters.http.header_mutation.v3.HeaderMutation")
    chain = filters.chain
    monkeypatch.setattr(filters, "chain", lambda options: [new, *chain(options)])
    _, after = made()
    assert [v.name for v in after if v.name not in {v.name for v in before}] == ["+ new (header_mutation)"]


@pytest.mark.timeout(240)
async def test_every_variant_serves_and_the_whole_chain_costs_more_than_plain_envoy():
    build.small_program(bench.LOAD, Console(stderr=True))
    found = await bench.run(bench.Bounds(rounds=1, passes=1, seconds=0.1))
    rows = {(row["load"], row["variant"]): row for row in found["rows"]}
    _, variants = made()
    assert {name for _, name in rows} == {bench.DIRECT, *(variant.name for variant in variants)}
    whole = variants[-3].name
    for kind in {load for load, _ in rows}:
        assert rows[kind, whole]["cpu_us"].median > rows[kind, bench_variants.PLAIN]["cpu_us"].median > 5
        assert 20 < rows[kind, whole]["memory_mib"].median < 400
    # What people read has a line for each of them.
    assert bench.cost_table(found["rows"]).count("\n") == len(variants) + 1
    assert bench.time_table(found["rows"]).count("\n| ") == 3 * (len(variants) + 2) - 1
