"""A steady, bounded load on several gateways at once, run inside the cluster's network; one JSON line per request.

Each gateway gets its own share, so that a failure can be told to belong to the proxy that it went through.
"""

import argparse
import asyncio
import json
import time
from pathlib import Path
from typing import TextIO

import aiohttp


async def one(session: aiohttp.ClientSession, url: str, model: str, number: int, out: TextIO) -> None:
    stream = number % 4 < 2  # both forms on either gateway
    record: dict[str, object] = {"gateway": url, "number": number, "stream": stream, "start": time.time()}
    body = {
        "model": model,
        "messages": [{"role": "user", "content": "a few words of a question"}],
        "max_tokens": 24,
        "ignore_eos": True,
        "stream": stream,
    }
    try:
        async with session.post(f"{url}/v1/chat/completions", json=body) as answer:
            record["status"] = answer.status
            record["tier"] = answer.headers.get("x-tierwise-tier")
            record["attempts"] = answer.headers.get("x-tierwise-attempts")
            text = await answer.text()
            complete = "data: [DONE]" in text if stream else '"usage"' in text
            record["ok"] = answer.status == 200 and complete
            if not record["ok"]:
                record["error"] = text[-300:]
    except (aiohttp.ClientError, TimeoutError) as error:
        record["ok"] = False
        record["error"] = f"{type(error).__name__}: {error}"
    record["end"] = time.time()
    out.write(json.dumps(record) + "\n")
    out.flush()


async def load(urls: list[str], model: str, rate: float, seconds: float, path: Path) -> None:
    pending: set[asyncio.Task[None]] = set()
    timeout = aiohttp.ClientTimeout(total=30, connect=5)
    # A new connection each time: a request must not be told apart by what an older one left behind.
    connector = aiohttp.TCPConnector(limit=200, force_close=True)
    with path.open("w") as out:
        async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
            began = time.monotonic()
            for number in range(int(rate * seconds)):
                await asyncio.sleep(max(0.0, began + number / rate - time.monotonic()))
                url = urls[number % len(urls)]
                task = asyncio.create_task(one(session, url, model, number, out))
                pending.add(task)
                task.add_done_callback(pending.discard)
            if pending:
                await asyncio.wait(pending, timeout=60)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", action="append", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--rate", type=float, default=20)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    asyncio.run(load(arguments.url, arguments.model, arguments.rate, arguments.seconds, arguments.output))
