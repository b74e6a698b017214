"""Missing is a reason, zero is measured, and a slow or broken Prometheus costs one bounded round."""

import asyncio
import json
import threading
import time
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tierwise.adapters import prometheus, queries
from tierwise.adapters.prometheus import Prometheus, PrometheusError
from tierwise.adapters.queries import EngineMetrics, Targets
from tierwise.core.signals import Missing, Origin, Reading

NOW = datetime(2026, 11, 25, 8, 0, tzinfo=UTC)
ENGINE = EngineMetrics(
    running=("vllm:num_requests_running",),
    waiting=("vllm:num_requests_waiting",),
    kv_cache_usage=("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
    prompt_tokens=("vllm:prompt_tokens_total",),
    generation_tokens=("vllm:generation_tokens_total",),
    ttft=("vllm:time_to_first_token_seconds",),
    inter_token=("vllm:inter_token_latency_seconds",),
)
COMPACT = ("team-a", "compact")
FRONTIER = ("team-a", "frontier")
CLASS = ("team-a", "assistant", "routine")
TARGETS = Targets(
    in_cluster={COMPACT: ENGINE}, external=frozenset({FRONTIER}), classes={CLASS: ("compact", "frontier")}
)

UP = [
    {"metric": {"q": "up"}, "value": [0, "2"]},
    {"metric": {"q": "age"}, "value": [0, "3.5"]},
]


def tier_row(value, tier="compact"):
    return {"metric": {"namespace": "team-a", "tierwise_tier": tier}, "value": [0, value]}


def class_row(value, tier="compact", **labels):
    metric = {
        "tierwise_namespace": "team-a",
        "tierwise_policy": "assistant",
        "tierwise_class": "routine",
        "tierwise_tier": tier,
    }
    return {"metric": metric | labels, "value": [0, value]}


class Answers:
    """Answers by what the query contains, first match wins."""

    def __init__(self, *rules):
        self.rules = rules
        self.asked = []

    def custom_query(self, query, params=None):
        self.asked.append((query, params))
        for part, rows in self.rules:
            if part in query:
                return rows
        return []


async def read(*rules, targets=TARGETS):
    source = Prometheus(Answers(*rules))
    try:
        return await source.read(targets, NOW)
    finally:
        source.close()


async def test_gateway_not_scraped_is_missing_not_zero():
    signals = await read()
    assert isinstance(signals.gateways_up, Missing)
    assert isinstance(signals.tiers[COMPACT].request_rate, Missing)
    assert isinstance(signals.classes[CLASS]["compact"].request_rate, Missing)
    assert signals.usage == {}


async def test_gateway_scraped_without_a_series_is_a_measured_zero():
    signals = await read(('"q"', UP))
    assert signals.gateways_up == Reading(2.0, 3.5)
    assert signals.classes[CLASS]["compact"].request_rate == Reading(0.0, 3.5)
    assert isinstance(signals.classes[CLASS]["compact"].ttfb_p95_seconds, Missing)
    assert isinstance(signals.tiers[COMPACT].error_rate, Missing)


async def test_all_gateways_down_is_missing():
    down = [{"metric": {"q": "up"}, "value": [0, "0"]}]
    signals = await read(('"q"', down))
    assert isinstance(signals.gateways_up, Missing)
    assert isinstance(signals.tiers[FRONTIER].request_rate, Missing)


async def test_a_gateway_lost_within_the_window_makes_rates_missing():
    lost = [*UP, {"metric": {"q": "lost"}, "value": [0, "1"]}]
    signals = await read(('"q"', lost), ("requests{", [class_row("5", code="200")]))
    rate = signals.classes[CLASS]["compact"].request_rate
    assert isinstance(rate, Missing)
    assert "stopped answering" in rate.reason


@pytest.mark.parametrize("bad", ["NaN", "+Inf", "-Inf"])
async def test_not_a_number_is_missing(bad):
    signals = await read(
        ('"q"', UP),
        ("time_to_first_token_seconds_bucket", [tier_row(bad)]),
        ("timestamp(vllm", [tier_row("2")]),
        ("ttfb_bucket", [class_row(bad)]),
    )
    assert isinstance(signals.tiers[COMPACT].ttft_p95_seconds, Missing)
    assert isinstance(signals.classes[CLASS]["compact"].ttfb_p95_seconds, Missing)


async def test_values_carry_their_age_and_unit():
    signals = await read(
        ('"q"', UP),
        ("timestamp(vllm", [tier_row("2.25")]),
        ("count by (namespace", [tier_row("3")]),
        ("sum by (namespace, tierwise_tier) (vllm:num_requests_running", [tier_row("17")]),
        ("duration_bucket", [class_row("1500")]),
        ("rate(envoy_tierwise_requests{", [class_row("9", code="200"), class_row("1", code="503")]),
        ("rate(envoy_tierwise_usage_requests", [class_row("8")]),
        ("rate(envoy_tierwise_prompt_tokens", [class_row("4000")]),
    )
    tier = signals.tiers[COMPACT]
    assert tier.running == Reading(17.0, 2.25)
    assert tier.ready_replicas == Reading(3.0, 2.25)
    assert tier.request_rate == Reading(10.0, 3.5)
    assert tier.error_rate == Reading(0.1, 3.5)
    one = signals.classes[CLASS]["compact"]
    assert one.request_rate == Reading(10.0, 3.5)
    assert one.latency_p95_seconds == Reading(1.5, 3.5)
    assert one.prompt_tokens == Reading(500.0, 3.5)
    assert isinstance(one.completion_tokens, Missing)


async def test_demand_is_what_arrives_not_what_ends():
    signals = await read(
        ('"q"', UP),
        ("rate(envoy_tierwise_requests{", [class_row("4", code="200")]),
        ("rate(envoy_tierwise_arrivals{", [class_row("9")]),
    )
    assert signals.classes[CLASS]["compact"].request_rate == Reading(9.0, 3.5)
    assert signals.tiers[COMPACT].request_rate == Reading(4.0, 3.5), "errors are shares of what ended"


async def test_what_a_saturated_tier_passed_on_is_no_load_of_it():
    signals = await read(
        ('"q"', UP),
        ("max_over_time(sum by (tierwise_namespace, tierwise_policy, tierwise_class, tierwise_tier) (label_replace",
         [class_row("8")]),
        ("max_over_time(", [class_row("20")]),
        ("label_replace(rate(envoy_tierwise_arrivals", [class_row("5"), class_row("4", tier="frontier")]),
        ("(rate(envoy_tierwise_arrivals{", [class_row("9")]),
        ("rate(envoy_tierwise_saturated", [{"metric": {"tierwise_namespace": "team-a", "tierwise_tier": "compact"},
                                            "value": [0, "4"]}]),
    )  # fmt: skip
    one, other = signals.classes[CLASS]["compact"], signals.classes[CLASS]["frontier"]
    assert (one.request_rate, one.peak_rate) == (Reading(9.0, 3.5), Reading(20.0, 3.5))
    assert (one.taken_rate, one.taken_peak_rate) == (Reading(5.0, 3.5), Reading(8.0, 3.5))
    assert (other.request_rate, other.taken_rate) == (Reading(0.0, 3.5), Reading(4.0, 3.5))
    assert signals.tiers[COMPACT].passed_rate == Reading(4.0, 3.5)
    # A counter that never counted has no series: nothing was passed on, if gateways were asked. Else nobody knows.
    none = await read(('"q"', UP), ("(rate(envoy_tierwise_arrivals{", [class_row("9")]))
    assert none.tiers[COMPACT].passed_rate == Reading(0.0, 3.5)
    blind = await read()
    assert isinstance(blind.tiers[COMPACT].passed_rate, Missing)
    assert isinstance(blind.classes[CLASS]["compact"].taken_rate, Missing)


async def test_a_value_without_age_is_missing():
    signals = await read(("sum by (namespace, tierwise_tier) (vllm:num_requests_running", [tier_row("17")]))
    assert signals.tiers[COMPACT].running == Missing("running: age unknown")


async def test_the_number_of_queries_does_not_grow_with_tiers():
    many = Targets(
        in_cluster={("team-a", f"tier-{n}"): ENGINE for n in range(300)},
        classes={("team-a", "assistant", f"class-{n}"): ("tier-1",) for n in range(300)},
    )
    few, lots = Answers(), Answers()
    for answers, targets in ((few, TARGETS), (lots, many)):
        source = Prometheus(answers)
        await source.read(targets, NOW)
        source.close()
    assert len(lots.asked) == len(few.asked) <= 25


async def test_usage_is_counted_from_raw_samples_and_only_once():
    def raw(*values):
        counter = {
            "__name__": "envoy_tierwise_completion_tokens",
            "tierwise_namespace": "team-a",
            "tierwise_tier": "compact",
            "instance": "a",
        }
        request = counter | {"__name__": "envoy_tierwise_requests"}
        start = NOW.timestamp() - 30
        times = [start + 5 * index for index in range(len(values))]
        return [
            {"metric": counter, "values": [[t, str(v)] for t, v in zip(times, values, strict=True)]},
            {"metric": request | {"code": "200"}, "values": [[t, str(v)] for t, v in zip(times, values, strict=True)]},
            {"metric": request | {"code": "503"}, "values": [[t, str(v)] for t, v in zip(times, values, strict=True)]},
        ]

    answers = Answers(("completion_tokens|", raw("100")))
    source = Prometheus(answers)
    assert (await source.read(TARGETS, NOW)).usage == {}
    answers.rules = (("envoy_server_uptime", raw("100", "130", "131")),)
    second = (await source.read(TARGETS, NOW + timedelta(seconds=10))).usage
    assert second[COMPACT].output_tokens == 31.0
    assert second[COMPACT].requests == 31.0, "a 503 costs nothing"
    assert second[FRONTIER].output_tokens == 0.0
    assert (await source.read(TARGETS, NOW + timedelta(seconds=20))).usage[COMPACT].output_tokens == 0.0
    source.close()


async def test_what_copies_of_requests_cost_is_counted_for_their_tier():
    def raw(name, *values, **labels):
        metric = {
            "__name__": f"envoy_tierwise_{name}",
            "tierwise_namespace": "team-a",
            "tierwise_tier": "frontier",
            "instance": "a",
            **labels,
        }
        start = NOW.timestamp() - 30
        return {"metric": metric, "values": [[start + 5 * n, str(value)] for n, value in enumerate(values)]}

    def rows(*extra):
        names = ("prompt_tokens", "completion_tokens", "cached_prompt_tokens", "usage_requests")
        found = [raw(f"shadow_{name}", 100, *(100 + value for value in extra)) for name in names]
        found += [raw("shadow_requests", 100, *(100 + value for value in extra), code="200")]
        return [*found, raw("completion_tokens", 50, *(50 + value for value in extra))]

    answers = Answers(("completion_tokens|", rows()))
    source = Prometheus(answers)
    assert (await source.read(TARGETS, NOW)).usage == {}
    assert all(f"envoy_tierwise_{name}" in answers.asked[-1][0] for name in ("shadow_requests", "shadow_prompt_tokens"))
    answers.rules = (("envoy_server_uptime", rows(7, 10)),)
    found = (await source.read(TARGETS, NOW + timedelta(seconds=10))).usage[FRONTIER]
    source.close()
    assert (found.input_tokens, found.cached_input_tokens, found.output_tokens) == (10, 10, 20)
    assert (found.requests, found.requests_with_usage) == (10, 10)


async def test_what_gateways_estimate_is_read_for_every_reason():
    names = {
        "estimated_attempts": "estimated_attempts",
        "estimated_prompt_tokens": "estimated_input_tokens",
        "estimated_completion_tokens": "estimated_output_tokens",
        "unbounded_attempts": "unbounded_attempts",
    }

    def raw(*values):
        start = NOW.timestamp() - 30
        return [
            {
                "metric": {
                    "__name__": f"envoy_tierwise_{name}",
                    "tierwise_namespace": "team-a",
                    "tierwise_tier": "frontier",
                    "reason": reason,
                    "instance": "a",
                },
                "values": [[start + 5 * n, str(value * (index + 1))] for n, value in enumerate(values)],
            }
            for index, name in enumerate(names)
            for reason in ("aborted", "discarded")
        ]

    answers = Answers(("estimated_completion_tokens|", raw(100)))
    source = Prometheus(answers)
    await source.read(TARGETS, NOW)
    answers.rules = (("unbounded_attempts|", raw(100, 107)),)
    found = (await source.read(TARGETS, NOW + timedelta(seconds=10))).usage[FRONTIER]
    for index, field in enumerate(names.values()):
        assert getattr(found, field) == 2 * 7 * (index + 1)
    source.close()


def scraped(counter, *samples, up=(), **labels):
    """Rows of one counter of team-a's frontier tier, and of its gateway's uptime, as of a query's time and range."""
    metric = {"tierwise_namespace": "team-a", "tierwise_tier": "frontier", "instance": "a"} | labels
    return [
        {"metric": metric | {"__name__": f"envoy_tierwise_{counter}"}, "values": [[t, str(v)] for t, v in samples]},
        {"metric": {"__name__": "envoy_server_uptime", "instance": "a"}, "values": [[t, str(v)] for t, v in up]},
    ]


class History:
    """A Prometheus that remembers: answers range and last_over_time queries of one counter."""

    def __init__(self, samples, up):
        self.samples, self.up, self.asked, self.broken = samples, up, [], lambda _: False
        self.now = NOW.timestamp() + 1

    def custom_query(self, query, params=None):
        if "envoy_server_uptime" not in query:
            return UP if '"q"' in query else []
        moment = float(params["time"]) if params else self.now
        self.asked.append((query, moment))
        if self.broken(len(self.asked)):
            raise ConnectionError("gone")
        span = int(query.rsplit("[", 1)[1].split("s]")[0])

        def within(samples):
            return [(t, v) for t, v in samples if moment - span < t <= moment]

        samples, up = within(self.samples), within(self.up)
        if query.startswith("last_over_time"):
            samples, up = ([(moment, each[-1][1])] if each else [] for each in (samples, up))
        return scraped("completion_tokens", *samples, up=up)


async def test_a_long_gap_is_read_in_bounded_slices_over_several_rounds():
    answers = History([], [])
    source = Prometheus(answers)
    await source.read(Targets(ledger_since={"team-a": (NOW.timestamp() - 10 * 24 * 3600,)}), NOW)
    asked = [query for query, _ in answers.asked]
    assert sum(query.startswith("last_over_time") for query in asked) == 1
    assert len(asked) == 2 + prometheus.SLICES_PER_READ
    assert all(f"[{prometheus.SLICE_SECONDS + prometheus.LOOKBACK_SECONDS}s]" in query for query in asked[2:])
    for _ in range(20):
        await source.read(Targets(), NOW)
    newest = [moment for query, moment in answers.asked if not query.startswith("last_over_time")]
    assert max(newest) >= NOW.timestamp(), "hours without any sample do not stop it"
    source.close()


def grown(start, stop, step=15):
    """A counter that grows by 7 at each scrape, and an uptime."""
    times = [start + step * n for n in range(int((stop - start) / step) + 1)]
    return [(t, 7.0 * n) for n, t in enumerate(times)], [(t, 1000.0 + t - start) for t in times]


async def test_a_restarted_operator_does_not_take_a_dead_process_for_the_one_that_took_its_place():
    """The series comes back an hour after its gateway did, and the operator restarted in between."""
    now = NOW.timestamp()
    times = [now - 7200 + 15 * n for n in range(481)]
    up = [(t, 9000.0 + t - now if t < now - 5000 else t - now + 5001) for t in times]
    samples = [(t, 500.0) for t in times if t < now - 5000] + [(t, 800.0) for t in times if t > now - 1800]
    source = Prometheus(History(samples, up))
    targets = Targets(external=frozenset({FRONTIER}), ledger_since={"team-a": (now - 3600,)})
    assert (await source.read(targets, NOW)).usage[FRONTIER].output_tokens == 800.0
    source.close()


@pytest.mark.parametrize("missing", [(0, 0), (7200, 6600), (3700, 3000)], ids=["none", "before", "around"])
async def test_a_restarted_operator_reads_what_it_missed_from_history(missing):
    """Prometheus' own gap (seconds ago) may be anywhere, around the checkpoint too: counters tell what came in it."""
    now = NOW.timestamp()
    samples, up = grown(now - 4 * 3600, now)
    seen = [n for n, (t, _) in enumerate(samples) if not now - missing[0] <= t <= now - missing[1]]
    answers = History([samples[n] for n in seen], [up[n] for n in seen])
    source = Prometheus(answers)
    since = now - 3600
    total, targets = 0.0, Targets(external=frozenset({FRONTIER}), ledger_since={"team-a": (since,)})
    for _ in range(5):
        found = (await source.read(targets, NOW)).usage.get(FRONTIER)
        total += found.output_tokens if found is not None else 0.0
        targets = Targets(external=frozenset({FRONTIER}))
    counted = max(v for t, v in answers.samples if t <= since)
    assert total == answers.samples[-1][1] - counted
    source.close()


async def test_a_slice_that_fails_keeps_what_was_read_before_it():
    now = NOW.timestamp()
    answers = History(*grown(now - 4 * 3600, now))
    answers.broken = lambda asked: asked == 7
    source = Prometheus(answers)
    first = Targets(external=frozenset({FRONTIER}), ledger_since={"team-a": (now - 3600,)})
    part = (await source.read(first, NOW)).usage[FRONTIER]
    rest = (await source.read(Targets(external=frozenset({FRONTIER})), NOW)).usage[FRONTIER]
    assert part.until == rest.since
    assert part.output_tokens + rest.output_tokens == 7 * 3600 / 15
    assert len(part.pieces) == 4, "each slice is charged at the price of its time"
    source.close()


async def test_namespaces_with_different_checkpoints_count_from_their_own():
    now = NOW.timestamp()
    samples, up = grown(now - 4 * 3600, now)
    history = History(samples, up)

    def both(query, params=None):
        rows = History.custom_query(history, query, params)
        more = [row | {"metric": row["metric"] | {"tierwise_namespace": "team-b"}} for row in rows[:1]]
        return rows + (more if "envoy_server_uptime" in query else [])

    answers = Answers()
    answers.custom_query = both
    source = Prometheus(answers)
    later = ("team-b", "frontier")
    tiers = frozenset({FRONTIER, later})
    found = await source.read(
        Targets(external=tiers, ledger_since={"team-a": (now - 3600,), "team-b": (now - 750,)}), NOW
    )
    assert found.usage[FRONTIER].output_tokens == 7 * 3600 / 15
    assert found.usage[later].output_tokens == 7 * 750 / 15
    source.close()


@pytest.mark.parametrize("second", [5, 20, 60])
async def test_a_namespace_that_is_new_while_a_long_gap_is_read_is_counted_from_then_on(second):
    """Nobody scraped for a day, and reading that takes several rounds: its first tokens are no baseline."""
    now = NOW.timestamp()
    history = History(*grown(now - 30, now + 60))

    def both(query, params=None):
        rows = History.custom_query(history, query, params)
        of_b = [row | {"metric": row["metric"] | {"tierwise_namespace": "team-b"}} for row in rows[:1]]
        born = [row | {"values": [v for v in row["values"] if v[0] > now + 10]} for row in of_b if "values" in row]
        return rows + (born if "envoy_server_uptime" in query else [])

    answers = Answers()
    answers.custom_query = both
    source = Prometheus(answers)
    later = ("team-b", "frontier")
    await source.read(Targets(external=frozenset({FRONTIER}), ledger_since={"team-a": (now - 22 * 3600,)}), NOW)
    total = 0.0
    for seconds in (second, *[60] * 12):
        targets = Targets(external=frozenset({FRONTIER, later}))
        history.now = now + seconds
        found = await source.read(targets, NOW + timedelta(seconds=seconds))
        total += found.usage[later].output_tokens if later in found.usage else 0.0
    assert total == 7.0 * 6, "all that it counted since it is there"
    source.close()


async def test_readings_part_where_each_account_of_a_namespace_goes_on():
    now = NOW.timestamp()
    source = Prometheus(History(*grown(now - 4 * 3600, now)))
    targets = Targets(external=frozenset({FRONTIER}), ledger_since={"team-a": (now - 900, now - 450)})
    reading = (await source.read(targets, NOW)).usage[FRONTIER]
    assert reading.output_tokens == 7 * 900 / 15
    later = [piece for piece in reading.pieces if piece.until.timestamp() > now - 450]
    assert min(piece.since.timestamp() for piece in later) == now - 450
    assert sum(piece.output_tokens for piece in later) == 7 * 450 / 15
    source.close()


async def test_readings_part_where_a_period_ends_also_while_the_operator_runs():
    now = NOW.timestamp()
    source = Prometheus(History(*grown(now - 4 * 3600, now)))
    targets = Targets(external=frozenset({FRONTIER}), period_edges=frozenset({now - 10.0}))
    history = source._connection
    scraped_at, history.samples = history.samples, history.samples[:-2]
    up, history.up = history.up, history.up[:-2]
    await source.read(targets, NOW)  # the first only sets a baseline
    history.samples, history.up = scraped_at, up
    reading = (await source.read(targets, NOW)).usage[FRONTIER]
    before, after = reading.pieces
    assert before.until.timestamp() <= now - 10 < after.until.timestamp()
    assert before.output_tokens + after.output_tokens == reading.output_tokens
    assert (before.output_tokens, after.output_tokens) == (7.0, 7.0)
    source.close()


async def test_a_gateway_that_two_jobs_scrape_is_counted_once():
    now = NOW.timestamp()
    answers = Answers(("envoy_server_uptime", scraped("completion_tokens", (now - 20, 5.0), up=[(now - 20, 9.0)])))
    source = Prometheus(answers)
    await source.read(TARGETS, NOW)
    rows = [
        *scraped("completion_tokens", (now - 10, 9.0), up=[(now - 10, 19.0)], job="a"),
        *scraped("completion_tokens", (now - 9, 9.0), up=[(now - 9, 20.0)], job="b"),
    ]
    answers.rules = (("envoy_server_uptime", rows),)
    assert (await source.read(TARGETS, NOW)).usage[FRONTIER].output_tokens == 4.0
    source.close()


async def test_whose_tokens_they_are_is_told_by_the_gateways_labels():
    now = NOW.timestamp()
    answers = Answers(("envoy_server_uptime", []))
    source = Prometheus(answers)
    labels = {"tierwise_policy": "assistant", "tierwise_class": "routine"}
    kinds = [("completion_tokens", "bot"), ("completion_tokens", "-"), ("shadow_completion_tokens", "-")]

    def rows(*values):
        return [
            row
            for (name, consumer), value in zip(kinds, values, strict=True)
            for row in scraped(
                name, (now - 20, 0.0), (now, value), up=[(now - 20, 9.0)], tierwise_consumer=consumer, **labels
            )
        ]

    answers.rules = (("envoy_server_uptime", scraped("requests", up=[(now - 20, 9.0)])),)
    await source.read(TARGETS, NOW)
    answers.rules = (("envoy_server_uptime", rows(3.0, 4.0, 5.0)),)
    found = (await source.read(TARGETS, NOW)).usage[FRONTIER]
    assert {origin: counts.output_tokens for origin, counts in found.parts.items()} == {
        Origin("assistant", "routine", "bot"): 3.0,
        Origin("assistant", "routine", ""): 4.0,
        Origin("assistant", "routine", "", "shadow"): 5.0,
    }
    source.close()


def test_aged_signals_grow_older_and_repeat_no_usage():
    signals = asyncio.run(read(('"q"', UP)))
    old = prometheus.aged(signals, NOW + timedelta(seconds=20), "connection refused")
    assert old.gateways_up == Reading(2.0, 23.5)
    assert old.classes[CLASS]["compact"].request_rate == Reading(0.0, 23.5)
    assert old.error == "connection refused"
    assert old.usage == {}
    older = prometheus.aged(old, NOW + timedelta(seconds=30), "connection refused")
    assert older.gateways_up == Reading(2.0, 33.5)


class Server:
    """A local HTTP server that answers as told."""

    def __init__(self, answer):
        handler = type("Handler", (BaseHTTPRequestHandler,), {"do_POST": answer, "log_message": lambda *_: None})
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True).start()

    def __enter__(self):
        return self.url

    def __exit__(self, *_):
        self.http.shutdown()
        self.http.server_close()


