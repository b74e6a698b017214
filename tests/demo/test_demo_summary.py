"""The outcome, its files, the timeline, and the picture."""

import csv
import io
import json
from decimal import Decimal
from pathlib import Path

import demo_worlds as worlds
import pytest
from rich.console import Console

from tierwise.demo import live, recorder, records, report, results, summary, timeline, upstream, watch
from tierwise.demo.records import Objective
from tierwise.demo.summary import Outcome, Simulated
from tierwise.demo.timeline import Arm, Observed, WeightSeen

AUTO, LARGE = Arm("auto", "demo"), Arm("all-large", "demo-all-large")
LIVES = (
    worlds.life(-5.0),
    worlds.life(40.0, 70.0),
    worlds.life(-5.0, tier="large", namespace="demo-all-large", name="l1"),
    worlds.life(20.0, tier="large", namespace="demo-all-large", name="l2"),
)
SERVED = (
    *(worlds.record(number, sent=float(number), tier="compact") for number in range(60)),
    *(worlds.record(100 + number, sent=float(number), tier="provider") for number in range(40)),
    *(worlds.record(200 + number, sent=float(number), arm="all-large", tier="large") for number in range(99)),
    worlds.record(300, sent=99.0, arm="all-large", tier="large", ttft=3.0),
)
WEIGHTS = (
    WeightSeen("auto", "routine", -1.0, {"compact": 50.0, "provider": 50.0}),
    WeightSeen("auto", "routine", 30.0, {"compact": 60.0, "provider": 40.0}),
)
SEEN = Observed(LIVES, SERVED, WEIGHTS)


def outcome() -> Outcome:
    arms = {arm.name: summary.arm_outcome(arm, worlds.terms(), SEEN, 100.0) for arm in (AUTO, LARGE)}
    lines = [upstream.Upstream(record.request_id, "demo", record.tier or "", "finished", 100, 10) for record in SERVED]
    checks = summary.live_checks(arms["auto"], arms["all-large"], SERVED, lines)
    rows = (Simulated("auto", 1.0, 36.0, 0.99, 0.98, {"routine": 0.82}, 0.1),)
    return Outcome(arms, rows, checks, {"start": 12.5}, {"trace": "made up"})


def test_an_arm_costs_its_own_replicas_and_tokens() -> None:
    auto = outcome().arms["auto"]
    # 100 + 30 replica-seconds at 1.80 an hour; 40 requests of 100 and 10 tokens at 2 and 10 per million.
    assert auto.bill.cost == Decimal("0.065") + Decimal("0.012")
    assert auto.most_replicas == {"compact": 2}
    routine = next(entry for entry in auto.classes if entry.name == "routine")
    assert routine.shares == {"compact": 0.6, "provider": 0.4}
    assert routine.score == pytest.approx(0.6 * 0.8 + 0.4 * 0.95)
    assert routine.attainment == 1.0
    large = outcome().arms["all-large"]
    assert large.bill.cost == Decimal("0.36")
    assert large.attainment == 0.99


def test_a_class_without_requests_has_no_attainment_rather_than_a_perfect_one() -> None:
    empty = next(entry for entry in outcome().arms["auto"].classes if entry.name == "complex")
    assert (empty.requests, empty.attainment, empty.score) == (0, None, None)


def test_promises_hold_and_each_defect_turns_the_run_red() -> None:
    made = outcome()
    held = {check.name: check.held for check in made.checks}
    assert held == {
        "every request answered": True,
        "client kept up": True,
        "clients and upstreams agree": True,
        "floor of routine kept": True,
        "a floor binds": False,
        "Auto cheaper than all-large (measured)": True,
    }
    assert not made.held


def test_attainment_counts_failures_and_each_limit() -> None:
    objective = Objective(ttft_seconds=1.0, inter_token_seconds=0.05)
    answers = [
        worlds.record(1),
        worlds.record(2, ttft=1.5),
        worlds.record(3, gap=0.06),
        worlds.record(4, gap=None),
        worlds.record(5, status=503, error="status 503"),
    ]
    assert records.attainment(answers, objective) == pytest.approx(2 / 5)
    assert records.attainment([], objective) is None


def test_percentiles_are_by_nearest_rank() -> None:
    assert records.percentile([], 0.95) is None
    assert records.percentile([3.0], 0.95) == 3.0
    assert records.percentile([float(value) for value in range(1, 101)], 0.95) == 95.0


