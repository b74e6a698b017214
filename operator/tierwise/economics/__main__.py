"""`python -m tierwise.economics`: the economics benchmark (docs/economics.md)."""

import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from tierwise.economics import bench, scenarios
from tierwise.errors import TierwiseError

REPOSITORY = Path(__file__).parents[3]


def shared_data() -> Path:
    """Where the reference data is: `$TIERWISE_SHARED/data`, else `../shared/data` beside the repository."""
    return Path(os.environ.get("TIERWISE_SHARED", REPOSITORY.parent / "shared")) / "data"


@click.command()
@click.option("--scenarios", "path", type=click.Path(path_type=Path), help="Scenario file (DATA/scenarios.json).")
@click.option("--data", type=click.Path(path_type=Path), help="Directory of traces ($TIERWISE_SHARED/data).")
@click.option("--only", default="", help="Names of scenarios, by commas; default: all.")
@click.option("--hours", default="", help="Part of the traces: LAST or FIRST-LAST, in hours.")
@click.option("--noise", default=0.0, show_default=True, help="Relative error of every signal.")
@click.option("--no-autoscaler", is_flag=True, help="Replicas follow the plan's minimum alone.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def main(
    path: Path | None, data: Path | None, only: str, hours: str, noise: float, *, no_autoscaler: bool, as_json: bool
) -> None:
    """Run the economics benchmark and print its table."""
    where = data or (path.parent if path else shared_data())
    names = tuple(name for name in only.split(",") if name)
    try:
        found = scenarios.load(path or where / "scenarios.json", where, names, part(hours))
    except TierwiseError as error:
        raise click.ClickException(str(error)) from error
    known = bench.references(where / "reference_results.json")
    rows: list[dict[str, Any]] = []
    for scenario in found:
        began = time.perf_counter()
        score, _ = bench.planner_run(scenario, bench.Options(noise=noise, autoscale=not no_autoscaler))
        row = {"scenario": scenario.name, **asdict(score), "seconds": time.perf_counter() - began}
        reference = known.get(scenario.name, {})
        replay = reference.get("online", {}).get("clairvoyant_replay_burst_safe", {}).get("usd_per_hour")
        bound = reference.get("lp_lower_1min_usd_h")
        row["cost_over_replay"] = score.usd_per_hour / replay if replay else None
        row["cost_over_bound"] = score.usd_per_hour / bound if bound else None
        rows.append(row)
        if not as_json:
            click.echo(line(row))
    if as_json:
        click.echo(json.dumps(rows, indent=1))


def part(hours: str) -> tuple[float, float] | None:
    """`24` or `24-48` as first and last hour; None for the whole."""
    if not hours:
        return None
    first, _, last = hours.rpartition("-")
    try:
        return float(first or 0), float(last)
    except ValueError as error:
        raise click.BadParameter(f"{hours!r}: write hours such as 24 or 24-48") from error


def line(row: dict[str, Any]) -> str:
    """One scenario in one line."""
    ratios = " ".join(
        f"{name}={row[key]:.3f}"
        for name, key in (("/replay", "cost_over_replay"), ("/bound", "cost_over_bound"))
        if row[key] is not None
    )
    return (
        f"{row['scenario']:20} {row['usd_per_hour']:8.2f} $/h {ratios} attainment={row['attainment']:.2f}% "
        f"worst={row['worst']:.2f}% loss={row['loss']:.2f}% worst={row['worst_loss']:.2f}% "
        f"replicas={row['replica_changes']:.2f}/h weights={row['weight_changes']:.2f}/h "
        f"reversals={row['reversals']:.1f}/d ({row['seconds']:.1f} s)"
    )


if __name__ == "__main__":
    sys.exit(main())
