"""From files to valid objects, or to messages that say what to write instead: file, line, field, value, remedy.

What the API server would refuse is refused here by the same models that its schemas are made from.
"""

import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from tierwise.api.base import InvalidObject
from tierwise.api.crds import KINDS
from tierwise.api.meta import API_VERSION, GROUP, ApiObject
from tierwise.preview.source import SourceError, Text, documents
from tierwise.runtime import served

Manifest: TypeAlias = dict[str, Any]
ObjectId: TypeAlias = tuple[str, str, str]  # kind, namespace, name

MODELS: dict[str, type[ApiObject[Any, Any]]] = {model.KIND.kind: model for model in KINDS}
SUFFIXES = {".yaml", ".yml", ".json"}
STDIN = "-"

_LABEL = re.compile(r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")
_SUBDOMAIN = re.compile(r"^(?=.{1,253}$)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")
_TOP = {"apiVersion", "kind", "metadata", "spec", "status"}
_METADATA = {
    "annotations",
    "creationTimestamp",
    "deletionGracePeriodSeconds",
    "deletionTimestamp",
    "finalizers",
    "generateName",
    "generation",
    "labels",
    "managedFields",
    "name",
    "namespace",
    "ownerReferences",
    "resourceVersion",
    "selfLink",
    "uid",
}


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """Something that a person has to change.

    Attributes:
        where: file and line. what: kind and name. field: path of it. value: what stands there; empty when nothing.
        remedy: what to write instead.
    """

    where: str
    what: str
    field: str
    value: str
    remedy: str

    def __str__(self) -> str:
        """One line."""
        named = ": ".join(part for part in (self.where, self.what, self.field) if part)
        return f"{named}: {self.remedy}" + (f" (is: {self.value})" if self.value else "")


@dataclass(slots=True)
class Loaded:
    """What was read.

    Attributes:
        objects: of our kinds, valid. places: where each stands. secrets: Secrets' names -> their keys.
        passed_over: documents of other kinds, and where. problems: what is not valid. files: how many were read.
    """

    objects: dict[ObjectId, Manifest] = field(default_factory=dict)
    places: dict[ObjectId, Text] = field(default_factory=dict)
    secrets: dict[tuple[str, str], frozenset[str]] = field(default_factory=dict)
    passed_over: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    files: int = 0

    def where(self, which: ObjectId, path: str = "") -> str:
        """File and line of a field of an object; empty for what is in no file."""
        text = self.places.get(which)
        return f"{text.file}:{text.line_of(path) if path else text.line}" if text is not None else ""


def in_order(problems: Iterable[Problem]) -> tuple[Problem, ...]:
    """By file and line, each once."""

    def place(problem: Problem) -> tuple[str, int, Problem]:
        file, _, line = problem.where.rpartition(":")
        return (file, int(line), problem) if line.isdigit() else (problem.where, 0, problem)

    return tuple(sorted(set(problems), key=place))


def read(paths: Iterable[str], namespace: str, *, keep_status: bool = False) -> Loaded:
    """Everything under these paths.

    Args:
        paths: files, folders (read recursively) or "-" for standard input.
        namespace: of objects that name none.
        keep_status: statuses in the files count (a dump of a cluster); else they are ignored, as the API server does.

    Raises:
        SourceError: a path can not be read. What is in the files never raises: it is a `Problem`.
    """
    loaded = Loaded()
    for name, text in _texts(paths):
        loaded.files += 1
        try:
            found = documents(text, name)
        except SourceError as error:
            where, _, remedy = str(error).partition(": ")
            loaded.problems.append(Problem(where, "", "", "", remedy))
            continue
        for document in found:
            _take(loaded, document, namespace, keep_status=keep_status)
    return loaded


def _texts(paths: Iterable[str]) -> Iterable[tuple[str, str]]:
    for given in paths:
        if given == STDIN:
            yield "stdin", sys.stdin.read()
            continue
        path = Path(given)
        if not path.exists():
            raise SourceError(f"{given}: there is no such file or folder")
        files = sorted(each for each in path.rglob("*") if each.suffix in SUFFIXES and each.is_file())
        for file in files if path.is_dir() else [path]:
            try:
                yield str(file), file.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise SourceError(f"{file}: can not be read: {error}") from error


def _take(loaded: Loaded, document: Text, namespace: str, *, keep_status: bool) -> None:
    where = f"{document.file}:{document.line}"
    value = document.value
    if not isinstance(value, Mapping) or not {"apiVersion", "kind"} <= value.keys():
        if isinstance(value, Mapping) and served.FIGURES & value.keys():
            loaded.passed_over.append(f"{where}: figures for --metrics")
        else:
            loaded.problems.append(Problem(where, "", "", "", "is no manifest: it needs apiVersion and kind"))
    elif str(value["apiVersion"]).partition("/")[0] != GROUP:
        _foreign(loaded, value, where, namespace)
    else:
        _ours(loaded, document, value, namespace, keep_status=keep_status)


def _metadata(value: Mapping[str, Any]) -> Mapping[str, Any]:
    metadata = value.get("metadata")
    return metadata if isinstance(metadata, Mapping) else {}


def _foreign(loaded: Loaded, value: Mapping[str, Any], where: str, namespace: str) -> None:
    """Of Secrets the names count, nothing else of other kinds does."""
    kind, metadata = str(value["kind"]), _metadata(value)
    name = str(metadata.get("name") or "")
    if kind == "Secret":
        keys = {*(value.get("data") or {}), *(value.get("stringData") or {})}
        loaded.secrets[str(metadata.get("namespace") or namespace), name] = frozenset(map(str, keys))
    else:
        loaded.passed_over.append(f"{where}: {kind} {name}")


def _ours(loaded: Loaded, document: Text, value: Mapping[str, Any], namespace: str, *, keep_status: bool) -> None:
    kind, version, metadata = str(value["kind"]), str(value["apiVersion"]), _metadata(value)
    name = str(metadata.get("name") or "")
    what = f"{kind} {name or '(unnamed)'}"

    def wrong(path: str, shown: object, remedy: str) -> None:
        at = f"{document.file}:{document.line_of(path)}"
        loaded.problems.append(Problem(at, what, path, "" if shown is None else repr(shown), remedy))

    count = len(loaded.problems)
    model = MODELS.get(kind)
    if model is None:
        wrong("kind", kind, f"is no kind of {GROUP}: write one of {', '.join(sorted(MODELS))}")
        return
    if version != API_VERSION:
        wrong("apiVersion", version, f"write {API_VERSION}")
    for key, line in document.twice:
        loaded.problems.append(
            Problem(f"{document.file}:{line}", what, key, "", "stands twice in the same mapping: keep one")
        )
    _envelope(value, metadata, wrong)
    body = {key: value[key] for key in value if key != "status" or keep_status}
    body["metadata"] = {**metadata, "namespace": metadata.get("namespace") or namespace}
    try:
        model.parse(body)
    except InvalidObject as error:
        for each in error.errors:
            if each.field in {problem.field for problem in loaded.problems[count:]}:
                continue  # `_envelope` has said it
            at = f"{document.file}:{document.line_of(each.field)}"
            loaded.problems.append(Problem(at, what, each.field, each.value, each.remedy))
    if len(loaded.problems) > count:
        return
    which = (kind, str(body["metadata"]["namespace"]), name)
    if which in loaded.objects:
        wrong("metadata.name", name, f"is also in {loaded.where(which)}: keep one, or give it another name")
        return
    loaded.objects[which] = body
    loaded.places[which] = document


def _envelope(value: Mapping[str, Any], metadata: Mapping[str, Any], wrong: Any) -> None:  # noqa: ANN401 - the caller's closure
    """What of an object the API server itself checks, whatever its kind."""
    for key in value:
        if key not in _TOP:
            wrong(str(key), None, "is not a field of this kind: remove it or correct its name")
    for key in metadata:
        if key not in _METADATA:
            wrong(f"metadata.{key}", None, "is not a field of metadata: remove it or correct its name")
    name, namespace = metadata.get("name"), metadata.get("namespace")
    if not isinstance(name, str) or not _SUBDOMAIN.match(name):
        wrong("metadata.name", name, 'write lower-case letters, digits, "-" and ".", at most 253')
    if namespace is not None and not (isinstance(namespace, str) and _LABEL.match(namespace)):
        wrong("metadata.namespace", namespace, 'write lower-case letters, digits and "-", at most 63')
    for field_name in ("labels", "annotations"):
        entries = metadata.get(field_name)
        if entries is None:
            continue
        if not isinstance(entries, Mapping):
            wrong(f"metadata.{field_name}", entries, "write a mapping of strings")
            continue
        for key, entry in entries.items():
            if not isinstance(entry, str):
                wrong(f"metadata.{field_name}.{key}", entry, "write a string: put it in quotes")
