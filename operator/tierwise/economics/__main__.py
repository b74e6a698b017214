"""`python -m tierwise.economics`: the economics benchmark (docs/economics.md)."""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import click

from tierwise.economics import bench, scenarios, suite, table, variants
from tierwise.economics.suite import CAPPED, PLAIN, VARIANTS, Source, Task
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
@click.option(
    "--runs",
    default="",
    help="What to run, by commas: bound, baselines, planner, day, noise, misfit-0.7, misfit-1.4, step, ceilings, "
    "faults, or the name of one of these. Default: all.",
)
@click.option("--faults/--no-faults", default=True, show_default=True, help="Run the faults.")
@click.option("--misfit/--no-misfit", default=True, show_default=True, help="Run misfitted models and noise.")
@click.option("--ceilings/--no-ceilings", default=True, show_default=True, help="Run under ceilings.")
@click.option("--noise", default=0.0, show_default=True, help="Relative error of every signal, in all runs.")
@click.option("--no-autoscaler", is_flag=True, help="Replicas follow the plan's minimum alone.")
@click.option("--processes", default=2, show_default=True, help="Runs at the same time.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def main(
    path: Path | None,
    data: Path | None,
    only: str,
    hours: str,
    runs: str,
    noise: float,
    processes: int,
    *,
    faults: bool,
    misfit: bool,
    ceilings: bool,
    no_autoscaler: bool,
    as_json: bool,
) -> None:
    """Run the economics benchmark and print its table. All figures are simulated."""
    began = time.perf_counter()
    where = data or (path.parent if path else shared_data())
    file = path or where / "scenarios.json"
    try:
        names = scenarios.names(file, tuple(name for name in only.split(",") if name))
        kinds = wanted(runs, faults=faults, misfit=misfit, ceilings=ceilings)
        source = Source(file, where, part(hours), bench.Options(noise=noise, autoscale=not no_autoscaler))
        known = bench.references(where / "reference_results.json") if source.hours is None else {}
        # The longest first: two processes end at about the same time.
        tasks = [Task(name, kind) for kind in kinds for name in names]
        results: dict[str, dict[str, Any]] = {name: {} for name in names}
        left = {name: len(kinds) for name in names}
        for result in suite.run_all(source, tasks, processes):
            name = result["scenario"]
            results[name][result["kind"]] = result
            left[name] -= 1
            if left[name] == 0:
                results[name] = {kind: results[name][kind] for kind in kinds}
                if not as_json:
                    click.echo("\n".join(table.lines(name, results[name], known.get(name, {}))) + "\n")
    except TierwiseError as error:
        raise click.ClickException(str(error)) from error
    failed = table.summary(results, known)
    if as_json:
        click.echo(json.dumps(results, indent=1))
    else:
        click.echo(f"All figures are simulated (docs/economics.md). {time.perf_counter() - began:.0f} s.")
    for text in failed:
        click.echo(f"does not agree with the reference: {text}", err=True)
    sys.exit(1 if failed else 0)


def wanted(runs: str, *, faults: bool, misfit: bool, ceilings: bool) -> list[str]:
    """Kinds of runs, in order.

    Raises:
        click.BadParameter: there is no such run.
    """
    plain, more = list(PLAIN), [kind for kind in VARIANTS if misfit or kind in {"day", "step"}]
    every = [*plain, *VARIANTS, *CAPPED, *variants.FAULTS]
    if not runs:
        return [*plain, *more, *(CAPPED if ceilings else ()), *(variants.FAULTS if faults else ())]
    groups = {"faults": tuple(variants.FAULTS), "ceilings": CAPPED}
    chosen = [kind for name in runs.split(",") for kind in groups.get(name, (name,))]
    unknown = [kind for kind in chosen if kind not in every]
    if unknown:
        raise click.BadParameter(f"no run {', '.join(unknown)}; there are {', '.join(every)}, ceilings and faults")
    return [kind for kind in every if kind in chosen]


def part(hours: str) -> tuple[float, float] | None:
    """`24` or `24-48` as first and last hour; None for the whole.

    Raises:
        click.BadParameter: it is neither.
    """
    if not hours:
        return None
    first, _, last = hours.rpartition("-")
    try:
        return float(first or 0), float(last)
    except ValueError as error:
        raise click.BadParameter(f"{hours!r}: write hours such as 24 or 24-48") from error


if __name__ == "__main__":
    main()