def respond(handler, status, body):
    handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


async def ask(url, **options):
    source = Prometheus(prometheus.connection(url, timeout_seconds=0.3), **options)
    try:
        return await source.read(TARGETS, NOW)
    finally:
        source.close()


async def test_over_http_an_empty_prometheus_answers():
    body = json.dumps({"status": "success", "data": {"resultType": "vector", "result": []}}).encode()
    with Server(lambda self: respond(self, 200, body)) as url:
        assert isinstance((await ask(url)).gateways_up, Missing)


@pytest.mark.parametrize(
    ("status", "body"), [(500, b"boom"), (422, b"{}"), (200, b"<html>"), (200, b"{}"), (200, b'{"data": {}}')]
)
async def test_a_broken_answer_is_a_typed_error(status, body):
    with Server(lambda self: respond(self, status, body)) as url, pytest.raises(PrometheusError):
        await ask(url)


async def test_a_token_is_read_anew_for_each_request(tmp_path):
    seen = []
    body = json.dumps({"status": "success", "data": {"resultType": "vector", "result": []}}).encode()

    def answer(handler):
        seen.append(handler.headers.get("Authorization"))
        respond(handler, 200, body)

    token = tmp_path / "token"
    token.write_text("first\n")
    with Server(answer) as url:
        source = Prometheus(prometheus.connection(url, token_file=token))
        await source.read(TARGETS, NOW)
        token.write_text("second\n")
        await source.read(TARGETS, NOW)
        token.unlink()
        with pytest.raises(PrometheusError):
            await source.read(TARGETS, NOW)
        source.close()
    assert (seen[0], seen[-1]) == ("Bearer first", "Bearer second")


