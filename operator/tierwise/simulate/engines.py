"""Which replica model a tier's engine has: from a file, from its environment, or from the built-in table by its model.

Two forms of file. YAML or JSON: tier -> figures,

    large: {a: 12.4, b: 0.12, g: 0.05, p0: 36, p1: 31, p2: 0.35, kvTokens: 2800000, startupSeconds: 300}
    small: {profile: qwen3-8b/h100}

or CSV with the columns of a fit (`model,system,tp,itl_alpha_ms,...`), whose times are multiplied by `SLOWDOWN`.
"""

import csv
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from tierwise.api.model_tier import ModelTier
from tierwise.errors import TierwiseError
from tierwise.sim import profiles
from tierwise.sim.profiles import SLOWDOWN
from tierwise.sim.replica import ReplicaModelError, ReplicaParams

PROFILE_VARIABLE = "TIERWISE_SIM_PROFILE"
_TIMES = ("a", "b", "g", "p0", "p1", "p2")
_CSV = {
    "a_ms": "itl_alpha_ms",
    "b_ms": "itl_beta_ms_per_seq",
    "g_ms": "itl_gamma_ms_per_1k_kv_tokens",
    "p0_ms": "prefill_p0_ms",
    "p1_ms": "prefill_p1_ms_per_1k_tok",
    "p2_ms": "prefill_p2_ms_per_1M_tok2",
}
ANY_KV_TOKENS = 1_000_000_000
"""A KV cache that a fit says nothing about is taken not to bind, and that is said."""


class ProfileError(TierwiseError):
    """A tier without a replica model, or a file of them that can not be read: with field, value and remedy."""


@dataclass(frozen=True, slots=True)
class EngineModel:
    """The replica model of one tier.

    Attributes:
        params: as the replica truly is. source: where they are from, for people.
        startup_seconds: from the file; None: the tier's own.
    """

    params: ReplicaParams
    source: str
    startup_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class ProfileFile:
    """A file of profiles.

    Attributes:
        path: where it is. entries: tier -> figures, of the YAML or JSON form. rows: of the CSV form.
    """

    path: Path
    entries: Mapping[str, Mapping[str, Any]]
    rows: Sequence[Mapping[str, str]] = ()


