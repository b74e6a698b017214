"""The run itself: start watches and clients together, show what happens, stop when the last answer is in."""

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
from rich.console import Console
from rich.live import Live

from tierwise.demo import live, load, machine, objects, summary, timeline, watch
from tierwise.demo.bill import make as make_bill
from tierwise.demo.errors import StepFailedError
from tierwise.demo.pods import TIER_LABEL
from tierwise.demo.recorder import Recorder
from tierwise.demo.stage import Stage
from tierwise.demo.timeline import Arm
from tierwise.devcluster.cluster import find_program
from tierwise.sim import traces
from tierwise.sim.traces import TraceRequest

REFRESH_SECONDS = 0.5
PLAIN_SECONDS = 10.0
LEAD_SECONDS = 2.5
"""Between starting the clients' processes and the trace's second 0: they read the trace meanwhile."""
GRACE_SECONDS = 60.0
"""After the trace's end, for the last answers."""
REQUEST_TIMEOUT_SECONDS = 60.0

AUTO_ARM = Arm(objects.AUTO, objects.AUTO_NAMESPACE)
LARGE_ARM = Arm(objects.ALL_LARGE, objects.ALL_LARGE_NAMESPACE)
TITLES = {
    objects.AUTO: "Auto: one loop moves weights and replicas (namespace demo)",
    objects.ALL_LARGE: "All-large: the same requests, all to tier large (namespace demo-all-large)",
}


@dataclass(frozen=True, slots=True)
class Seen:
    """What a run yields.

    Attributes:
        recorder: everything observed. seconds: from the first request to the last answer.
        cpu: share of the machine's processors that was busy meanwhile; None when unknown.
        client_cpu: arm -> share of one processor that its client used.
        busiest: the picture at the moment of most answers per second.
        began: when the trace's second 0 was, aware UTC.
    """

    recorder: Recorder
    seconds: float
    cpu: float | None
    client_cpu: dict[str, float]
    busiest: live.Frame
    began: datetime


async def first_answer(stage: Stage, arms: Sequence[Arm], seconds: float = 30.0) -> None:
    """Wait until each arm's model answers through the gateway.

    Raises:
        StepFailedError: with the gateway's last word, when one does not in time.
    """
    deadline = time.monotonic() + seconds
    timeout = aiohttp.ClientTimeout(total=10)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        for arm in arms:
            body = {
                "model": f"{arm.namespace}/{stage.terms.model}",
                "messages": [{"role": "user", "content": "Which tier are you?"}],
                "max_tokens": 2,
            }
            said = "nothing"
            while time.monotonic() < deadline:
                try:
                    async with session.post(f"http://{stage.gateway}/v1/chat/completions", json=body) as response:
                        said = f"{response.status} {(await response.text())[:300]}"
                        if response.status == 200:
                            break
                except (TimeoutError, aiohttp.ClientError) as error:
                    said = f"{type(error).__name__}: {error}"
                await asyncio.sleep(0.3)
            else:
                raise StepFailedError(f"model {body['model']} does not answer through the gateway: {said}")


async def perform(
    stage: Stage, arms: Sequence[Arm], trace: Sequence[TraceRequest], folder: Path, console: Console, *, show: bool
) -> Seen:
    """Replay the trace to all arms at once, watching.

    Args:
        stage: what was set up.
        arms: to send to.
        trace: to send.
        folder: for the clients' files.
        console: where the picture goes.
        show: a live picture; else a line now and then.
    """
    path = folder / "trace.csv"
    traces.write(path, trace)
    start = time.time() + LEAD_SECONDS
    recorder = Recorder(arms, stage.terms)
    cpu = machine.now()
    async with _watches(stage, recorder, lambda: time.time() - start):
        clients: list[load.Client] = []
        try:
            for arm in arms:
                client = await load.start(
                    arm.name,
                    path,
                    folder,
                    url=f"http://{stage.gateway}/v1",
                    model=f"{arm.namespace}/{stage.terms.model}",
                    start_unix=start,
                    timeout_seconds=REQUEST_TIMEOUT_SECONDS,
                )
                clients += [client]  # at once: it must end even if the next one can not start
            frame = await _follow(recorder, clients, trace, start, console, show=show)
        finally:
            for client in clients:
                await client.end()
    for client in clients:
        if client.process.returncode != 0 or client.arm not in recorder.ends:
            tail = client.log.read_text(errors="replace")[-1000:]
            raise StepFailedError(f"the client of {client.arm} ended with {client.process.returncode}: {tail}")
    after = machine.now()
    return Seen(
        recorder=recorder,
        seconds=max(trace[-1].t_seconds, summary.seconds_of(recorder.served)),
        cpu=after.share_since(cpu) if after is not None and cpu is not None else None,
        client_cpu={
            arm: float(end["cpu_seconds"]) / float(end["wall_seconds"]) for arm, end in sorted(recorder.ends.items())
        },
        busiest=frame,
        began=datetime.fromtimestamp(start, UTC),
    )


