"""Sends requests as planned, inside the cluster's network, and writes down what the client saw of each.

Standard input: one JSON object per request: `at` (seconds from the start), `url`, `id`, `headers`, `body`, and `leave`:
after how many events of a stream the client goes away (null: it stays). Standard output: one JSON line per request,
when it is over.
"""

import asyncio
import json
import sys
import time
from typing import Any

import aiohttp


async def one(session: aiohttp.ClientSession, planned: dict[str, Any]) -> None:
    record: dict[str, Any] = (
        {key: planned[key] for key in ("id", "url")}
        | {"model": planned["body"]["model"]}
        | {"start": time.time(), "left": False}
    )
    try:
        async with session.post(
            f"{planned['url']}/v1/chat/completions", json=planned["body"], headers=planned["headers"]
        ) as answer:
            record |= {"status": answer.status, "tier": answer.headers.get("x-tierwise-tier")}
            record["retry_after"] = answer.headers.get("retry-after")
            text = await read(answer, planned, record)
            if answer.status != 200:
                record["error"] = text[:2000]
            elif not record["left"]:
                record["usage"] = reported(text, stream=bool(planned["body"].get("stream")))
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        record["failure"] = f"{type(error).__name__}: {error}"
    record["end"] = time.time()
    sys.stdout.write(json.dumps(record) + "\n")
    sys.stdout.flush()


async def read(answer: aiohttp.ClientResponse, planned: dict[str, Any], record: dict[str, Any]) -> str:
    if planned["leave"] is None or answer.status != 200:
        return await answer.text()
    events = 0
    async for piece in answer.content.iter_any():
        events += piece.count(b"data: ")
        if events >= planned["leave"]:
            record["left"] = True
            answer.close()
            return ""
    return ""


def reported(text: str, *, stream: bool) -> dict[str, int] | None:
    """What the answer says of its tokens."""
    if not stream:
        return json.loads(text).get("usage")
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    return next((event["usage"] for event in reversed(events) if event.get("usage")), None)


async def main() -> None:
    plan = [json.loads(line) for line in sys.stdin]
    timeout = aiohttp.ClientTimeout(total=60, connect=10)
    # A connection each: gateways come and go.
    connector = aiohttp.TCPConnector(limit=400, force_close=True)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
        began = time.monotonic()
        tasks = []
        for planned in sorted(plan, key=lambda each: each["at"]):
            await asyncio.sleep(max(0.0, began + planned["at"] - time.monotonic()))
            tasks.append(asyncio.create_task(one(session, planned)))
        if tasks:
            await asyncio.wait(tasks, timeout=90)


asyncio.run(main())
