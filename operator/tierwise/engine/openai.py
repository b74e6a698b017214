"""Requests and responses of the OpenAI API as vLLM writes them. No I/O.

Token rule: one whitespace-separated word of a message's text is one token; roles, templates and tools count for
nothing, and a prompt has at least one token. A load generator can thus send a prompt of exactly n tokens, and generated
text obeys the same rule.
"""

import json
import math
import random
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from tierwise.engine.replies import Reply, ReplyError, reply_to
from tierwise.errors import TierwiseError

FINGERPRINT = "tierwise-simulator"
OUTPUT_HEADER = "x-tierwise-output-tokens"
OUTPUT_METADATA = "tierwise_output_tokens"

WORDS = ("simulated", "tokens", "from", "a", "replica", "model", "no", "language", "model", "ran")

# Output length when nobody says it: median 129 tokens as in the Azure conversation trace (Splitwise, ISCA 2024).
DEFAULT_OUTPUT_MEDIAN = 129.0
DEFAULT_OUTPUT_SIGMA = 0.9
DEFAULT_COMPLETION_MAX_TOKENS = 16


class RequestError(TierwiseError):
    """A request that is answered with an error body.

    Attributes:
        status: HTTP status.
        kind: `type` in the body.
        code: `code` in the body; a number as vLLM has it, or a word as OpenAI does.
        param: the request's field that is wrong.
        retry_after: seconds that the client is asked to wait.
    """

    def __init__(
        self,
        status: int,
        message: str,
        kind: str = "BadRequestError",
        code: int | str | None = None,
        *,
        param: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.param = param
        self.retry_after = retry_after
        self.status = status
        self.kind = kind
        self.code = status if code is None else code

    def body(self) -> bytes:
        """The JSON that OpenAI's clients read."""
        error = {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}
        return json.dumps({"error": error}).encode()


@dataclass(frozen=True, slots=True)
class Generation:
    """What a request asks for.

    Attributes:
        model: name as asked.
        chat: chat completion, else completion.
        prompt_tokens, output_tokens: see the token rule; at least 1.
        finish_reason: `stop` or `length`.
        stream: server-sent events.
        include_usage: a last event with the usage.
        continuous_usage: usage in every event (vLLM's extension).
        reply: text that is known beforehand; None: any words.
    """

    model: str
    chat: bool
    prompt_tokens: int
    output_tokens: int
    finish_reason: str
    stream: bool
    include_usage: bool
    continuous_usage: bool
    reply: Reply | None = None

    @property
    def function(self) -> str | None:
        """Name of the tool whose arguments the text is; None: it is content."""
        return self.reply.function if self.reply is not None else None

    @property
    def told_reason(self) -> str:
        """`finish_reason` as clients get it."""
        return "tool_calls" if self.function and self.finish_reason == "stop" else self.finish_reason

    def text_of(self, start: int, end: int) -> str:
        """Text of tokens `start` to `end` (excluded)."""
        return text_of(start, end) if self.reply is None else self.reply.text_of(start, end)


def parse(body: bytes, headers: Mapping[str, str], *, chat: bool, max_model_len: int, seed: int) -> Generation:
    """Read a request's body.

    Raises:
        RequestError: with the status and message that a client gets.
    """
    try:
        request = json.loads(body)
    except ValueError as error:
        raise RequestError(400, f"the body is no JSON: {error}") from error
    if not isinstance(request, dict):
        raise RequestError(400, "the body must be a JSON object")
    model = request.get("model")
    if not isinstance(model, str) or not model:
        raise RequestError(400, "`model` must be the name of a model", param="model")
    if request.get("n") not in {None, 1}:
        raise RequestError(400, "this simulator answers with one choice: leave `n` out")
    text_or_tokens = _chat_text(request) if chat else _completion_prompt(request)
    prompt = max(1, text_or_tokens if isinstance(text_or_tokens, int) else len(text_or_tokens.split()))
    if prompt >= max_model_len:
        raise RequestError(
            400,
            f"This model's maximum context length is {max_model_len} tokens. However, your request has {prompt} input "
            "tokens. Please reduce the length of the input messages.",
        )
    limit = _limit(request, chat=chat)
    room = max_model_len - prompt
    if limit is not None and limit > room:
        raise RequestError(
            400,
            f"'max_tokens' or 'max_completion_tokens' is too large: {limit}. This model's maximum context length is "
            f"{max_model_len} tokens and your request has {prompt} input tokens.",
        )
    most = room if limit is None else limit
    reply = _reply(request) if chat else None
    if reply is None:
        wanted = _wanted(request, headers, most, seed=seed, text=text_or_tokens)
        finish_reason = "length" if wanted >= most else "stop"
    else:
        wanted = len(reply.pieces)
        finish_reason = "length" if wanted > most else "stop"
    options = request.get("stream_options") or {}
    if not isinstance(options, dict):
        raise RequestError(400, "`stream_options` must be an object")
    return Generation(
        model=model,
        chat=chat,
        prompt_tokens=prompt,
        output_tokens=min(wanted, most),
        finish_reason=finish_reason,
        stream=bool(request.get("stream")),
        include_usage=bool(options.get("include_usage")),
        continuous_usage=bool(options.get("include_usage")) and bool(options.get("continuous_usage_stats")),
        reply=reply,
    )


def _reply(request: Mapping[str, object]) -> Reply | None:
    try:
        return reply_to(request)
    except ReplyError as error:
        raise RequestError(400, str(error), param=error.param) from error


def _chat_text(request: Mapping[str, object]) -> str:
    messages = request.get("messages")
    if not isinstance(messages, list) or not messages:
        raise RequestError(400, "`messages` must be a list of at least one message", param="messages")
    parts: list[str] = []
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise RequestError(400, "each message must be an object with a `role`")
        content = message.get("content")
        if isinstance(content, str):
            parts.append(content)
        elif isinstance(content, list):
            parts += [str(part.get("text", "")) for part in content if isinstance(part, dict)]
        elif content is not None:
            raise RequestError(400, "a message's `content` must be text or a list of parts")
    return " ".join(parts)


def _completion_prompt(request: Mapping[str, object]) -> str | int:
    prompt = request.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str):
        prompt = prompt[0]
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, list) and prompt and all(isinstance(token, int) for token in prompt):
        return len(prompt)
    raise RequestError(400, "`prompt` must be one text, or a list of token numbers")


