"""Tools, JSON answers, embeddings and the Responses API, as the official client reads them."""

import asyncio
import base64
import json
import math
import struct

import openai as client
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tierwise.engine import embeddings, responses
from tierwise.engine.app import running
from tierwise.engine.openai import RequestError, parse
from tierwise.engine.options import parse as parse_options
from tierwise.engine.replies import example, reply_to

FAST = {"TIERWISE_SIM_PROFILE": "qwen3-8b/h200", "TIERWISE_SIM_REQUEST_LOG": "off"}
WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "enum": ["Zürich 東京", "x"]},
        "days": {"type": "integer", "minimum": 2},
        "units": {"$ref": "#/$defs/units"},
        "tags": {"type": "array", "items": {"type": ["string", "null"]}, "minItems": 2},
        "exact": {"anyOf": [{"type": "boolean"}, {"type": "null"}]},
    },
    "$defs": {"units": {"const": "metric"}},
}
EXPECTED = {
    "city": "Zürich 東京",
    "days": 2,
    "units": "metric",
    "tags": ["simulated", "simulated"],
    "exact": True,
}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": WEATHER}}]
LENGTH = {"metadata": {"tierwise_output_tokens": "5"}}
ASKED = [{"role": "user", "content": "a b"}]


def test_an_example_is_what_its_schema_describes():
    assert example(WEATHER, WEATHER) == EXPECTED
    endless = {"type": "object", "properties": {"next": {"$ref": "#"}}}
    assert len(json.dumps(example(endless, endless))) < 1000
    assert example({"type": "unheard of"}, {}) is None


def test_a_tool_is_called_when_the_request_says_so():
    answered = [*ASKED, {"role": "assistant", "content": None}, {"role": "tool", "content": "7 degrees"}]
    for request, function in (
        ({"tools": TOOLS}, "weather"),
        ({"tools": TOOLS, "tool_choice": "none"}, None),
        ({"tools": TOOLS, "messages": answered}, None),
        ({"tools": TOOLS, "messages": answered, "tool_choice": "required"}, "weather"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "weather"}}}, "weather"),
        ({"tools": []}, None),
        ({}, None),
    ):
        reply = reply_to({"messages": ASKED, **request})
        assert (reply.function if reply else None) == function, request
    assert json.loads(reply_to({"messages": ASKED, "tools": TOOLS}).text_of(0, 99)) == EXPECTED


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"tools": 1}, "tools"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"tools": TOOLS, "tool_choice": "always"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"max_tokens": 0}, "max_tokens"),
    ],
)
def test_what_is_wrong_is_named(more, param):
    with pytest.raises(RequestError) as caught:
        parse(json.dumps({"model": "m", "messages": ASKED, **more}).encode(), {}, chat=True, max_model_len=99, seed=0)
    assert (caught.value.status, json.loads(caught.value.body())["error"]["param"]) == (400, param)


@given(st.text(), st.integers(1, 100))
def test_vectors_have_length_one_and_are_the_same_in_both_codings(text, dimensions):
    body = {"model": "m", "input": [text], "dimensions": dimensions}
    plain = json.loads(embeddings.parse(json.dumps(body).encode()).body())
    packed = json.loads(embeddings.parse(json.dumps({**body, "encoding_format": "base64"}).encode()).body())
    numbers = plain["data"][0]["embedding"]
    assert struct.unpack(f"<{dimensions}f", base64.b64decode(packed["data"][0]["embedding"])) == tuple(numbers)
    assert math.isclose(math.sqrt(sum(number * number for number in numbers)), 1, rel_tol=1e-5)
    assert plain["usage"]["prompt_tokens"] == max(1, len(text.split()))


@pytest.mark.parametrize("more", [{"input": []}, {"input": [1.5]}, {"encoding_format": "hex"}, {"dimensions": 0.5}])
def test_bad_embedding_requests_say_what(more):
    with pytest.raises(RequestError) as caught:
        embeddings.parse(json.dumps({"model": "m", "input": "x", **more}).encode())
    assert (caught.value.status, caught.value.param) == (400, next(iter(more)))


@pytest.mark.parametrize(
    "more", [{"input": 7}, {"previous_response_id": "r"}, {"stream_options": {"include_usage": True}}]
)
def test_responses_refuse_what_the_api_does_not_have(more):
    with pytest.raises(RequestError) as caught:
        responses.as_chat(json.dumps({"model": "m", "input": "x", **more}).encode())
    assert caught.value.status == 400


async def test_a_streamed_answer_holds_what_a_whole_one_does():
    options = parse_options(["m", "--host", "127.0.0.1", "--port", "0"], FAST)
    async with running(options) as (_, port, _):
        api = client.AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="any", max_retries=0)
        async with api:
            whole = await api.chat.completions.create(model="m", messages=ASKED, tools=TOOLS)
            (call,) = whole.choices[0].message.tool_calls
            assert (whole.choices[0].finish_reason, json.loads(call.function.arguments)) == ("tool_calls", EXPECTED)
            arguments = ""
            async for event in await api.chat.completions.create(model="m", messages=ASKED, tools=TOOLS, stream=True):
                for delta in event.choices[0].delta.tool_calls or ():
                    arguments += delta.function.arguments
            assert arguments == call.function.arguments
            schema = {"name": "w", "schema": WEATHER}
            shaped = await api.chat.completions.create(
                model="m", messages=ASKED, response_format={"type": "json_schema", "json_schema": schema}
            )
            assert json.loads(shaped.choices[0].message.content) == EXPECTED
            for tools in ([], [{"type": "function", "name": "weather", "parameters": WEATHER, "strict": False}]):
                asked = {"model": "m", "input": "a b", "max_output_tokens": 40, "tools": tools, **LENGTH}
                given = await api.responses.create(**asked)
                async with api.responses.stream(**asked) as events:
                    final = await events.get_final_response()
                said, streamed = given.output[0].model_dump(), final.output[0].model_dump()
                for item in (said, streamed):
                    for name in ("id", "call_id", "parsed_arguments"):
                        item.pop(name, None)
                    for part in item.get("content") or ():
                        part.pop("parsed", None)
                assert said == streamed
                assert given.usage == final.usage


async def test_a_planted_number_of_failures_ends_by_itself():
    options = parse_options(
        ["m", "--host", "127.0.0.1", "--port", "0"],
        {**FAST, "TIERWISE_SIM_FAULTS": "fail_next=2;status=429;retry_after=1"},
    )
    async with running(options) as (server, port, _):
        api = client.AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="any", max_retries=0)
        async with api:
            for _ in range(2):
                with pytest.raises(client.RateLimitError) as caught:
                    await api.embeddings.create(model="m", input="x")
                assert caught.value.response.headers["retry-after"] == "1"
            assert (await api.embeddings.create(model="m", input="x")).usage.prompt_tokens == 1
            assert (await api.models.retrieve("m")).id == "m"
    assert server.log.counts == {"rejected": 2, "finished": 1}
    await asyncio.sleep(0)
