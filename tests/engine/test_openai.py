"""Bodies in, bodies out: the token rule, limits, and what clients read."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tierwise.engine import openai
from tierwise.engine.openai import RequestError, Responder, parse, text_of


def body(**values):
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": "one two  three"}], **values}).encode()


def read(data, *, chat=True, headers=None, seed=0):
    return parse(data, headers or {}, chat=chat, max_model_len=1000, seed=seed)


def test_words_are_tokens_and_the_trace_decides_the_output():
    found = read(body(max_tokens=42, ignore_eos=True))
    assert (found.prompt_tokens, found.output_tokens, found.finish_reason) == (3, 42, "length")
    parts = [{"type": "text", "text": "a b"}, {"type": "image_url", "image_url": {}}]
    messages = [
        {"role": "system", "content": "x"},
        {"role": "user", "content": parts},
        {"role": "user", "content": None},
    ]
    assert read(body(messages=messages)).prompt_tokens == 3
    assert read(body(max_completion_tokens=5, max_tokens=9, ignore_eos=True)).output_tokens == 5
    hinted = read(body(metadata={"tierwise_output_tokens": "17"}))
    assert (hinted.output_tokens, hinted.finish_reason) == (17, "stop")
    capped = read(body(max_tokens=4), headers={"x-tierwise-output-tokens": "17"})
    assert (capped.output_tokens, capped.finish_reason) == (4, "length")


def test_a_drawn_output_is_seeded_by_the_prompt():
    one = read(body(), seed=1).output_tokens
    assert one == read(body(), seed=1).output_tokens
    lengths = {read(body(), seed=seed).output_tokens for seed in range(20)}
    assert len(lengths) > 10
    assert all(1 <= length <= 997 for length in lengths)


def test_completions():
    assert read(b'{"model":"m","prompt":"a b c"}', chat=False).prompt_tokens == 3
    assert read(b'{"model":"m","prompt":[1,2,3,4]}', chat=False).prompt_tokens == 4
    assert read(b'{"model":"m","prompt":["a b"],"ignore_eos":true}', chat=False).output_tokens == 16


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"{", "no JSON"),
        (b"[]", "must be a JSON object"),
        (body(model=""), "`model`"),
        (body(messages=[]), "`messages`"),
        (body(messages=[{"content": "x"}]), "with a `role`"),
        (body(messages=[{"role": "user", "content": 5}]), "text or a list of parts"),
        (body(n=2), "leave `n` out"),
        (body(max_tokens=0), "`max_tokens` must be a whole number"),
        (body(max_tokens=True), "`max_tokens` must be a whole number"),
        (body(max_tokens=998), "'max_tokens' or 'max_completion_tokens' is too large: 998"),
        (body(messages=[{"role": "user", "content": "w " * 1000}]), "maximum context length is 1000 tokens"),
        (body(stream_options=1), "`stream_options`"),
        (body(metadata={"tierwise_output_tokens": "x"}), "`tierwise_output_tokens`"),
    ],
)
def test_bad_requests_say_why(data, message):
    with pytest.raises(RequestError, match=message) as caught:
        read(data)
    assert caught.value.status == 400
    assert json.loads(caught.value.body())["error"]["code"] == 400


@given(
    total=st.integers(1, 60),
    cuts=st.lists(st.integers(1, 60), max_size=5),
    chunk=st.integers(1, 9),
    chat=st.booleans(),
    usage=st.booleans(),
)
def test_events_carry_each_token_once_however_they_are_cut(total, cuts, chunk, chat, usage):
    generation = openai.Generation("m", chat, 5, total, "stop", True, usage, False)
    responder = Responder(generation, "id", "m", 1, chunk)
    edges = sorted({0, total, *(cut for cut in cuts if cut < total)})
    data = b"".join(responder.events(start, end) for start, end in pairwise(edges))
    events = [event.removeprefix("data: ") for event in data.decode().split("\n\n") if event]
    assert events[-1] == "[DONE]"
    parsed = [json.loads(event) for event in events[:-1]]
    assert all(event["system_fingerprint"] == "tierwise-simulator" for event in parsed)
    choices = [event["choices"][0] for event in parsed if event["choices"]]
    text = "".join(choice["delta"]["content"] if chat else choice["text"] for choice in choices)
    assert text == text_of(0, total)
    assert len(text.split()) == total
    assert text.startswith("simulated")
    assert [choice["finish_reason"] for choice in choices if choice["finish_reason"]] == ["stop"]
    usages = [event["usage"] for event in parsed if "usage" in event]
    wanted = {"prompt_tokens": 5, "completion_tokens": total, "total_tokens": 5 + total}
    assert usages == ([wanted] if usage else [])


def test_usage_in_every_event_when_asked():
    generation = read(
        body(
            stream=True,
            stream_options={"include_usage": True, "continuous_usage_stats": True},
            max_tokens=3,
            ignore_eos=True,
        )
    )
    data = Responder(generation, "id", "m", 1, 1).events(0, 3).decode()
    counted = [json.loads(event[6:]) for event in data.split("\n\n") if event.startswith("data: {")]
    assert [event["usage"]["completion_tokens"] for event in counted if "usage" in event] == [1, 2, 3, 3]