def _limit(request: Mapping[str, object], *, chat: bool) -> int | None:
    names = ("max_completion_tokens", "max_tokens") if chat else ("max_tokens",)
    limit = next((request[name] for name in names if request.get(name) is not None), None)
    if limit is None:
        return None if chat else DEFAULT_COMPLETION_MAX_TOKENS
    return _positive(limit, "max_tokens")


def _positive(value: object, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise RequestError(400, f"`{name}` must be a whole number of at least 1, not {value!r}", param=name)
    return value


def _wanted(request: Mapping[str, object], headers: Mapping[str, str], most: int, *, seed: int, text: str | int) -> int:
    """Tokens that would be generated without a limit."""
    metadata = request.get("metadata")
    hint = headers.get(OUTPUT_HEADER)
    if hint is None and isinstance(metadata, dict):
        hint = metadata.get(OUTPUT_METADATA)
    if hint is not None:
        if not str(hint).isdecimal() or int(str(hint)) < 1:
            raise RequestError(400, f"`{OUTPUT_METADATA}` must be a whole number of at least 1, not {hint!r}")
        return int(str(hint))
    if request.get("ignore_eos") is True:
        return most
    # Same seed and prompt, same length: a replayed trace gives the same tokens.
    digest = zlib.crc32(text.encode() if isinstance(text, str) else str(text).encode())
    source = random.Random(f"{seed}:{digest}")  # noqa: S311 - a reproducible length, not a secret
    drawn = round(DEFAULT_OUTPUT_MEDIAN * math.exp(DEFAULT_OUTPUT_SIGMA * source.gauss(0.0, 1.0)))
    least = request.get("min_tokens")
    return max(1, drawn, least if isinstance(least, int) else 0)


def text_of(start: int, end: int) -> str:
    """Generated text of tokens `start` to `end` (excluded)."""
    words = (WORDS[index % len(WORDS)] for index in range(start, end))
    return (" " if start else "") + " ".join(words)


class Responder:
    """Writes one chat completion or completion. `served` is the name that the response carries."""

    def __init__(self, generation: Generation, request_id: str, served: str, created: int, chunk_tokens: int) -> None:
        self._generation = generation
        self._chunk = chunk_tokens
        kind = ("chat.completion" if generation.chat else "text_completion") + (
            ".chunk" if generation.chat and generation.stream else ""
        )
        self._head: dict[str, object] = {
            "id": f"{'chatcmpl' if generation.chat else 'cmpl'}-{request_id}",
            "object": kind,
            "created": created,
            "model": served,
            "system_fingerprint": FINGERPRINT,
        }
        self._call = {"id": f"call_{request_id}", "type": "function"}
        opening = "data: " + json.dumps(self._head, separators=(",", ":"))[:-1] + ',"choices":[{"index":0,'
        if generation.function:
            self._before = opening + '"delta":{"tool_calls":[{"index":0,"function":{"arguments":"'
            self._after = '"}}]},"logprobs":null,"finish_reason":'
        elif generation.chat:
            self._before = opening + '"delta":{"content":"'
            self._after = '"},"logprobs":null,"finish_reason":'
        else:
            self._before = opening + '"text":"'
            self._after = '","logprobs":null,"finish_reason":'
        delta: dict[str, object] = {"role": "assistant", "content": ""}
        if generation.function:
            call = {"index": 0, **self._call, "function": {"name": generation.function, "arguments": ""}}
            delta = {"role": "assistant", "content": None, "tool_calls": [call]}
        first = json.dumps(delta, separators=(",", ":"))
        self._role = f'{opening}"delta":{first},"logprobs":null,"finish_reason":null}}]}}\n\n'

    def usage(self, completion_tokens: int) -> dict[str, int]:
        """Tokens so far."""
        prompt = self._generation.prompt_tokens
        return {
            "prompt_tokens": prompt,
            "total_tokens": prompt + completion_tokens,
            "completion_tokens": completion_tokens,
        }

    def whole(self) -> bytes:
        """Body of a response that is not streamed."""
        generation = self._generation
        text = generation.text_of(0, generation.output_tokens)
        choice: dict[str, object] = {"index": 0}
        if generation.function:
            call = {**self._call, "function": {"name": generation.function, "arguments": text}}
            choice["message"] = {"role": "assistant", "content": None, "refusal": None, "tool_calls": [call]}
        elif generation.chat:
            choice["message"] = {"role": "assistant", "content": text, "refusal": None, "tool_calls": []}
        else:
            choice["text"] = text
        choice |= {"logprobs": None, "finish_reason": generation.told_reason, "stop_reason": None}
        body = {**self._head, "choices": [choice], "usage": self.usage(generation.output_tokens)}
        return json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode()

    def events(self, start: int, end: int) -> bytes:
        """Events for tokens `start` to `end` (excluded), whole chunks as configured; the last ends the stream."""
        generation = self._generation
        parts = [self._role] if start == 0 and generation.chat else []
        position = start
        while position < end:
            upto = min(end, position + self._chunk)
            last = upto == generation.output_tokens
            reason = f'"{generation.told_reason}","stop_reason":null' if last else "null"
            tail = "}]}\n\n"
            if generation.continuous_usage:
                tail = '}],"usage":' + json.dumps(self.usage(upto), separators=(",", ":")) + "}\n\n"
            text = generation.text_of(position, upto)
            if generation.reply is not None:  # words need no escapes
                text = json.dumps(text, ensure_ascii=False)[1:-1]
            parts.append(f"{self._before}{text}{self._after}{reason}{tail}")
            position = upto
            if last:
                if generation.include_usage:
                    usage = {**self._head, "choices": [], "usage": self.usage(upto)}
                    parts.append("data: " + json.dumps(usage, separators=(",", ":")) + "\n\n")
                parts.append("data: [DONE]\n\n")
        return "".join(parts).encode()
