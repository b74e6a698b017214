"""A provider that bills: it writes down by itself what every attempt consumed and generated, whatever others see of it.

Run inside the cluster's network. The path tells the tier (`/NAMESPACE/TIER/v1/...`), the request's `user` field what
shall be done to it there. One JSON line per attempt, when it is over.
"""

import argparse
import asyncio
import json
import re
import time
from pathlib import Path
from typing import Any, TextIO

from aiohttp import web

TEMPLATE_TOKENS = 20  # that the provider's chat template adds to each prompt
MOST_EVENTS = 4000
TOKEN = " tok"


def words(text: str) -> int:
    """Tokens of a text: pieces of up to four characters, as common tokenizers make them of English."""
    return len(re.findall(r"\w{1,4}|[^\w\s]", text))


class Provider:
    def __init__(self, out: TextIO) -> None:
        self._out = out

    async def answer(self, request: web.Request) -> web.StreamResponse:
        asked = json.loads(await request.read())
        told = json.loads(asked["user"])
        tier = f"{request.match_info['namespace']}/{request.match_info['tier']}"
        record: dict[str, Any] = {
            "id": told["id"],
            "tier": tier,
            "fate": told["fates"].get(tier, "ok"),
            "start": time.time(),
            "prompt": TEMPLATE_TOKENS + sum(words(message["content"]) for message in asked["messages"]),
            "completion": 0,
            "reported": False,
        }
        try:
            return await self._carry_out(request, asked, told, record)
        except ConnectionError:
            return web.Response()
        finally:
            # Also when the client is gone and the handler is cancelled: it was generated none the less.
            record["end"] = time.time()
            self._out.write(json.dumps(record) + "\n")
            self._out.flush()

    async def _carry_out(
        self, request: web.Request, asked: dict[str, Any], told: dict[str, Any], record: dict[str, Any]
    ) -> web.StreamResponse:
        fate, tokens = record["fate"], min(told["tokens"], asked.get("max_tokens", told["tokens"]))
        if fate.isdigit():
            record["prompt"] = 0
            return web.json_response({"error": {"message": "as told", "code": fate}}, status=int(fate))
        await asyncio.sleep(told.get("wait", 0.0))
        if not asked.get("stream"):
            record["completion"] = tokens
            body = {"object": "chat.completion", "choices": [{"index": 0, "message": {"content": TOKEN * tokens}}]}
            if fate == "ok":
                body["usage"] = usage(record)
                record["reported"] = True
            return web.json_response(body)
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for _ in range(MOST_EVENTS if fate == "endless" else tokens):
            record["completion"] += 1
            choice = {"index": 0, "delta": {"content": TOKEN}, "finish_reason": None}
            await response.write(event({"object": "chat.completion.chunk", "choices": [choice]}))
            await asyncio.sleep(told.get("gap", 0.002))
        if fate == "ok" and asked.get("stream_options", {}).get("include_usage"):
            await response.write(event({"choices": [], "usage": usage(record)}))
            record["reported"] = True
        await response.write(b"data: [DONE]\n\n")
        return response


def event(value: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(value)}\n\n".encode()


def usage(record: dict[str, Any]) -> dict[str, int]:
    prompt, completion = record["prompt"], record["completion"]
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    with arguments.output.open("w") as out:
        app = web.Application(client_max_size=32 << 20)
        app.router.add_post("/{namespace}/{tier}/v1/chat/completions", Provider(out).answer)
        web.run_app(
            app,
            host=arguments.host,
            port=arguments.port,
            access_log=None,
            print=None,
            backlog=1024,
            handler_cancellation=True,
        )


if __name__ == "__main__":
    main()
