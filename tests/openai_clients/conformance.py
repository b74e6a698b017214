"""Asks an OpenAI-compatible server all that `scenarios.json` lists, with OpenAI's own client for Python.

`python conformance.py CONFIG.json`; one line of JSON per scenario, exit code 1 when one does not go as expected.
`js/conformance.mjs` does the same with the client for JavaScript: a scenario says what a client saw, and what it must
have seen stands once, in `scenarios.json`, for both.

CONFIG: `base_url`, `api_key`, `model`; `served` (the name in answers), `tier`; `kind`: `gateway`, `control` (an engine
without a gateway) or `real` (a real engine behind the gateway); `denied_model` and `denied_key`, which are refused;
`admin`: address of the simulator's second port; `metrics`: address of llama.cpp's metrics.
"""

import asyncio
import base64
import json
import math
import struct
import sys
import time
import urllib.request
from pathlib import Path

import openai

USER = [{"role": "user", "content": "one two three"}]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Wetter für eine Stadt",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "enum": ["Zürich 東京 🏙", "Oslo"]},
                    "days": {"type": "integer", "minimum": 2},
                },
                "required": ["city", "days"],
                "additionalProperties": False,
            },
        },
    },
    {"type": "function", "function": {"name": "news", "parameters": {"type": "object", "properties": {}}}},
]
SCHEMA = {
    "type": "object",
    "properties": {"answer": {"type": "string", "enum": ["schön ✓"]}, "sure": {"type": "boolean"}},
    "required": ["answer", "sure"],
    "additionalProperties": False,
}
LENGTH = {"ignore_eos": True}
UNICODE = 'Grüße 東京 🏙️ مرحبا \u2028 "quoted\\" \n'
WORDS = ("simulated", "tokens", "from", "a", "replica", "model", "no", "language", "model", "ran")


def words(count: int) -> str:
    return " ".join(WORDS[number % len(WORDS)] for number in range(count))


def usage(found) -> list | None:
    return found and [found.prompt_tokens, found.completion_tokens, found.total_tokens]


def failure(error: openai.APIStatusError) -> dict:
    return {
        "error": type(error).__name__,
        "status": error.status_code,
        "code": None if error.code is None else str(error.code),
        "param": error.param,
    }