async def test_connection_refused_fails_at_once():
    start = time.monotonic()
    with pytest.raises(PrometheusError):
        await ask("http://127.0.0.1:1")
    assert time.monotonic() - start < 1


async def test_silence_is_bounded_by_the_time_out():
    with Server(lambda _: time.sleep(2)) as url:
        start = time.monotonic()
        with pytest.raises(PrometheusError):
            await ask(url)
        assert time.monotonic() - start < 1.5


async def test_a_dripping_answer_is_bounded_by_the_round_and_nothing_queues_behind_it():
    def drip(handler):
        handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        for _ in range(100):
            handler.wfile.write(b" ")
            time.sleep(0.1)

    with Server(drip) as url:
        source = Prometheus(prometheus.connection(url, timeout_seconds=0.3), round_timeout_seconds=0.5)
        start = time.monotonic()
        with pytest.raises(PrometheusError, match="no answer"):
            await source.read(TARGETS, NOW)
        with pytest.raises(PrometheusError, match="not come back"):
            await source.read(TARGETS, NOW)
        assert time.monotonic() - start < 5.0, "an answer that drips for ten seconds is not waited for"
        source.close()


def test_every_engine_query_falls_back_to_older_names():
    found = queries.engine_queries([ENGINE], 60)["kv_cache_usage"]
    assert "vllm:kv_cache_usage_perc" in found
    assert " or avg by" in found


async def test_answers_without_usage_are_unknown_tokens_not_none():
    answered = [("envoy_tierwise_requests", [class_row("2", "frontier", code="200")]), ("up{", UP)]
    tier = (await read(*answered)).tiers[FRONTIER]
    assert isinstance(tier.prompt_token_rate, Missing)
    assert isinstance(tier.generation_token_rate, Missing)
    embedded = [*answered, ("usage_requests{", [class_row("2", "frontier")])]
    assert (await read(*embedded)).tiers[FRONTIER].generation_token_rate == Reading(0.0, 3.5)
    failed = [("envoy_tierwise_requests", [class_row("2", "frontier", code="503")]), ("up{", UP)]
    assert (await read(*failed)).tiers[FRONTIER].generation_token_rate == Reading(0.0, 3.5)
