"""What the simulator says where a request asks for more than words: the call of a tool, or JSON of some form. No I/O.

No model decides anything here. A tool is called when the request says so (`tool_choice`), or, where it leaves that
open, when the last message is not a tool's answer already; its arguments, and JSON that a schema describes, are the
first value that the schema admits: simulated, but of the right form.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

MAX_DEPTH = 16
"""A schema may refer to itself: deeper values are null."""


class ReplyError(ValueError):
    """A request for tools or JSON that can not be understood. `param` names the part."""

    def __init__(self, message: str, param: str) -> None:
        super().__init__(message)
        self.param = param


@dataclass(frozen=True, slots=True)
class Reply:
    """Text that is known beforehand.

    Attributes:
        pieces: what stands between its spaces; each is one token.
        function: name of the tool that it holds the arguments for; None: it is the answer's content.
    """

    pieces: tuple[str, ...]
    function: str | None = None

    def text_of(self, start: int, end: int) -> str:
        """Text of tokens `start` to `end` (excluded)."""
        return (" " if start else "") + " ".join(self.pieces[start:end])


def reply_to(request: Mapping[str, object]) -> Reply | None:
    """What a chat completion request must be answered with; None: any words.

    Raises:
        ReplyError: naming what is wrong.
    """
    tool = _tool(request)
    if tool is not None:
        name, parameters = tool
        return Reply(_pieces(_of_object(parameters, parameters, 0)), name)
    form = request.get("response_format")
    if form is None:
        return None
    kind = form.get("type") if isinstance(form, Mapping) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return Reply(_pieces({"simulated": True}))
    described = form.get("json_schema") if isinstance(form, Mapping) else None
    schema = described.get("schema") if isinstance(described, Mapping) else None
    if kind != "json_schema" or not isinstance(schema, Mapping):
        raise ReplyError(
            "`response_format` must be text, json_object, or a json_schema with a schema", "response_format"
        )
    return Reply(_pieces(example(schema, schema)))


def _tool(request: Mapping[str, object]) -> tuple[str, Mapping[str, object]] | None:
    """Name and parameters of the tool to call."""
    tools = request.get("tools")
    if tools is None:
        return None
    if not isinstance(tools, list):
        raise ReplyError("`tools` must be a list", "tools")
    known: dict[str, Mapping[str, object]] = {}
    for tool in tools:
        function = tool.get("function") if isinstance(tool, Mapping) and tool.get("type") == "function" else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise ReplyError("each tool must be a function with a name", "tools")
        parameters = function.get("parameters")
        known[function["name"]] = parameters if isinstance(parameters, Mapping) else {}
    choice = request.get("tool_choice", "auto")
    if isinstance(choice, Mapping):
        chosen = choice.get("function")
        name = chosen.get("name") if isinstance(chosen, Mapping) else None
        if name not in known:
            raise ReplyError(f"`tool_choice` names {name!r}, which is none of the tools", "tool_choice")
        return str(name), known[str(name)]
    if choice not in {"none", "auto", "required"}:
        raise ReplyError("`tool_choice` must be none, auto, required, or name a function", "tool_choice")
    if not known or choice == "none" or (choice == "auto" and _answered(request)):
        return None
    return next(iter(known.items()))


def _answered(request: Mapping[str, object]) -> bool:
    messages = request.get("messages")
    last = messages[-1] if isinstance(messages, list) and messages else None
    return isinstance(last, Mapping) and last.get("role") == "tool"


def _pieces(value: object) -> tuple[str, ...]:
    return tuple(json.dumps(value, ensure_ascii=False).split(" "))


def example(schema: object, root: Mapping[str, object], depth: int = 0) -> object:  # noqa: PLR0911 - one per keyword
    """The first value that a JSON schema admits, as far as the usual keywords say; `root` is what `#` refers to."""
    if not isinstance(schema, Mapping) or depth > MAX_DEPTH:
        return None
    if "const" in schema:
        return schema["const"]
    for keyword in ("enum", "examples"):
        values = schema.get(keyword)
        if isinstance(values, Sequence) and values:
            return values[0]
    for keyword in ("anyOf", "oneOf", "allOf"):
        branches = schema.get(keyword)
        if isinstance(branches, Sequence) and branches:
            return example(branches[0], root, depth + 1)
    reference = schema.get("$ref")
    if isinstance(reference, str):
        return example(_referred(reference, root), root, depth + 1)
    kind = schema.get("type")
    if isinstance(kind, list) and kind:
        kind = kind[0]
    if kind == "object" or (kind is None and "properties" in schema):
        return _of_object(schema, root, depth)
    if kind == "array":
        least = schema.get("minItems")
        count = least if isinstance(least, int) and least > 0 else 1
        return [example(schema.get("items"), root, depth + 1) for _ in range(count)]
    plain: dict[object, object] = {"string": "simulated", "boolean": True, "integer": 0, "number": 0}
    return schema.get("minimum", plain[kind]) if kind in {"integer", "number"} else plain.get(kind)


def _of_object(schema: Mapping[str, object], root: Mapping[str, object], depth: int) -> dict[str, object]:
    properties = schema.get("properties")
    if not isinstance(properties, Mapping):
        return {}
    return {str(name): example(value, root, depth + 1) for name, value in properties.items()}


def _referred(reference: str, root: Mapping[str, object]) -> object:
    found: object = root
    for part in reference.removeprefix("#").strip("/").split("/"):
        if part:
            found = found.get(part) if isinstance(found, Mapping) else None
    return found
