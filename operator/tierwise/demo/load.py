"""The trace of a run, and the client processes that replay it."""

import asyncio
import contextlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tierwise.demo.errors import DemoError
from tierwise.demo.terms import Terms
from tierwise.sim import loadgen, traces
from tierwise.sim.traces import TraceRequest

BASE_RPS = 2.0
PEAK_RPS = 10.0
CURVE = ((0.0, 0.0), (0.2, 0.0), (0.47, 1.0), (0.55, 1.0), (0.8, 0.05), (1.0, 0.05))
"""(Part of the run, level between base and peak): five minutes that stand for a day. Peak over mean is about 2, as in
hourly traffic of conversation services (BurstGPT, 2024; Azure traces of 2023 and 2024)."""
COMPLEX_SHARE = 0.12
"""One prompt in ten of Azure's conversation trace (November 2023; Splitwise, ISCA 2024) has 1,500 tokens or more."""

BYTES_PER_TOKEN = 4
"""How the gateway estimates a prompt's tokens from a request's size."""

MAX_REQUESTS = 50_000
END_SECONDS = 10.0


def built_in(seed: int, seconds: float) -> list[TraceRequest]:
    """The built-in trace: calm, a rise, a peak, a fall, calm again."""
    kinds = tuple(
        replace(kind, share=COMPLEX_SHARE if kind.name == traces.COMPLEX else 1 - COMPLEX_SHARE)
        for kind in traces.DEFAULT_KINDS
    )
    spec = traces.TraceSpec(
        seed=seed, duration_seconds=seconds, base_rps=BASE_RPS, peak_rps=PEAK_RPS, curve=CURVE, kinds=kinds
    )
    return traces.generate(spec)


def prepared(path: Path | None, seed: int, seconds: float, terms: Terms) -> list[TraceRequest]:
    """The requests to send, each with the class that its size gives it at the gateway.

    Raises:
        DemoError: when there is none in the window, one matches no class, or they are too many.
        TraceError: when the file can not be read.
    """
    trace = built_in(seed, seconds) if path is None else traces.clip(traces.read(path), 0.0, seconds)
    if not trace:
        raise DemoError(f"{path or 'the built-in trace'} has no request in its first {seconds:g} s")
    if len(trace) > MAX_REQUESTS:
        raise DemoError(f"{path} has {len(trace)} requests in {seconds:g} s: more than {MAX_REQUESTS}; thin it")
    options = loadgen.LoadOptions(url="", model=f"demo/{terms.model}")
    return [replace(request, kind=_class_name(request, options, terms)) for request in trace]


def _class_name(request: TraceRequest, options: loadgen.LoadOptions, terms: Terms) -> str:
    size = len(loadgen.body_of(request, options))
    found = terms.class_of(size // BYTES_PER_TOKEN)
    if found is None:
        raise DemoError(f"a prompt of {request.prompt_tokens} tokens matches no class of the examples' policy")
    return found.name


@dataclass(frozen=True, slots=True)
class Client:
    """One client process and its records."""

    arm: str
    process: asyncio.subprocess.Process
    records: Path
    log: Path

    async def end(self) -> None:
        """End it, if it runs."""
        if self.process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()
        try:
            async with asyncio.timeout(END_SECONDS):
                await self.process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()
            await self.process.wait()


async def start(
    arm: str, trace: Path, folder: Path, *, url: str, model: str, start_unix: float, timeout_seconds: float
) -> Client:
    """Start one arm's client.

    Args:
        arm: its name.
        trace: the file that it replays.
        folder: for its records and log.
        url: of the gateway, with `/v1`.
        model: asked for.
        start_unix: Unix time of the trace's second 0.
        timeout_seconds: for one request.
    """
    records, log = folder / f"client-{arm}.jsonl", folder / f"client-{arm}.log"
    records.unlink(missing_ok=True)
    argv: Sequence[str] = (
        sys.executable,
        "-m",
        "tierwise.demo.client",
        f"--trace={trace}",
        f"--url={url}",
        f"--model={model}",
        f"--records={records}",
        f"--start={start_unix!r}",
        f"--max-requests={MAX_REQUESTS}",
        f"--timeout-seconds={timeout_seconds}",
    )
    with log.open("wb") as stream:
        process = await asyncio.create_subprocess_exec(
            *argv, stdin=asyncio.subprocess.DEVNULL, stdout=stream, stderr=stream
        )
    return Client(arm, process, records, log)