@contextlib.asynccontextmanager
async def _watches(stage: Stage, recorder: Recorder, now: Callable[[], float]) -> AsyncIterator[None]:
    kubectl = [find_program("kubectl"), f"--kubeconfig={stage.cluster.kubeconfig}"]
    flags = ["--all-namespaces", "--watch", "--output-watch-events", "--output=json"]

    def pods_again() -> None:
        """Nothing: the new watch begins with every Pod that is there; one that went meanwhile is found at the end."""

    watches = [
        asyncio.create_task(
            watch.follow(
                [*kubectl, "get", "pods", f"--selector={TIER_LABEL}", *flags],
                os.environ,
                lambda kind, document: recorder.pod(kind, document, now()),
                pods_again,
            )
        ),
        asyncio.create_task(
            watch.follow(
                [*kubectl, "get", "routingpolicies.tierwise.dev", *flags],
                os.environ,
                lambda kind, document: recorder.policy(kind, document, now()),
                pods_again,
            )
        ),
    ]
    try:
        yield
        listed = await asyncio.to_thread(stage.cluster.kubectl, "get", "pods", "-A", "-l", TIER_LABEL, "-o", "json")
        recorder.book.listed(_items(listed.stdout), now())
    finally:
        for task in watches:
            task.cancel()
        await asyncio.gather(*watches, return_exceptions=True)


def _items(text: str) -> list[dict[str, Any]]:
    return [item for document in watch.Documents().feed(text) for item in document.get("items") or ()]


async def _follow(
    recorder: Recorder,
    clients: Sequence[load.Client],
    trace: Sequence[TraceRequest],
    start: float,
    console: Console,
    *,
    show: bool,
) -> live.Frame:
    """Read the clients' files and show, until all clients have ended; the busiest moment's picture."""
    total = trace[-1].t_seconds
    deadline = start + total + GRACE_SECONDS
    frame = busiest = frame_of(recorder, trace, 0.0)
    picture = Live(live.picture(frame), console=console, auto_refresh=False, screen=False) if show else None
    said = 0.0
    with picture or contextlib.nullcontext():
        while True:
            ended = all(client.process.returncode is not None for client in clients)
            for client in clients:
                recorder.read_answers(client.arm, client.records)
            elapsed = time.time() - start
            frame = frame_of(recorder, trace, max(0.0, elapsed))
            busiest = max(busiest, frame, key=live.answers_per_second)
            if picture is not None:
                picture.update(live.picture(frame), refresh=True)
            elif elapsed - said >= PLAIN_SECONDS:
                said = elapsed
                console.print(live.line(frame), highlight=False, soft_wrap=True)
            if ended:
                return busiest
            if time.time() > deadline:
                raise StepFailedError(f"answers are still missing {GRACE_SECONDS:g} s after the trace's end")
            await asyncio.sleep(REFRESH_SECONDS)


def frame_of(recorder: Recorder, trace: Sequence[TraceRequest], elapsed: float) -> live.Frame:
    """The picture's content at a moment."""
    seen = recorder.observed
    arms = []
    bills = []
    for arm in recorder.arms:
        mine = [record for record in seen.served if record.arm == arm.name]
        met = [
            agreed.objective.met(record)
            for agreed in recorder.terms.classes
            for record in mine
            if record.class_name == agreed.name
        ]
        until = max(elapsed, 1.0)
        bill = make_bill(recorder.terms, arm.namespace, seen.lives, mine, since_seconds=0.0, until_seconds=until)
        bills.append(bill)
        arms.append(
            live.ArmFrame(
                name=arm.name,
                title=TITLES.get(arm.name, arm.name),
                points=timeline.points_at(elapsed, arm, recorder.terms, seen, when=timeline.ended_at),
                classes=[entry.name for entry in recorder.terms.classes],
                cost=float(bill.cost),
                attainment=sum(met) / len(met) if met else None,
            )
        )
    sent = sum(request.t_seconds <= elapsed for request in trace)
    answered = sum(record.ok for record in seen.served)
    last = recorder.moves[-1] if recorder.moves else None
    return live.Frame(
        elapsed_seconds=elapsed,
        total_seconds=trace[-1].t_seconds,
        sent=sent * len(recorder.arms),
        answered=answered,
        failed=len(seen.served) - answered,
        arms=arms,
        rates=rates(trace, elapsed),
        saving=summary.saving(bills[0], bills[1]) if len(bills) > 1 and answered else None,
        move=last.text if last is not None else "",
        move_age_seconds=elapsed - last.at_seconds if last is not None else None,
        currency=recorder.terms.currency,
    )


def rates(trace: Sequence[TraceRequest], elapsed: float, width_seconds: float = 5.0) -> list[float]:
    """Requests/s that the trace has sent, in steps of five seconds."""
    counts = [0] * (int(elapsed / width_seconds) + 1)
    for request in trace:
        if request.t_seconds <= elapsed:
            counts[int(request.t_seconds / width_seconds)] += 1
    spans = [min(width_seconds, elapsed - index * width_seconds) for index in range(len(counts))]
    return [count / span for count, span in zip(counts, spans, strict=True) if span >= 1.0]