def read(path: Path) -> ProfileFile:
    """Read either form.

    Raises:
        ProfileError: it can not be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".csv":
            rows = list(csv.DictReader(text.splitlines()))
            missing = [name for name in ("model", *_CSV.values()) if rows and name not in rows[0]]
            if missing or not rows:
                raise ProfileError(f"{path}: line 1 names no column {', '.join(missing) or 'at all'}; add it")
            return ProfileFile(path, {}, rows)
        body = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, ValueError, yaml.YAMLError) as error:
        raise ProfileError(f"{path}: can not be read ({error}); give a CSV, YAML or JSON file") from error
    if not isinstance(body, dict) or not all(isinstance(entry, dict) for entry in body.values()):
        raise ProfileError(f"{path}: must map each tier to its figures, such as large: {{profile: qwen3-8b/h100}}")
    return ProfileFile(path, body)


def model_of(tier: ModelTier, file: ProfileFile | None) -> EngineModel:
    """The replica model of an in-cluster tier.

    Raises:
        ProfileError: nothing says which; with what to do.
    """
    name = tier.metadata.name
    inside = tier.spec.in_cluster
    if inside is None:
        raise ProfileError(f"tier {name} is external: it has no replicas")
    if file is not None and name in file.entries:
        return _entry(file.path, name, file.entries[name])
    model = inside.model_source or tier.spec.model
    width = _tensor_parallel(inside.args)
    if file is not None and file.rows:
        found = _row(file, tier, model, width)
        if found is not None:
            return found
    named = next((entry.value for entry in inside.env if entry.name == PROFILE_VARIABLE and entry.value), None)
    if named is not None:
        return EngineModel(profiles.profile(named).params, f"{named} of the built-in table, named in the tier's env")
    known = profiles.profile_for_model(model, width)
    if known is not None:
        source = f"{known.name} of the built-in table, by the model's name {model}"
        return EngineModel(known.params, source)
    raise ProfileError(
        f"tier {name}: nothing says how fast {model!r} is. Give --profile FILE with an entry {name}: "
        f"{{a: .., b: .., g: .., p0: .., p1: .., p2: .., kvTokens: ..}} in milliseconds (docs/simulator.md), or set "
        f"{PROFILE_VARIABLE} in spec.inCluster.env to one of {', '.join(sorted(profiles.PROFILES))}"
    )


def _entry(path: Path, name: str, entry: Mapping[str, Any]) -> EngineModel:
    startup = entry.get("startupSeconds")
    known = {*_TIMES, "kvTokens", "maxSequences", "startupSeconds", "profile", "factor"}
    strangers = sorted(set(entry) - known)
    if strangers:
        raise ProfileError(
            f"{path}: {name}.{strangers[0]} is no figure of a profile; there are {', '.join(sorted(known))}"
        )
    try:
        if "profile" in entry:
            params = profiles.profile(str(entry["profile"])).params
        else:
            missing = [field for field in (*_TIMES, "kvTokens") if field not in entry]
            if missing:
                raise ProfileError(
                    f"{path}: {name}.{missing[0]} is missing; a profile has {', '.join(_TIMES)}, kvTokens"
                )
            times = {f"{field}_ms": float(entry[field]) for field in _TIMES}
            params = _params(times, int(entry["kvTokens"]))
        if "maxSequences" in entry:
            params = replace(params, max_sequences=int(entry["maxSequences"]))
        params = params.scaled(float(entry.get("factor", 1.0)))
        seconds = None if startup is None else float(startup)
    except (TypeError, ValueError, ReplicaModelError) as error:
        raise ProfileError(f"{path}: {name}: {error}; correct the figure") from error
    return EngineModel(params, f"{path.name}, entry {name}", seconds)


def _row(file: ProfileFile, tier: ModelTier, model: str, width: int) -> EngineModel | None:
    """The fit of a tier's model: where there are several, the one whose machine the tier names and of its width."""
    base = model.rsplit("/", maxsplit=1)[-1].lower()
    rows = [row for row in file.rows if row["model"].rsplit("/", maxsplit=1)[-1].lower() == base]
    if not rows:
        return None
    words = json.dumps(tier.spec.dump()).lower()
    named = [row for row in rows if re.split(r"[_-]", row.get("system", "").lower())[0] in words]
    wide = [row for row in named or rows if int(row.get("tp") or 1) == width]
    chosen = wide or named or rows
    if len(chosen) > 1:
        some = ", ".join(f"{row.get('system')} x {row.get('tp')}" for row in chosen)
        raise ProfileError(
            f"tier {tier.metadata.name}: {file.path.name} has several fits of {model}: {some}. Say which in the tier: "
            "--tensor-parallel-size in args, and the machine's name in a node selector or label of podTemplate; or "
            "give its figures in a YAML profile"
        )
    row = chosen[0]
    times = {ours: float(row[theirs]) for ours, theirs in _CSV.items()}
    place = f"{row['model']} on {row.get('tp', '1')} x {row.get('system', '?')}"
    held = row.get("kv_tokens") or _kv_tokens(row)
    kept = int(held) if held else ANY_KV_TOKENS
    note = "" if held else "; its KV cache is not in the file and is taken not to bind"
    params = _params(times, kept).scaled(SLOWDOWN)
    return EngineModel(params, f"{file.path.name}, {place}, times x {SLOWDOWN:g}{note}")


def _params(times: Mapping[str, float], kv_tokens: int) -> ReplicaParams:
    a, b, g, p0, p1, p2 = (times[f"{name}_ms"] for name in _TIMES)
    return ReplicaParams(a, b, g, p0, p1, p2, kv_tokens)


def _kv_tokens(row: Mapping[str, str]) -> int | None:
    """Of the built-in table, where it has the same model on the same machines."""
    for known in profiles.PROFILES.values():
        same = known.model.lower() == row["model"].lower() and row.get("system", "").lower().startswith(known.gpu)
        if same and str(known.gpus) == row.get("tp"):
            return known.params.kv_tokens
    return None


def _tensor_parallel(args: Sequence[str]) -> int:
    for place, arg in enumerate(args):
        name, _, value = arg.partition("=")
        if name in {"--tensor-parallel-size", "-tp", "--tp-size"}:
            text = value or (args[place + 1] if place + 1 < len(args) else "")
            return int(text) if text.isdigit() else 1
    return 1