class Scenarios:
    """Each method is a scenario and returns what the client saw."""

    def __init__(self, config: dict) -> None:
        self.config = config
        self.model = config["model"]
        self.api = openai.AsyncOpenAI(base_url=config["base_url"], api_key=config["api_key"], max_retries=0, timeout=60)

    def chat(self, tokens=2, api=None, **more):
        asked = {"model": self.model, "messages": USER, "max_tokens": tokens, "extra_body": LENGTH, **more}
        return (api or self.api).chat.completions.create(**asked)

    async def refused(self, asked) -> dict:
        try:
            await asked
        except openai.APIStatusError as error:
            return {**failure(error), "says": bool(error.body and error.body.get("message"))}
        return {"error": None}

    async def works(self) -> bool:
        return bool((await self.chat()).choices[0].message.content)

    # What the upstream says of itself ---------------------------------------------------------------------------------

    async def fetch(self, url: str, body: dict | None = None) -> str:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(url, data, method="PUT" if body is not None else "GET")  # noqa: S310
        return await asyncio.to_thread(lambda: urllib.request.urlopen(request, timeout=10).read().decode())  # noqa: S310

    async def faults(self, **values) -> None:
        await self.fetch(f"{self.config['admin']}/faults", values)

    async def stats(self) -> dict:
        if self.config.get("admin"):
            return json.loads(await self.fetch(f"{self.config['admin']}/stats"))
        text = await self.fetch(self.config["metrics"])
        (running,) = [
            line.split()[-1] for line in text.splitlines() if line.startswith("llamacpp:requests_processing ")
        ]
        return {"active": int(float(running)), "outcomes": None}

    async def left(self, before: dict) -> dict:
        """Whether the upstream stops, by its own word: well before the whole answer would be over."""
        began, found = time.monotonic(), await self.stats()
        while found["active"] and time.monotonic() - began < 5:
            await asyncio.sleep(0.02)
            found = await self.stats()
        aborted = None
        if found["outcomes"] is not None:
            aborted = found["outcomes"].get("aborted", 0) - before["outcomes"].get("aborted", 0)
        return {"noticed": not found["active"], "aborted": aborted}

    # Scenarios --------------------------------------------------------------------------------------------------------

    async def do_chat(self) -> dict:
        raw = await self.api.chat.completions.with_raw_response.create(
            model=self.model, messages=USER, max_tokens=5, temperature=0, extra_body=LENGTH
        )
        answer = raw.parse()
        choice = answer.choices[0]
        return {
            "object": answer.object,
            "role": choice.message.role,
            "content": choice.message.content,
            "finish_reason": choice.finish_reason,
            "model": answer.model,
            "usage": usage(answer.usage),
            "request_id": bool(raw.headers.get("x-request-id")) and answer._request_id == raw.headers["x-request-id"],
            "tier": raw.headers.get("x-tierwise-tier"),
        }

    async def streamed(self, tokens=6, **more) -> dict:
        stream = await self.chat(tokens, stream=True, **more)
        chunks = [chunk async for chunk in stream]
        with_choices = [chunk for chunk in chunks if chunk.choices]
        usages = [usage(chunk.usage) for chunk in chunks if chunk.usage]
        return {
            "content": "".join(chunk.choices[0].delta.content or "" for chunk in with_choices),
            "finish_reason": next(
                (c.choices[0].finish_reason for c in with_choices if c.choices[0].finish_reason), None
            ),
            "ids": len({chunk.id for chunk in chunks}),
            "without_choices": len(chunks) - len(with_choices),
            "usage": usages[-1] if usages else None,
            "usage_is_last": bool(chunks[-1].usage),
            "several": len(chunks) > 3,
            "model": chunks[0].model,
            "request_id": bool(stream.response.headers.get("x-request-id")),
        }

    async def do_stream(self) -> dict:
        seen = await self.streamed()
        return {name: value for name, value in seen.items() if name != "usage_is_last"}

    async def do_stream_usage(self) -> dict:
        seen = await self.streamed(stream_options={"include_usage": True})
        return {name: seen[name] for name in ("content", "finish_reason", "without_choices", "usage", "usage_is_last")}

    async def do_stream_bytes(self) -> dict:
        asked = {"model": self.model, "messages": USER, "max_tokens": 3, "stream": True, "extra_body": LENGTH}
        async with self.api.chat.completions.with_streaming_response.create(**asked) as response:
            text = (await response.read()).decode()
            kind = response.headers["content-type"].partition(";")[0]
        events = text.split("\n\n")
        return {
            "type": kind,
            "events": len(events) - 1,
            "last": events[-2].removeprefix("data: "),
            "with_usage": sum('"usage":{' in event for event in events),
            "between": events[-1] == "" and all(event.startswith("data: ") for event in events[:-1]),
        }

    async def do_tools(self) -> dict:
        first = await self.chat(40, tools=TOOLS)
        choice = first.choices[0]
        (call,) = choice.message.tool_calls
        required = await self.chat(40, tools=TOOLS, tool_choice="required")
        named = await self.chat(40, tools=TOOLS, tool_choice={"type": "function", "function": {"name": "news"}})
        none = await self.chat(2, tools=TOOLS, tool_choice="none")
        told = [
            *USER,
            choice.message.model_dump(exclude_none=True),
            {"role": "tool", "tool_call_id": call.id, "content": "7 °C"},
        ]
        last = await self.chat(3, tools=TOOLS, messages=told)
        return {
            "content": choice.message.content,
            "finish_reason": choice.finish_reason,
            "function": call.function.name,
            "arguments": json.loads(call.function.arguments),
            "required": required.choices[0].message.tool_calls[0].function.name,
            "named": named.choices[0].message.tool_calls[0].function.name,
            "none": not none.choices[0].message.tool_calls and bool(none.choices[0].message.content),
            "answer": last.choices[0].message.content,
            "answer_reason": last.choices[0].finish_reason,
        }

    async def do_tools_stream(self) -> dict:
        ids, name, pieces, content, reason = set(), None, [], "", None
        async for chunk in await self.chat(40, tools=TOOLS, stream=True):
            choice = chunk.choices[0]
            content += choice.delta.content or ""
            reason = choice.finish_reason or reason
            for delta in choice.delta.tool_calls or ():
                if delta.id:
                    ids.add((delta.index, delta.id))
                name = delta.function.name or name
                if delta.function.arguments:
                    pieces.append(delta.function.arguments)
        return {
            "function": name,
            "arguments": json.loads("".join(pieces)),
            "finish_reason": reason,
            "one_id": len(ids) == 1,
            "pieces": len(pieces) > 1,
            "content": content,
        }

    async def do_json(self) -> dict:
        form = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": SCHEMA}}
        plain = await self.chat(40, response_format={"type": "json_object"})
        shaped = await self.chat(40, response_format=form)
        return {
            "object": json.loads(plain.choices[0].message.content),
            "schema": json.loads(shaped.choices[0].message.content),
        }

    async def do_unicode(self) -> dict:
        answer = await self.chat(2, messages=[{"role": "user", "content": [{"type": "text", "text": UNICODE}]}])
        return {"content": answer.choices[0].message.content, "usage": usage(answer.usage)}

    async def do_embeddings(self) -> dict:
        asked = {"model": self.model, "input": ["a b", "ü"]}
        packed = await self.api.embeddings.create(**asked)
        plain = await self.api.embeddings.create(**asked, encoding_format="float")
        raw = await self.api.embeddings.with_raw_response.create(**asked, encoding_format="base64")
        coded = json.loads(raw.http_response.content)["data"][0]["embedding"]
        decoded = list(struct.unpack(f"<{len(base64.b64decode(coded)) // 4}f", base64.b64decode(coded)))
        short = await self.api.embeddings.create(**asked, dimensions=8)
        tokens = await self.api.embeddings.create(model=self.model, input=[[1, 2], [3, 4]])
        vectors = [item.embedding for item in packed.data]
        return {
            "vectors": len(vectors),
            "dimensions": len(vectors[0]),
            "same_in_both_codings": vectors == [i.embedding for i in plain.data] and decoded == plain.data[0].embedding,
            "length_is_one": math.isclose(sum(x * x for x in vectors[0]), 1, rel_tol=1e-4),
            "usage": [packed.usage.prompt_tokens, packed.usage.total_tokens],
            "raw": "string" if isinstance(coded, str) else "list",
            "asked_dimensions": len(short.data[0].embedding),
            "tokens": [tokens.usage.prompt_tokens, tokens.usage.total_tokens],
            "model": packed.model,
            "object": packed.object,
        }

    async def do_completion(self) -> dict:
        asked = {"model": self.model, "prompt": "one two", "max_tokens": 4, "temperature": 0, "extra_body": LENGTH}
        whole = await self.api.completions.create(**asked)
        stream = await self.api.completions.create(**asked, stream=True, stream_options={"include_usage": True})
        chunks = [chunk async for chunk in stream]
        return {
            "object": whole.object,
            "text": whole.choices[0].text,
            "usage": usage(whole.usage),
            "streamed": "".join(c.choices[0].text for c in chunks if c.choices) == whole.choices[0].text,
            "streamed_usage": usage(chunks[-1].usage),
        }

    async def do_response(self) -> dict:
        asked = {"model": self.model, "max_output_tokens": 40, "metadata": {"tierwise_output_tokens": "4"}}
        answer = await self.api.responses.create(**asked, input="one two three", instructions="be brief")
        tool = {"type": "function", "strict": False, **TOOLS[0]["function"]}
        called = await self.api.responses.create(**asked, input=USER, tools=[tool])
        found = answer.usage
        return {
            "object": answer.object,
            "status": answer.status,
            "text": answer.output_text,
            "usage": [found.input_tokens, found.output_tokens, found.total_tokens],
            "model": answer.model,
            "function": called.output[0].name,
            "arguments": json.loads(called.output[0].arguments),
        }

    async def do_response_stream(self) -> dict:
        stream = await self.api.responses.create(
            model=self.model,
            input="one two three",
            max_output_tokens=40,
            metadata={"tierwise_output_tokens": "4"},
            stream=True,
        )
        events = [event async for event in stream]
        found = events[-1].response.usage
        numbers = [getattr(event, "sequence_number", None) for event in events]
        return {
            "types": list(dict.fromkeys(event.type for event in events)),
            "text": "".join(event.delta for event in events if event.type == "response.output_text.delta"),
            "usage": [found.input_tokens, found.output_tokens, found.total_tokens],
            "in_order": numbers == list(range(len(events))),
        }

    async def do_models(self) -> dict:
        listed = [model.id async for model in self.api.models.list()]
        one = await self.api.models.retrieve(self.model)
        unknown = await self.refused(self.api.models.retrieve(f"{self.model}-unknown"))
        return {
            "listed": self.model in listed,
            "id": one.id,
            "object": one.object,
            "owned_by": one.owned_by,
            "created": one.created > 1_600_000_000,
            "unknown": {name: value for name, value in unknown.items() if name != "says"},
        }

    async def do_unknown_model(self) -> dict:
        return await self.refused(self.chat(model=f"{self.model}-unknown"))

    async def do_bad_request(self) -> dict:
        return await self.refused(self.chat(0))

    async def do_missing_model(self) -> dict:
        return await self.refused(self.api.post("/chat/completions", body={"messages": USER}, cast_to=object))

    async def do_unauthorized(self) -> dict:
        api = self.api.with_options(api_key=self.config["denied_key"])
        return await self.refused(self.chat(api=api, model=self.config["denied_model"]))

    async def do_rate_limit(self) -> dict:
        before = (await self.stats())["received"]
        await self.faults(fail_next=1, status=429, retry_after=1)
        seen, retry_after = {"error": None}, None
        try:
            await self.chat()
        except openai.RateLimitError as error:
            seen, retry_after = failure(error), error.response.headers.get("retry-after")
        await asyncio.sleep(1.2)  # until then a gateway may refuse by itself, and not ask the provider
        await self.faults(fail_next=1, status=429, retry_after=1)
        began = time.monotonic()
        retried = await self.chat(api=self.api.with_options(max_retries=1))
        waited = time.monotonic() - began
        return {
            **seen,
            "retry_after": retry_after,
            "retried": bool(retried.choices[0].message.content),
            "waited": 1 <= waited < 2,
            "asked": (await self.stats())["received"] - before,
        }

    async def do_unavailable(self) -> dict:
        await self.faults(fail_next=1, status=503)
        seen = await self.refused(self.chat())
        await self.faults(fail_next=1, status=503)
        retried = await self.chat(api=self.api.with_options(max_retries=1))
        return {**seen, "retried": bool(retried.choices[0].message.content)}

    async def do_cancel(self) -> dict:
        before = await self.stats()
        count = 0
        stream = await self.chat(2000, stream=True)
        async for chunk in stream:
            count += bool(chunk.choices)
            if count == 3:
                break
        await stream.close()
        return {"began": count == 3, **await self.left(before), "next": await self.works()}

    async def do_timeout(self) -> dict:
        before = await self.stats()
        try:
            await self.chat(20000, timeout=0.4)
        except openai.APITimeoutError as error:
            name = type(error).__name__
        return {"error": name, **await self.left(before), "next": await self.works()}

    async def do_large(self) -> dict:
        text = "ä" * (3 << 19) + " end"
        answer = await self.chat(2, messages=[{"role": "user", "content": text}])
        return {"content": answer.choices[0].message.content, "usage": usage(answer.usage)}

    async def do_too_large(self) -> dict:
        text = "x" * (17 << 20)
        seen = await self.refused(self.chat(messages=[{"role": "user", "content": text}]))
        return {"status": seen.get("status"), "code": seen.get("code")}

    async def do_concurrent(self) -> dict:
        lengths = range(3, 23)
        asked = [
            self.streamed(
                length,
                messages=[{"role": "user", "content": "w " * length}],
                stream_options={"include_usage": True},
            )
            for length in lengths
        ]
        seen = await asyncio.gather(*asked)
        return {
            "streams": len(seen),
            "texts": [each["content"] for each in seen] == [words(length) for length in lengths],
            "usages": [each["usage"] for each in seen] == [[n, n, 2 * n] for n in lengths],
        }


