"""YAML as Kubernetes reads it, with the line of every field: a message that names no place helps nobody.

Kubernetes' YAML is JSON in another spelling: a date stays a string and `12:30` is no number of base 60, unlike with
PyYAML's defaults; a key that stands twice in one mapping is an error.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from tierwise.errors import TierwiseError

MAX_BYTES = 8_000_000
"""Largest file that is read: what is larger is no manifest."""


class SourceError(TierwiseError):
    """Text that is no YAML; the message has file, line and reason."""


class _Loader(yaml.SafeLoader):
    """YAML 1.1 without what JSON does not know."""


_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern)
        for tag, pattern in resolvers
        if tag not in {"tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"}
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9]+\.[0-9]*(?:[eE][-+]?[0-9]+)?|\.[0-9]+(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)$"),
    list("-+.0123456789"),
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int",
    re.compile(r"^[-+]?(?:0|[1-9][0-9]*|0x[0-9a-fA-F]+|0o?[0-7]+)$"),
    list("-+0123456789"),
)


@dataclass(frozen=True, slots=True)
class Text:
    """One YAML document: its content and where its fields stand.

    Attributes:
        file: as it was named. number: of the document in the file, from 1. line: of its first field, from 1.
        value: plain dicts, lists, strings, numbers. node: what PyYAML read, with positions.
        twice: keys that stand twice in one mapping, with their lines.
    """

    file: str
    number: int
    line: int
    value: Any
    node: yaml.Node
    twice: tuple[tuple[str, int], ...] = ()

    def line_of(self, field: str) -> int:
        """Line of a field such as `spec.classes[1].tiers`, or of the nearest part of it that is there."""
        node, line = self.node, self.line
        for step in re.findall(r"[^.\[\]]+|\[\d+\]", field):
            found = _child(node, step)
            if found is None:
                break
            line, node = found
        return line


def _child(node: yaml.Node, step: str) -> tuple[int, yaml.Node] | None:
    if isinstance(node, yaml.SequenceNode) and step.startswith("["):
        index = int(step[1:-1])
        if index < len(node.value):
            return node.value[index].start_mark.line + 1, node.value[index]
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == step:
                return key.start_mark.line + 1, value
    return None


def documents(text: str, file: str) -> list[Text]:
    """All documents of a file, empty ones left out; Lists are taken apart.

    Raises:
        SourceError: it is no YAML.
    """
    if len(text) > MAX_BYTES:
        raise SourceError(f"{file}: larger than {MAX_BYTES} bytes: this is no manifest")
    loader = _Loader(text)
    found: list[Text] = []
    try:
        number = 0
        while loader.check_node():
            node = loader.get_node()
            number += 1
            if node is None:
                break
            twice = tuple(_twice(node))
            value = loader.construct_document(node)
            if value is None:
                continue
            if isinstance(value, Mapping) and value.get("kind") == "List" and isinstance(value.get("items"), list):
                items = _child(node, "items")
                for item, inner in zip(value["items"], items[1].value if items else (), strict=True):
                    found.append(Text(file, number, inner.start_mark.line + 1, item, inner, twice))
                continue
            found.append(Text(file, number, node.start_mark.line + 1, value, node, twice))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{file}:{mark.line + 1}" if mark is not None else file
        raise SourceError(f"{where}: is no YAML: {error.problem or error.context}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise SourceError(f"{file}: is no YAML: {error}") from error
    finally:
        loader.dispose()
    return found


def _twice(node: yaml.Node) -> Iterator[tuple[str, int]]:
    todo, seen_nodes = [node], set()
    while todo:
        one = todo.pop()
        if id(one) in seen_nodes:
            continue  # an alias
        seen_nodes.add(id(one))
        if isinstance(one, yaml.MappingNode):
            seen: set[str] = set()
            for key, value in one.value:
                if isinstance(key, yaml.ScalarNode):
                    if key.value in seen:
                        yield key.value, key.start_mark.line + 1
                    seen.add(key.value)
                todo.append(value)
        elif isinstance(one, yaml.SequenceNode):
            todo += one.value
