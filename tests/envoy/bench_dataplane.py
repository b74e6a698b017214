"""What each part of the gateway's chain costs: plain Envoy, then one part more in each variant, up to all of it.

All variants are the configuration that the operator renders, sent by its own configuration server, less the parts that
are not there yet; the list comes from that configuration, so that a filter which is added to the product is measured
without a change here. All Envoys (one worker each) run side by side on loopback and are loaded in turn, a tenth of a
second each, several passes over all of them in each round: what else the machine does hits all alike. Each round starts
new Envoys: where things lie in memory differs from process to process, by as much as some filters cost.

The figure to trust on a machine that others use is Envoy's processor time per request. Requests per second and times
also tell of the load generator and of whoever else wanted a core.

    python tests/envoy/bench_dataplane.py [--rounds 5] [--passes 3] [--seconds 0.1] [--limit 285] [--json FILE]
"""

import argparse
import asyncio
import contextlib
import dataclasses
import json
import logging
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog
from bench_variants import AUTHENTICATION, NAMESPACE, OPTIONS, PLAIN, WHOLE, Variant, variants, worlds
from envoy_lab import Lab
from rich.console import Console

from tierwise.core.world import World
from tierwise.devcluster import build, images
from tierwise.render.envoy import gateway

LOAD = Path(__file__).parents[2] / "e2e" / "load"
WARM_SECONDS = 0.15
DIRECT = "no Envoy"


@dataclass(frozen=True, slots=True)
class Load:
    """One kind of load: connections at the same time, bytes of a body, whether streams are asked for."""

    connections: int
    size: int
    stream: bool

    @property
    def kind(self) -> str:
        """What is asked for."""
        return "stream of 20 events" if self.stream else f"{self.size // 1024} KiB body"


LOADS = tuple(
    Load(connections, size, stream)
    for size, stream in ((1024, False), (32 * 1024, False), (1024, True))
    for connections in (1, 16)
)


@dataclass(frozen=True, slots=True)
class Sample:
    """One run of the load generator against one variant; times in microseconds."""

    round: int
    turn: int
    variant: str
    load: Load
    requests: int
    rate: float
    p50: float
    p99: float
    cpu: float
    """Envoy's processor time per request, 0 without Envoy."""


def cpu_seconds(pid: int) -> float:
    """Processor time that all threads of a process have had, by the kernel's nanosecond clock of that process."""
    return time.clock_gettime((~pid << 3) | 2)  # what clock_getcpuclockid(3) returns on Linux


