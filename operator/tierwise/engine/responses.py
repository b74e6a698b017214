"""OpenAI's Responses API over the simulator's chat completions: requests in, events and bodies out. No I/O.

Of the API there is what needs no memory: text and function calls, whole and streamed. Answers are not stored, so
`previous_response_id` is refused.
"""

import json
from collections.abc import Iterator, Mapping

from tierwise.engine.openai import Generation, RequestError


def as_chat(body: bytes) -> bytes:
    """The chat completion request that asks for the same.

    Raises:
        RequestError: for what has no counterpart.
    """
    try:
        request = json.loads(body)
    except ValueError as error:
        raise RequestError(400, f"the body is no JSON: {error}") from error
    if not isinstance(request, dict):
        raise RequestError(400, "the body must be a JSON object")
    if request.get("previous_response_id") is not None:
        raise RequestError(400, "this simulator stores no responses", param="previous_response_id")
    options = request.get("stream_options")
    if isinstance(options, dict) and "include_usage" in options:
        # As OpenAI: the last event of these streams has the usage anyway.
        raise RequestError(
            400, "Unknown parameter: 'stream_options.include_usage'.", param="stream_options.include_usage"
        )
    chat = {name: request[name] for name in ("model", "stream", "metadata", "ignore_eos") if name in request}
    chat["messages"] = [*_instructions(request), *_messages(request.get("input"))]
    if request.get("max_output_tokens") is not None:
        chat["max_tokens"] = request["max_output_tokens"]
    if request.get("tools") is not None:
        chat["tools"] = [_tool(tool) for tool in request["tools"]]
    choice = request.get("tool_choice")
    if choice is not None:
        named = isinstance(choice, dict)
        chat["tool_choice"] = {"type": "function", "function": {"name": choice.get("name")}} if named else choice
    form = request.get("text", {}).get("format") if isinstance(request.get("text"), dict) else None
    if isinstance(form, dict):
        chat["response_format"] = {"type": form.get("type"), "json_schema": {"schema": form.get("schema")}}
    return json.dumps(chat).encode()


def _instructions(request: Mapping[str, object]) -> list[dict[str, object]]:
    text = request.get("instructions")
    return [{"role": "system", "content": text}] if isinstance(text, str) else []


def _messages(given: object) -> list[dict[str, object]]:
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    if not isinstance(given, list) or not all(isinstance(item, dict) for item in given):
        raise RequestError(400, "`input` must be a text or a list of items", param="input")
    messages: list[dict[str, object]] = []
    for item in given:
        if item.get("type") == "function_call_output":
            messages.append({"role": "tool", "content": item.get("output")})
        elif item.get("type") == "function_call":
            messages.append({"role": "assistant", "content": None})
        else:
            messages.append({"role": item.get("role"), "content": item.get("content")})
    return messages


def _tool(tool: object) -> object:
    """Functions lie one level higher than in chat completions."""
    if isinstance(tool, dict) and tool.get("type") == "function":
        return {"type": "function", "function": {name: value for name, value in tool.items() if name != "type"}}
    return tool


class Responder:
    """Writes one response; as `openai.Responder`, which see."""

    def __init__(self, generation: Generation, request_id: str, served: str, created: int, chunk_tokens: int) -> None:
        self._generation = generation
        self._chunk = chunk_tokens
        self._id = request_id
        self._head = {"id": f"resp_{request_id}", "object": "response", "created_at": created, "model": served}
        self._number = 0

    def whole(self) -> bytes:
        """Body of a response that is not streamed."""
        return json.dumps(self._response(done=True), ensure_ascii=False).encode()

    def events(self, start: int, end: int) -> bytes:
        """Events for tokens `start` to `end` (excluded); the last ends the stream."""
        total = self._generation.output_tokens
        parts = [*self._opening()] if start == 0 else []
        parts += [
            self._delta(self._generation.text_of(position, min(end, position + self._chunk)))
            for position in range(start, end, self._chunk)
        ]
        if end == total:
            parts += self._closing()
        return "".join(parts).encode()

    def _event(self, kind: str, **values: object) -> str:
        data = {"type": kind, **values, "sequence_number": self._number}
        self._number += 1
        return f"event: {kind}\ndata: {json.dumps(data, separators=(',', ':'), ensure_ascii=False)}\n\n"

    def _opening(self) -> Iterator[str]:
        for kind in ("response.created", "response.in_progress"):
            yield self._event(kind, response=self._response(done=False))
        yield self._event("response.output_item.added", output_index=0, item=self._item(done=False))
        if not self._generation.function:
            yield self._event("response.content_part.added", **self._place(), content_index=0, part=self._part(""))

    def _delta(self, text: str) -> str:
        if self._generation.function:
            return self._event("response.function_call_arguments.delta", **self._place(), delta=text)
        return self._event("response.output_text.delta", **self._place(), content_index=0, delta=text, logprobs=[])

    def _closing(self) -> Iterator[str]:
        text, place = self._text(), self._place()
        if name := self._generation.function:
            yield self._event("response.function_call_arguments.done", **place, name=name, arguments=text)
        else:
            yield self._event("response.output_text.done", **place, content_index=0, text=text, logprobs=[])
            yield self._event("response.content_part.done", **place, content_index=0, part=self._part(text))
        yield self._event("response.output_item.done", output_index=0, item=self._item(done=True))
        yield self._event(f"response.{self._status()}", response=self._response(done=True))

    def _status(self) -> str:
        return "incomplete" if self._generation.finish_reason == "length" else "completed"

    def _text(self) -> str:
        return self._generation.text_of(0, self._generation.output_tokens)

    def _item_id(self) -> str:
        return f"{'fc' if self._generation.function else 'msg'}_{self._id}"

    def _place(self) -> dict[str, object]:
        return {"item_id": self._item_id(), "output_index": 0}

    def _part(self, text: str) -> dict[str, object]:
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}

    def _item(self, *, done: bool) -> dict[str, object]:
        status = self._status() if done else "in_progress"
        text = self._text() if done else ""
        if name := self._generation.function:
            call = {"type": "function_call", "call_id": f"call_{self._id}", "name": name, "arguments": text}
            return {"id": self._item_id(), "status": status, **call}
        content = [self._part(text)] if done else []
        return {"id": self._item_id(), "type": "message", "role": "assistant", "status": status, "content": content}

    def _response(self, *, done: bool) -> dict[str, object]:
        generation = self._generation
        prompt, completion = generation.prompt_tokens, generation.output_tokens
        usage = {
            "input_tokens": prompt,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": completion,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": prompt + completion,
        }
        incomplete = done and generation.finish_reason == "length"
        return {
            **self._head,
            "status": self._status() if done else "in_progress",
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if incomplete else None,
            "instructions": None,
            "metadata": {},
            "output": [self._item(done=True)] if done else [],
            "parallel_tool_calls": False,
            "temperature": None,
            "tool_choice": "auto",
            "tools": [],
            "top_p": None,
            "usage": usage if done else None,
        }
