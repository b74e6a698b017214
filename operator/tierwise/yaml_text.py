"""The one writer of YAML: a string stays a string for every reader.

PyYAML reads YAML 1.1 by its own rules and quotes only what it would itself misread. kubectl, Helm and Argo CD read
YAML with Go's rules, others by the core schema of YAML 1.2: to these `1e3`, `0o17`, `-_1` or `y` are no strings.
"""

import re
from collections.abc import Iterable
from typing import Any

import yaml

# Everything that starts like a number and has only characters that a number, a time or a date has: far more than any
# reader takes for one, since quotes cost nothing.
_LIKE_A_NUMBER = re.compile(r"[-+.0-9_][-+.,:_ 0-9A-Fa-fXxOoTtZz]*")
_WORDS = {"", "~", "null", "true", "false", "yes", "no", "on", "off", "y", "n", "nan", "inf", "=", "<<"}
# Line breaks to some readers and not to others, and the byte order mark: only double quotes escape them.
_ESCAPED = re.compile("[\x85\u2028\u2029\ufeff]")


class _Dumper(yaml.SafeDumper):
    """Repeats instead of aliasing: for people and for plain parsers."""

    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002 - the base's signature
        return True


class _Indented(_Dumper):
    """Indents lists below their key."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:  # noqa: ARG002, FBT001, FBT002 - the base's signature
        super().increase_indent(flow, False)


class _Blocks(_Dumper):
    """Texts of several lines as blocks, so that a difference of two shows the line that changed."""


def ambiguous(text: str) -> bool:
    """Whether some reader of YAML would take the text, unquoted, for anything but a string."""
    bare = text.lower().lstrip("+-.")
    return text.lower() in _WORDS or bare in _WORDS or _LIKE_A_NUMBER.fullmatch(text) is not None


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    style = '"' if _ESCAPED.search(text) else "'" if ambiguous(text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


def _block(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    if "\n" in text and not _ESCAPED.search(text):
        return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|")
    return _text(dumper, text)


_Dumper.add_representer(str, _text)
_Indented.add_representer(str, _text)
_Blocks.add_representer(str, _block)


def dump(
    value: Any,  # noqa: ANN401 - any JSON value
    *,
    sort_keys: bool = False,
    width: int = 120,
    indented: bool = False,
    blocks: bool = False,
) -> str:
    """A JSON value (mappings, lists, strings, numbers, booleans, None) as one YAML document.

    Args:
        value: what to write.
        sort_keys: whether mappings are sorted by key.
        width: characters after which a line is folded where it can be.
        indented: indent lists below their key; not together with `blocks`.
        blocks: write texts of several lines as blocks.

    Raises:
        yaml.representer.RepresenterError: a value of another type.
    """
    dumper = _Blocks if blocks else _Indented if indented else _Dumper
    return _written([value], dumper, sort_keys=sort_keys, width=width)


def dump_all(values: Iterable[Any]) -> str:
    """Several JSON values as a stream of YAML documents, as `kubectl apply -f -` takes it.

    Raises:
        yaml.representer.RepresenterError: a value of another type.
    """
    return _written(list(values), _Dumper, explicit_start=True)


def _written(
    values: list[Any],
    dumper: type[yaml.SafeDumper],
    *,
    sort_keys: bool = False,
    width: int = 120,
    explicit_start: bool | None = None,
) -> str:
    text: str = yaml.dump_all(  # noqa: TID251 - the one place
        values,
        Dumper=dumper,
        sort_keys=sort_keys,
        width=width,
        allow_unicode=True,
        explicit_start=explicit_start,
    )
    return text