def resident_mib(pid: int) -> float:
    """Memory of a process that is in RAM."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise AssertionError("no VmRSS")


class BenchLab(Lab):
    """A configuration server and an Envoy for one variant."""

    def __init__(self, folder: Path, variant: Variant) -> None:
        super().__init__(folder, authentication=AUTHENTICATION)
        self.variant = variant
        self.world = variant.world

    async def publish(self, new: World, change: object = None) -> None:
        assert change is None
        await super().publish(new, self.variant.change)

    @property
    def pid(self) -> int:
        """Of the Envoy."""
        return self.envoys[0].pid


class Driver:
    """Runs the load generator."""

    def __init__(self, program: Path) -> None:
        self._program = str(program)

    @contextlib.asynccontextmanager
    async def stub(self) -> AsyncIterator[int]:
        """The upstream; its port."""
        process = await asyncio.create_subprocess_exec(self._program, "stub", stdout=asyncio.subprocess.PIPE)
        try:
            yield int(await process.stdout.readline())
        finally:
            process.terminate()
            await process.wait()

    async def drive(self, port: int, load: Load, seconds: float, proof: str = "none") -> dict[str, Any]:
        """Load one address; nothing may fail."""
        process = await asyncio.create_subprocess_exec(
            *(self._program, "drive", "-address", f"127.0.0.1:{port}", "-model", f"{NAMESPACE}/chat"),
            *("-header", f"Authorization: Bearer {proof}"),
            *("-connections", str(load.connections), "-bytes", str(load.size), "-duration", f"{seconds}s"),
            *(["-stream"] if load.stream else []),
            stdout=asyncio.subprocess.PIPE,
        )
        out, _ = await process.communicate()
        found = json.loads(out)
        assert not found["failed"], found
        assert found["requests"], found
        return found


@dataclass(frozen=True)
class Bounds:
    """How much is measured: rounds of new Envoys, passes over all of them in each, seconds of one run and of all."""

    rounds: int = 5
    passes: int = 3
    seconds: float = 0.1
    limit: float = 285.0


async def measure(
    driver: Driver, port: int, made: Sequence[Variant], bounds: Bounds
) -> tuple[list[Sample], dict[str, list[float]]]:
    """Samples, and memory by variant in MiB."""
    samples: list[Sample] = []
    memory: dict[str, list[float]] = {variant.name: [] for variant in made}
    began = time.monotonic()
    longest = 0.0
    for number in range(bounds.rounds):
        at = time.monotonic()
        if number and at + longest > began + bounds.limit:
            print(f"{number} rounds: no time for more", file=sys.stderr)
            break
        samples += await one_round(driver, port, made, number, bounds, memory)
        longest = max(longest, time.monotonic() - at)
    return samples, memory


async def one_round(
    driver: Driver, port: int, made: Sequence[Variant], number: int, bounds: Bounds, memory: dict[str, list[float]]
) -> list[Sample]:
    """New Envoys, all loads on all of them in turn."""
    samples = []
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tierwise-bench-")))
        labs: list[BenchLab | None] = [None]
        for each, variant in enumerate(made):
            lab = BenchLab(folder / str(each), variant)
            stack.push_async_callback(stop, lab)
            await lab.start()
            labs.append(lab)
            await driver.drive(lab.options.port, Load(4, 1024, False), WARM_SECONDS, variant.proof)
            await driver.drive(lab.options.port, Load(4, 1024, True), WARM_SECONDS, variant.proof)
        for load in LOADS:
            # Forth and back, so that none is always before or after the same other one.
            for turn in range(bounds.passes):
                order = labs if turn % 2 == 0 else labs[::-1]
                samples += [await one_run(driver, port, lab, load, (number, turn), bounds.seconds) for lab in order]
        for lab in labs[1:]:
            memory[lab.variant.name].append(resident_mib(lab.pid))
    return samples


async def one_run(
    driver: Driver, stub: int, lab: BenchLab | None, load: Load, when: tuple[int, int], seconds: float
) -> Sample:
    """Load one Envoy, or the upstream itself."""
    before = 0.0 if lab is None else cpu_seconds(lab.pid)
    # A stream takes 20 ms by itself.
    seconds *= 2 if load.stream else 1
    if lab is None:
        found = await driver.drive(stub, load, seconds)
    else:
        found = await driver.drive(lab.options.port, load, seconds, lab.variant.proof)
    used = 0.0 if lab is None else cpu_seconds(lab.pid) - before
    return Sample(
        *when,
        variant=DIRECT if lab is None else lab.variant.name,
        load=load,
        requests=found["requests"],
        rate=found["requests"] / found["seconds"],
        p50=found["p50_us"],
        p99=found["p99_us"],
        cpu=used / found["requests"] * 1e6,
    )


async def stop(lab: BenchLab) -> None:
    """End it, also when it did not come up."""
    for process in lab.envoys:
        await lab.end(process)
    await lab.xds.stop(0)
    if hasattr(lab, "http"):
        await lab.http.close()


@dataclass(frozen=True, slots=True)
class Range:
    """Median, least and greatest of the rounds."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Iterable[float]) -> "Range":
        found = sorted(values)
        return cls(statistics.median(found), found[0], found[-1])


def summary(samples: Sequence[Sample], memory: Mapping[str, Sequence[float]]) -> list[dict[str, Any]]:
    """One entry per kind of load and variant.

    Differences and ratios are taken within one pass; a round's value is the median of its passes.
    """
    by = {(s.round, s.turn, s.variant, s.load): s for s in samples}
    rounds, turns = ({getattr(s, key) for s in samples} for key in ("round", "turn"))
    names = [DIRECT, *memory]
    whole = next((name for name in names if name.startswith(WHOLE)), names[-1])

    def over(name: str, load: Load, value: Callable[[Sample, Sample], float], base: str) -> Range:
        return Range.of(
            statistics.median(value(by[r, t, name, load], by[r, t, base, load]) for t in turns) for r in rounds
        )

    rows = []
    for kind in dict.fromkeys(load.kind for load in LOADS):
        one, many = (load for load in LOADS if load.kind == kind)
        for place, name in enumerate(names):
            # What follows the whole chain are other forms of it.
            before = name if place <= 1 else names[min(place - 1, names.index(whole))]
            row: dict[str, Any] = {"load": kind, "variant": name}
            if name != DIRECT:
                row["cpu_us"] = over(name, many, lambda s, _: s.cpu, name)
                row["cpu_us_one_connection"] = over(name, one, lambda s, _: s.cpu, name)
                row["cpu_us_added"] = over(name, many, lambda s, b: s.cpu - b.cpu, before)
                row["cpu_ratio"] = over(name, many, lambda s, b: s.cpu / b.cpu, PLAIN)
                row["memory_mib"] = Range.of(memory[name])
            for load in (one, many):
                which = f"c{load.connections}"
                row[f"rate_{which}"] = over(name, load, lambda s, _: s.rate, name)
                row[f"rate_ratio_{which}"] = over(name, load, lambda s, b: s.rate / b.rate, PLAIN)
                row[f"p50_added_us_{which}"] = over(name, load, lambda s, b: s.p50 - b.p50, PLAIN)
                row[f"p99_added_us_{which}"] = over(name, load, lambda s, b: s.p99 - b.p99, PLAIN)
            rows.append(row)
    return rows


