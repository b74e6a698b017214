"""The load client of one arm: a process of its own, so that the picture and the watches can not delay a request.

Run as `python -m tierwise.demo.client` by the demo. It reads a trace, waits for the moment that all arms start
at, replays it open-loop, and writes one JSON line per answer, and a last one with what it used itself.
"""

import asyncio
import dataclasses
import json
import resource
import time
from pathlib import Path
from typing import TextIO

import click

from tierwise.sim import loadgen, traces
from tierwise.sim.outcome import Record


async def _run(trace: list[traces.TraceRequest], options: loadgen.LoadOptions, start: float, stream: TextIO) -> None:
    def write(record: Record) -> None:
        stream.write(json.dumps(dataclasses.asdict(record), separators=(",", ":")) + "\n")

    await asyncio.sleep(max(0.0, start - time.time()))
    began = time.time()
    await loadgen.replay(trace, options, write)
    used = resource.getrusage(resource.RUSAGE_SELF)
    end = {
        "end": True,
        "began": began,
        "cpu_seconds": used.ru_utime + used.ru_stime,
        "wall_seconds": time.time() - began,
    }
    stream.write(json.dumps(end) + "\n")


@click.command()
@click.option("--trace", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=True)
@click.option("--url", required=True)
@click.option("--model", required=True)
@click.option("--records", type=click.Path(dir_okay=False, path_type=Path), required=True)
@click.option("--start", type=float, required=True, help="Unix time of the trace's second 0.")
@click.option("--max-in-flight", type=int, default=1000)
@click.option("--max-requests", type=int, default=50_000)
@click.option("--timeout-seconds", type=float, default=60.0)
def main(
    *,
    trace: Path,
    url: str,
    model: str,
    records: Path,
    start: float,
    max_in_flight: int,
    max_requests: int,
    timeout_seconds: float,
) -> None:
    """Replay a trace against one model of one gateway."""
    options = loadgen.LoadOptions(
        url=url,
        model=model,
        max_in_flight=max_in_flight,
        max_requests=max_requests,
        timeout_seconds=timeout_seconds,
    )
    with records.open("w", encoding="utf-8", buffering=1) as stream:
        asyncio.run(_run(traces.read(trace), options, start, stream))


if __name__ == "__main__":
    main()