def test_the_timeline_shows_pods_weights_and_rates_of_their_moment() -> None:
    points = timeline.build(100, [AUTO, LARGE], worlds.terms(), SEEN)
    at50 = {point.tier: point for point in points if point.second == 50 and point.arm == "auto"}
    assert (at50["compact"].replicas, at50["compact"].ready) == (2, 2)
    assert at50["compact"].weights == {"routine": 60.0}
    assert at50["provider"].replicas is None
    assert at50["compact"].requests_per_second == pytest.approx(1.0)
    assert at50["compact"].cost_per_hour == pytest.approx(3.6)
    at20 = {point.tier: point for point in points if point.second == 20 and point.arm == "auto"}
    assert at20["compact"].weights == {"routine": 50.0}
    assert at20["provider"].cost_per_hour == pytest.approx(1.08)


def test_files_hold_what_was_measured_and_unknown_is_empty(tmp_path: Path) -> None:
    points = timeline.build(2, [AUTO], worlds.terms(), SEEN)
    results.write(tmp_path, outcome(), points, [worlds.record(1, prompt=None)], LIVES)
    document = json.loads((tmp_path / "summary.json").read_text())
    assert document["arms"]["auto"]["bill"]["cost"] == "0.077000"
    assert document["saving_factor"] == pytest.approx(0.36 / 0.077, abs=1e-5)
    assert document["held"] is False
    assert document["simulated"][0]["name"] == "auto"
    with (tmp_path / "requests.csv").open() as stream:
        (row,) = csv.DictReader(stream)
    assert row["prompt_tokens"] == ""
    assert row["ttft_seconds"] == "0.5"
    with (tmp_path / "timeline.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert {entry["tier"] for entry in rows} >= {"compact", "provider"}
    assert all(entry["replicas"] == "" for entry in rows if entry["tier"] == "provider")
    with (tmp_path / "pods.csv").open() as stream:
        assert len(list(csv.DictReader(stream))) == len(LIVES)


def text_of(renderable: object, width: int = 100) -> list[str]:
    console = Console(width=width, record=True, file=io.StringIO(), legacy_windows=False)
    console.print(renderable)
    return console.export_text().splitlines()


def frame(**over: object) -> live.Frame:
    arms = [
        live.ArmFrame(
            arm.name,
            arm.name,
            timeline.points_at(50.0, arm, worlds.terms(), SEEN),
            ["complex", "routine"],
            0.1,
            0.99,
        )
        for arm in (AUTO, LARGE)
    ]
    values: dict[str, object] = {"move": "", "move_age_seconds": None}
    return live.Frame(50.0, 100.0, 200, 190, 0, arms, rates=(1.0, 4.0), saving=2.0, **(values | over))  # type: ignore[arg-type]


def test_the_picture_fits_a_hundred_columns_and_does_not_jump() -> None:
    short = text_of(live.picture(frame()))
    long = text_of(live.picture(frame(move="compact " * 60, move_age_seconds=3.0)))
    assert len(short) == len(long)
    assert {len(line.rstrip()) for line in short} == {100}
    assert all(len(line) <= 100 for line in long)
    assert any("2 of 2" in line for line in short)
    assert any("2.00x" in line for line in short)
    assert "auto: compact 2/2, provider" in live.line(frame())


def test_the_report_names_every_promise_and_where_figures_come_from() -> None:
    text = "\n".join(text_of(report.render(outcome(), "USD")))
    for check in outcome().checks:
        assert check.name in text
    assert "NOT HELD" in text
    assert "measured" in text
    assert "simulated" in text


def test_sparklines_have_one_bar_per_part() -> None:
    assert live.sparkline([]) == ""
    assert live.sparkline([0.0, 0.0]) == "▁▁"
    assert live.sparkline([float(value) for value in range(120)], 60)[-1] == "█"
    assert len(live.sparkline([1.0] * 120, 60)) == 60


def test_the_recorder_reads_what_clients_write_line_by_line(tmp_path: Path) -> None:
    book = recorder.Recorder([AUTO, LARGE], worlds.terms())
    path = tmp_path / "client.jsonl"
    line = json.dumps(
        {
            "index": 0,
            "kind": "routine",
            "planned_seconds": 1.0,
            "sent_seconds": 1.01,
            "status": 200,
            "tier": "compact",
            "ttft_seconds": 0.2,
            "response_id": "chatcmpl-abc",
            "error": None,
        }
    )
    path.write_text(line + "\n" + line[:20])
    book.read_answers("auto", path)
    assert [(record.request_id, record.tier, record.ok) for record in book.served] == [("abc", "compact", True)]
    with path.open("a") as stream:
        stream.write(line[20:] + "\n" + json.dumps({"end": True, "cpu_seconds": 1, "wall_seconds": 2}) + "\n")
    book.read_answers("auto", path)
    assert len(book.served) == 2
    assert book.ends["auto"]["cpu_seconds"] == 1


def test_a_request_that_was_never_sent_is_a_failure() -> None:
    entry = {"kind": "routine", "planned_seconds": 1.0, "sent_seconds": None, "status": 0, "error": "not sent"}
    assert not recorder.served("auto", entry).ok
    assert recorder.served("auto", entry).status is None


def test_the_recorder_keeps_weights_when_they_change_and_decisions_once() -> None:
    book = recorder.Recorder([AUTO, LARGE], worlds.terms())

    def policy(percent: int, decision: str) -> dict[str, object]:
        return {
            "metadata": {"namespace": "demo", "name": "assistant"},
            "status": {
                "classes": [{"name": "routine", "weights": [{"tier": "compact", "percent": percent}]}],
                "decision": {"id": decision, "message": f"why {decision}"},
            },
        }

    for at, percent, decision in ((1.0, 50, "a"), (2.0, 50, "a"), (3.0, 60, "b")):
        book.policy("MODIFIED", policy(percent, decision), at)
    assert [(seen.at_seconds, seen.weights["compact"]) for seen in book.weights] == [(1.0, 50.0), (3.0, 60.0)]
    assert [move.text for move in book.moves] == ["why a", "why b"]


def test_documents_are_cut_from_a_stream_wherever_it_breaks() -> None:
    stream = "".join(json.dumps({"type": "ADDED", "object": {"n": number}}, indent=2) + "\n" for number in range(3))
    documents = watch.Documents()
    found = [document for index in range(0, len(stream), 7) for document in documents.feed(stream[index : index + 7])]
    assert [document["object"]["n"] for document in found] == [0, 1, 2]


def test_upstream_logs_are_read_with_their_pods_tiers(tmp_path: Path) -> None:
    folder = tmp_path / "demo_compact-abc_uid-1" / "engine"
    folder.mkdir(parents=True)
    line = {"event": "request", "outcome": "finished", "request_id": "r1", "prompt_tokens": 5, "completion_tokens": 2}
    (folder / "0.log").write_text("starting\n" + json.dumps(line, separators=(",", ":")) + "\n{broken\n")
    other = tmp_path / "other_x_uid-2" / "engine"
    other.mkdir(parents=True)
    (other / "0.log").write_text(json.dumps(line, separators=(",", ":")) + "\n")
    life = worlds.life(0.0, name="uid-1")
    (found,) = upstream.read(tmp_path, {life.key: life}, ["demo"])
    assert (found.request_id, found.tier, found.prompt_tokens) == ("r1", "compact", 5)


@pytest.mark.parametrize(
    ("names", "held"),
    [
        ({"auto": (1.0, 0.98), "static": (2.0, 0.99)}, True),
        ({"auto": (2.0, 0.98), "static": (1.0, 0.99)}, False),
        ({"auto": (1.0, 0.98), "static": (2.0, 0.90)}, False),  # nothing to compare with is no success
        ({"static": (2.0, 0.99)}, False),
    ],
)
def test_a_comparison_needs_someone_to_compare_with(names: dict[str, tuple[float, float]], *, held: bool) -> None:
    rows = [Simulated(name, cost, 36 * cost, 0.99, worst, {}, 0.1) for name, (cost, worst) in names.items()]
    found = summary.simulated_checks(rows, "auto")
    assert found
    assert all(check.held for check in found) is held


def test_logs_that_can_not_be_read_are_no_promise_and_empty_ones_break_it() -> None:
    auto = outcome().arms["auto"]
    name = "clients and upstreams agree"
    assert name not in {check.name for check in summary.live_checks(auto, None, SERVED, None)}
    assert not next(check for check in summary.live_checks(auto, None, SERVED, []) if check.name == name).held
