"""What a run leaves on disk: `summary.json`, `timeline.csv`, `requests.csv`, `pods.csv`. Money as decimal strings."""

import csv
import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from tierwise.demo.pods import PodLife
from tierwise.demo.records import Served
from tierwise.demo.summary import ArmOutcome, Outcome, per_million, saving
from tierwise.demo.timeline import Point

PROVENANCE = {
    "arms": "measured: client records, Pods observed at the API server, declared prices and scores",
    "arms.*.bill.*.token_cost": "measured tokens at declared prices",
    "arms.*.classes.*.score": "measured shares of declared scores",
    "simulated": "simulated: the same trace in the replica model of docs/simulator.md",
    "timings": "measured",
}


def plain(value: object) -> Any:  # noqa: ANN401 - any JSON value
    """JSON values of dataclasses, mappings and decimals; floats rounded to 6 digits after the point."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {entry.name: plain(getattr(value, entry.name)) for entry in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, Decimal):
        return format(value.quantize(Decimal("0.000001")), "f")
    if isinstance(value, float):
        return round(value, 6)
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    return value


def summary(outcome: Outcome) -> dict[str, Any]:
    """The whole outcome as JSON values."""
    arms = list(outcome.arms.values())
    document: dict[str, Any] = {
        "held": outcome.held,
        "engines": "simulated: every engine and provider of this run is Tierwise's engine simulator",
        "provenance": PROVENANCE,
        "facts": plain(outcome.facts),
        "timings_seconds": plain(outcome.timings),
        "arms": {arm.name: _arm(arm) for arm in arms},
        "simulated": plain(outcome.simulated),
        "checks": plain(outcome.checks),
    }
    if len(arms) > 1:
        document["saving_factor"] = plain(saving(arms[0].bill, arms[1].bill))
    return document


def _arm(arm: ArmOutcome) -> dict[str, Any]:
    document: dict[str, Any] = plain(arm)
    document["bill"] |= {
        "cost": plain(arm.bill.cost),
        "cost_per_hour": plain(arm.bill.cost_per_hour),
        "replica_hours": plain(arm.bill.replica_hours),
        "complete": arm.bill.complete,
        "cost_per_million_tokens": plain(per_million(arm)),
    }
    return document


def write(
    folder: Path, outcome: Outcome, points: Sequence[Point], served: Sequence[Served], lives: Iterable[PodLife]
) -> tuple[Path, ...]:
    """Write all files; the folder is made if it is not there.

    Returns:
        Their paths.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(summary(outcome), indent=2, ensure_ascii=False) + "\n"
    (folder / "summary.json").write_text(text, encoding="utf-8")
    _table(
        folder / "timeline.csv",
        (
            "second",
            "arm",
            "tier",
            "replicas",
            "ready",
            "weights_status",
            "share_measured",
            "requests_per_second",
            "ttft_p95_ms",
            "cost_per_hour",
        ),
        (
            (
                point.second,
                point.arm,
                point.tier,
                _cell(point.replicas),
                _cell(point.ready),
                ";".join(f"{name}={weight:g}" for name, weight in sorted(point.weights.items())),
                _cell(point.share, 4),
                _cell(point.requests_per_second, 3),
                _cell(None if point.ttft_p95_seconds is None else 1000 * point.ttft_p95_seconds, 1),
                _cell(point.cost_per_hour, 4),
            )
            for point in points
        ),
    )
    names = tuple(entry.name for entry in dataclasses.fields(Served))
    _table(
        folder / "requests.csv",
        names,
        (tuple(_cell(getattr(record, name), 6) for name in names) for record in served),
    )
    _table(
        folder / "pods.csv",
        ("namespace", "tier", "name", "start_seconds", "ready_seconds", "end_seconds"),
        (
            (
                life.key.namespace,
                life.key.tier,
                life.name,
                _cell(life.start_seconds, 3),
                _cell(life.ready_seconds, 3),
                _cell(life.end_seconds, 3),
            )
            for life in sorted(lives, key=lambda life: (life.key.namespace, life.key.tier, life.start_seconds))
        ),
    )
    return tuple(folder / name for name in ("summary.json", "timeline.csv", "requests.csv", "pods.csv"))


def _cell(value: object, digits: int = 6) -> str:
    """A cell; unknown is empty, never zero."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.{digits}f}".rstrip("0").rstrip(".") if digits else f"{value:.0f}"
    return str(value)


def _table(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