_TIMES = (
    ("requests/s / plain, 1 connection", "rate_ratio_c1", "{:.2f}"),
    ("16", "rate_ratio_c16", "{:.2f}"),
    ("p50 added us, 1 connection", "p50_added_us_c1", "{:+.0f}"),
    ("16", "p50_added_us_c16", "{:+.0f}"),
    ("p99 added us, 1 connection", "p99_added_us_c1", "{:+.0f}"),
    ("16", "p99_added_us_c16", "{:+.0f}"),
)


def cost_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: processor time of all kinds of load, and memory."""
    by = {(row["load"], row["variant"]): row for row in rows}
    kinds = list(dict.fromkeys(row["load"] for row in rows))
    heads = [f"{kind}: CPU us/request | added | / plain" for kind in kinds]
    lines = [f"| variant | {' | '.join(heads)} | RSS MiB |", "|---" * (3 * len(kinds) + 2) + "|"]
    for name in dict.fromkeys(row["variant"] for row in rows if row["variant"] != DIRECT):
        cells = []
        for row in (by[kind, name] for kind in kinds):
            cells += [_cell(row["cpu_us"], "{:.0f}"), f"{row['cpu_us_added'].median:+.0f}"]
            cells.append(f"{row['cpu_ratio'].median:.2f}")
        cells.append(f"{by[kinds[0], name]['memory_mib'].median:.0f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def time_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown, a table for each kind of load: requests per second and added times."""
    lines = []
    for kind in dict.fromkeys(row["load"] for row in rows):
        lines += [f"| {kind} | {' | '.join(title for title, _, _ in _TIMES)} |", "|---" * (len(_TIMES) + 1) + "|"]
        for row in (row for row in rows if row["load"] == kind):
            lines.append(f"| {row['variant']} | {' | '.join(_cell(row[key], form) for _, key, form in _TIMES)} |")
        lines.append("")
    return "\n".join(lines)


def _cell(value: Range, form: str) -> str:
    """In brackets the least and the greatest of the rounds."""
    least, most = form.format(value.least), form.format(value.most)
    return form.format(value.median) + (f" ({least} to {most})" if least != most else "")


async def run(bounds: Bounds) -> dict[str, Any]:
    """The whole measurement."""
    # What the configuration servers log is no part of it.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    os.environ["PATH"] = f"{images.envoy_folder()}{os.pathsep}{os.environ['PATH']}"
    driver = Driver(build.small_program(LOAD, Console(stderr=True)))
    async with driver.stub() as port:
        own, outside = worlds(port)
        made = variants(gateway.render(own, OPTIONS), own, outside)
        began = time.monotonic()
        samples, memory = await measure(driver, port, made, bounds)
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "envoy": await version(),
        "rounds": len({s.round for s in samples}),
        "passes": bounds.passes,
        "seconds_each": bounds.seconds,
        "seconds": round(time.monotonic() - began),
        "load_average": os.getloadavg(),
        "rows": summary(samples, memory),
        "samples": samples,
    }


async def version() -> str:
    """What Envoy says it is."""
    process = await asyncio.create_subprocess_exec("envoy", "--version", stdout=asyncio.subprocess.PIPE)
    out, _ = await process.communicate()
    return out.decode().partition("version:")[2].split("/")[1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=Bounds.rounds, help="each with new Envoys")
    parser.add_argument("--passes", type=int, default=Bounds.passes, help="over all variants in a round")
    parser.add_argument("--seconds", type=float, default=Bounds.seconds, help="of one run in a pass")
    parser.add_argument("--limit", type=float, default=Bounds.limit, help="seconds that no round may end after")
    parser.add_argument("--json", type=Path, help="file for all figures")
    arguments = parser.parse_args()
    bounds = Bounds(arguments.rounds, arguments.passes, arguments.seconds, arguments.limit)
    found = asyncio.run(run(bounds))
    rows = found["rows"]
    about = f"{found['rounds']} rounds, {found['seconds']} s, {found['cores']} cores, Envoy {found['envoy']}"
    print(f"{found['date']}: {about}; medians (least to greatest)")
    print(f"\n{cost_table(rows)}\n\n{time_table(rows)}")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1, default=dataclasses.asdict) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