def fits(expected, seen, config: dict) -> bool:  # noqa: PLR0911 - one per kind
    """Whether what was seen is what is expected; `$text`, `$count` and `$any` stand for what only a model knows."""
    if isinstance(expected, dict):
        return (
            isinstance(seen, dict)
            and set(expected) == set(seen)
            and all(fits(value, seen[name], config) for name, value in expected.items())
        )
    if isinstance(expected, list):
        return (
            isinstance(seen, list)
            and len(expected) == len(seen)
            and all(fits(left, right, config) for left, right in zip(expected, seen, strict=True))
        )
    if expected == "$any":
        return True
    if expected == "$text":
        return isinstance(seen, str | list) and len(seen) > 0
    if expected == "$count":
        return isinstance(seen, int) and not isinstance(seen, bool) and seen > 0
    if isinstance(expected, str) and expected.startswith("{"):
        return seen == config[expected[1:-1]]
    return type(expected) is type(seen) and expected == seen


def expectation(scenario: dict, kind: str):
    """What a target of this kind must show; None: it is not asked."""
    if kind == "gateway":
        return scenario["expect"]
    if kind == "real":
        return scenario.get("real")
    change = scenario.get("control", {})
    return None if change is None else {**scenario["expect"], **change}


async def main(config: dict) -> int:
    failed = 0
    scenarios = Scenarios(config)
    for scenario in json.loads((Path(__file__).parent / "scenarios.json").read_text()):
        expected = expectation(scenario, config["kind"])
        if expected is None:
            continue
        began = time.monotonic()
        try:
            seen = await getattr(scenarios, f"do_{scenario['name']}")()
        except Exception as error:  # noqa: BLE001 - a scenario that breaks has failed, and the others go on
            seen = {"raised": f"{type(error).__name__}: {error}"}
        ok = fits(expected, seen, config)
        failed += not ok
        line = {"name": scenario["name"], "ok": ok, "seconds": round(time.monotonic() - began, 3)}
        print(json.dumps(line if ok else {**line, "seen": seen, "expected": expected}, ensure_ascii=False), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main(json.loads(Path(sys.argv[1]).read_text()))))
