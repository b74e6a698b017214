"""A string that is written stays a string: for PyYAML, for YAML 1.2 and for kubectl, which is asked itself."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tierwise import yaml_text

KUBECTL = Path(sys.executable).parent / "kubectl"

# The core schema of YAML 1.2.2, section 10.3.2.
CORE = re.compile(
    r"""(null|Null|NULL|~|)
    |(true|True|TRUE|false|False|FALSE)
    |[-+]?[0-9]+
    |0o[0-7]+
    |0x[0-9a-fA-F]+
    |[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?
    |[-+]?(\.inf|\.Inf|\.INF)
    |(\.nan|\.NaN|\.NAN)""",
    re.VERBOSE,
)
# What Go's reader makes no string of, by its source: words of YAML 1.1, and numbers with underscores anywhere.
GO_WORDS = {"y", "Y", "n", "N"} | {
    form for word in ("yes", "no", "on", "off", "true", "false", "null") for form in (word, word.title(), word.upper())
}

KNOWN = [
    *("1234567890123e12", "1234567812345678", "9999999999999999999999", "1e3", "1E3", "12e03", "1e+3", "1.5e-3"),
    *("0o17", "0O17", "017", "0x1F", "0X1f", "0b11", "-0b11", "1_000", "-_1", "+1", "+_1_", ".5", "-.5", "1.", "._5"),
    *("12:30:45", "190:20:30.15", "2026-11-26", "2026-1-2", "2026-11-26T12:00:00Z", "2026-11-26 12:00:00 +1"),
    *("", "~", "null", "Null", "NULL", "=", "<<", ".inf", "-.INF", "+.Inf", ".nan", ".NaN", "Infinity", "NaN"),
    *sorted(GO_WORDS),
    *("- a", "a: b", "a #b", "#a", "&a", "*a", "!a", "|", ">", "%a", "@a", "`a", "{a", "[a", "a,b", "'", '"', "\\"),
    *(" a", "a ", "a\n", "\na", "a\n\nb", " a\n b\n", "\t", "a\tb", "---", "...", "--- a", "?", "? a", ":", "a:"),
    *("\x85", "a\u2028b", "\ufeff", "\x00", "\x7f", "é", "日本", "🙂", "a\r\nb", "tier", "10m", "1.5Gi", "v1"),
]

likely_numbers = st.from_regex(
    r"[-+]?[0-9_]{1,20}([eE][-+]?[0-9]{1,3})?|[-+.0-9_eExXoObB:]{1,12}"
    r"|[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}([Tt ][0-9:.Z+-]{0,14})?",
    fullmatch=True,
)
cased_words = st.sampled_from(sorted({word.lower() for word in GO_WORDS} | {"~", ".inf", ".nan", "="})).flatmap(
    lambda word: st.sampled_from([word, word.upper(), word.title(), word.swapcase(), f"-{word}", f"+{word}"])
)
texts = st.one_of(likely_numbers, cased_words, st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
forms = st.sampled_from([{}, {"indented": True}, {"blocks": True}, {"sort_keys": True, "width": 20}])


def scalars(text: str) -> list[tuple[str, bool]]:
    """Each scalar of a document and whether it is written bare."""
    return [(token.value, token.plain) for token in yaml.scan(text, Loader=yaml.SafeLoader) if token.id == "<scalar>"]


def by_go(text: str) -> bool:
    """Whether Go's reader takes bare text for anything but a string; see `test_these_are_traps`."""
    bare = text.replace("_", "") if text[:1] in "+-.0123456789" else text
    number = re.compile(r"[-+]?(0[xX][0-9a-fA-F]+|0[bB][01]+|0[oO][0-7]+)")
    return bare in GO_WORDS or CORE.fullmatch(bare) is not None or number.fullmatch(bare) is not None


@given(texts, texts, forms)
@settings(max_examples=500)
def test_no_bare_scalar_is_anything_but_a_string(key: str, value: str, form: dict[str, Any]):
    written = yaml_text.dump({key: [value, {"in": value}]}, **form)
    assert yaml.safe_load(written) == {key: [value, {"in": value}]}
    for scalar, bare in scalars(written):
        assert not (bare and CORE.fullmatch(scalar)), written
        assert not (bare and by_go(scalar)), written


def test_known_traps_are_quoted_and_what_is_plain_stays_plain():
    for text in KNOWN:
        for scalar, bare in scalars(yaml_text.dump([text])):
            assert not (bare and (CORE.fullmatch(scalar) or by_go(scalar))), text
    assert yaml_text.dump(
        {"image": "vllm/vllm-openai:v0.24.0", "cpu": "10m", "max": 1, "x": 0.5, "b": True, "z": None}
    ) == ("image: vllm/vllm-openai:v0.24.0\ncpu: 10m\nmax: 1\nx: 0.5\nb: true\nz: null\n")


def kubectl(text: str) -> subprocess.CompletedProcess[str]:
    command = [KUBECTL, "label", "--local", "-f", "-", "-o", "json", "read=yes"]
    return subprocess.run(command, input=text, capture_output=True, text=True, timeout=60, check=False)


def config_map(texts: list[str]) -> dict[str, Any]:
    data = {f"n{i}": text for i, text in enumerate(texts)}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "all"}, "data": data}


many = st.lists(texts, min_size=50, max_size=200)


@given(many)
@settings(max_examples=15, deadline=None)
def test_kubectl_reads_what_was_written(more: list[str]):
    wanted = config_map([*KNOWN, *more])
    found = kubectl(yaml_text.dump(wanted))
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["data"] == wanted["data"]


@pytest.mark.parametrize("trap", ["1234567890123e12", "1234567812345678", "0o17", "1_000", "-_1", "y", "n", ".5", "1."])
def test_these_are_traps(trap: str):
    """Bare, kubectl takes them for something else: it refuses an annotation, and would change data."""
    assert by_go(trap)
    found = kubectl(f"apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: all, annotations: {{a: {trap}}}}}\n")
    assert found.returncode != 0
    assert "cannot unmarshal" in found.stderr


@given(st.lists(texts, max_size=3))
def test_a_stream_is_read_back_document_by_document(found: list[str]):
    documents = [{"a": text, "same": [text, text]} for text in found]
    assert list(yaml.safe_load_all(yaml_text.dump_all(documents))) == documents


def test_nothing_is_aliased():
    shared = {"a": ["b"]}
    assert "&" not in yaml_text.dump([shared, shared])
    assert "&" not in yaml_text.dump([shared, shared], indented=True)
