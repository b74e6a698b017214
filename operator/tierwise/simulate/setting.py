"""What is simulated: the users' objects as the planner sees them, and tiers and classes as they truly are."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tierwise.api.model_tier import ModelTier
from tierwise.api.namespace_budget import NamespaceBudget
from tierwise.api.routing_class import RoutingClass
from tierwise.api.routing_policy import RoutingPolicy
from tierwise.core import promise, quality
from tierwise.core.world import Key
from tierwise.errors import TierwiseError
from tierwise.sim.replica import Objective
from tierwise.simulate import engines
from tierwise.simulate.engines import ProfileFile
from tierwise.simulate.fluid import FluidClass, FluidTier

UID = "00000000-0000-0000-0000-000000000000"
KINDS: Mapping[str, type[ModelTier | RoutingPolicy | NamespaceBudget]] = {
    "ModelTier": ModelTier,
    "RoutingPolicy": RoutingPolicy,
    "NamespaceBudget": NamespaceBudget,
}


class SettingError(TierwiseError):
    """Manifests that can not be simulated: with object, field and remedy."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One namespace, to be simulated.

    Attributes:
        namespace: of all objects.
        objects: ModelTiers, RoutingPolicies and NamespaceBudgets by kind and key.
        tiers: as they truly are. models: tier -> where its replica model is from.
        classes: id -> (policy, class); an id is the class's name, or `policy/class` where there are several policies.
        floors: id -> least mean score; absent: none.
        references: id -> tier that "all-large" sends everything to; absent: none stated.
        currency: of all prices.
    """

    namespace: str
    tiers_of: Mapping[Key, ModelTier]
    policies: Mapping[Key, RoutingPolicy]
    budgets: Mapping[Key, NamespaceBudget]
    tiers: tuple[FluidTier, ...]
    models: Mapping[str, str]
    classes: Mapping[str, tuple[RoutingPolicy, RoutingClass]]
    floors: Mapping[str, float]
    references: Mapping[str, str]
    currency: str

    def allowed(self, name: str) -> tuple[str, ...]:
        """Tiers of a class whose clearance suffices for its requests."""
        policy, spec = self.classes[name]
        needed = policy.spec.class_sensitivity(spec)
        return tuple(
            ref.name
            for ref in spec.tiers
            if self.tiers_of[Key(self.namespace, ref.name)].spec.effective_clearance >= needed
        )

    def quality(self, name: str) -> dict[str, float]:
        """Tier -> declared score in the task of a class, of those that it may use and of its reference."""
        task = self.classes[name][1].task
        names = {*self.allowed(name), *([self.references[name]] if name in self.references else [])}
        scores = {key.name: tier.spec.score(task) for key, tier in self.tiers_of.items() if key.name in names}
        return {tier: float(score) for tier, score in scores.items() if score is not None}

    def order(self, name: str) -> tuple[str, ...]:
        """Tiers of a class in the order of fallback."""
        spec, allowed = self.classes[name][1], self.allowed(name)
        return tuple(tier for tier in spec.fallback.order or [ref.name for ref in spec.tiers] if tier in allowed)

    def fluid_class(self, name: str, p95_prompt: float, output_factor: Mapping[str, float]) -> FluidClass:
        """A class as it truly is."""
        wanted = self.classes[name][1].objective
        limits = (
            (None, None, None)
            if wanted is None
            else tuple(each.seconds if each is not None else None for each in _limits(wanted))
        )
        known = self.quality(name)
        if name not in self.floors:
            # Without a floor nobody needs the scores: every tier will do.
            known = dict.fromkeys(self.allowed(name), 1.0)
        return FluidClass(name, Objective(*limits), p95_prompt, known, output_factor)


def _limits(wanted: Any) -> tuple[Any, Any, Any]:  # noqa: ANN401 - durations or None
    return wanted.ttft_p95, wanted.inter_token_p95, wanted.latency_p95


def make(found: Iterable[Mapping[str, Any]], profile: ProfileFile | None, namespace: str | None = None) -> Setting:
    """The setting of one namespace.

    Args:
        found: manifests of any kinds; others than ours are passed over.
        profile: replica models from a file.
        namespace: which, where the manifests are of several.

    Raises:
        SettingError: nothing to simulate, several namespaces, or a tier without a price.
        InvalidObject: a manifest does not follow the API.
        ProfileError: a tier without a replica model.
    """
    shelves: dict[str, dict[Key, Any]] = {kind: {} for kind in KINDS}
    for body in found:
        kind = str(body["kind"])
        if kind not in KINDS or not str(body["apiVersion"]).startswith("tierwise.dev/"):
            continue
        metadata = {"namespace": namespace or "default", **(body.get("metadata") or {})}
        metadata |= {"uid": UID, "generation": 1}
        item = KINDS[kind].parse({**body, "metadata": metadata, "status": {}})
        shelves[kind][Key(item.metadata.namespace, item.metadata.name)] = item
    chosen = _namespace(shelves, namespace)
    mine = {
        kind: {key: item for key, item in held.items() if key.namespace == chosen} for kind, held in shelves.items()
    }
    if not mine["RoutingPolicy"] or not mine["ModelTier"]:
        raise SettingError("the manifests hold no ModelTier with a RoutingPolicy; name their files or folder with -f")
    return _setting(chosen, mine, profile)


def _namespace(shelves: Mapping[str, Mapping[Key, Any]], wanted: str | None) -> str:
    names = sorted({key.namespace for key in shelves["RoutingPolicy"]})
    if wanted is not None:
        return wanted
    if len(names) > 1:
        raise SettingError(f"the policies are of several namespaces, {', '.join(names)}: choose one with -n")
    return names[0] if names else "default"


def _setting(namespace: str, mine: Mapping[str, Mapping[Key, Any]], profile: ProfileFile | None) -> Setting:
    tiers: dict[Key, ModelTier] = dict(sorted(mine["ModelTier"].items()))
    policies: dict[Key, RoutingPolicy] = dict(sorted(mine["RoutingPolicy"].items()))
    known = {key.name for key in tiers}
    classes: dict[str, tuple[RoutingPolicy, RoutingClass]] = {}
    for key, policy in policies.items():
        for spec in policy.spec.classes:
            missing = sorted({ref.name for ref in spec.tiers} - known)
            if missing:
                raise SettingError(
                    f"class {spec.name} of policy {key.name} names tier {missing[0]}, which no manifest is"
                )
            classes[spec.name if len(policies) == 1 else f"{key.name}/{spec.name}"] = (policy, spec)
    used = {ref.name for _, spec in classes.values() for ref in spec.tiers}
    kept = {key: tier for key, tier in tiers.items() if key.name in used}
    sources: dict[str, str] = {}
    truth = tuple(_tier(tier, profile, sources) for tier in kept.values())
    currencies = sorted({money for tier in kept.values() if (money := _currency(tier))})
    if len(currencies) > 1:
        raise SettingError(f"prices are in {' and '.join(currencies)}: state all in one currency")
    references = {
        name: policy.spec.reference_tier
        for name, (policy, _) in classes.items()
        if policy.spec.reference_tier is not None
    }
    floors: dict[str, float] = {}
    made = Setting(
        namespace, kept, policies, dict(mine["NamespaceBudget"]), truth, sources, classes, floors, references,
        currencies[0] if currencies else "USD",
    )  # fmt: skip
    for name in classes:
        asked = _floor(made, name)
        if asked is not None:
            floors[name] = asked
    return made


def _floor(setting: Setting, name: str) -> float | None:
    policy, spec = setting.classes[name]
    scores = {tier: quality.Score(score) for tier, score in setting.quality(name).items()}
    asked = promise.floor_of(policy, spec, scores)
    return None if asked is None else asked.value


def _currency(tier: ModelTier) -> str | None:
    for side in (tier.spec.in_cluster, tier.spec.external):
        if side is not None and side.price is not None:
            return str(side.price.currency)
    return None


def _tier(tier: ModelTier, profile: ProfileFile | None, sources: dict[str, str]) -> FluidTier:
    name = tier.metadata.name
    inside, outside = tier.spec.in_cluster, tier.spec.external
    if inside is not None:
        if inside.price is None:
            raise SettingError(
                f"tier {name}: spec.inCluster.price is missing, so its cost is unknown; state perReplicaHour"
            )
        model = engines.model_of(tier, profile)
        sources[name] = model.source
        startup = model.startup_seconds
        return FluidTier(
            name,
            model.params,
            price_per_hour=float(inside.price.per_replica_hour),
            startup_seconds=float(inside.replicas.startup_seconds) if startup is None else startup,
        )
    if outside is None or outside.price is None:
        raise SettingError(
            f"tier {name}: spec.external.price is missing, so its cost is unknown; state it per million tokens"
        )
    sources[name] = "a provider: its latency is not modelled, what it answers counts as within the objective"
    price = outside.price
    return FluidTier(
        name,
        price_in=float(price.input_per_million_tokens),
        price_out=float(price.output_per_million_tokens),
    )


def class_named(setting: Setting, name: str) -> str:
    """The id of a class that a user names as `class` or `policy/class`.

    Raises:
        SettingError: there is none, or several.
    """
    if name in setting.classes:
        return name
    policy, _, short = name.rpartition("/")
    found = [
        each
        for each, (owner, spec) in setting.classes.items()
        if spec.name == short and policy in {"", owner.metadata.name}
    ]
    if len(found) == 1:
        return found[0]
    why = "names several classes" if found else "is no class of the policies"
    raise SettingError(f"{name!r} {why}; there are {', '.join(setting.classes)}")


def several(setting: Setting, pairs: Sequence[str], option: str) -> dict[str, float]:
    """`CLASS=NUMBER` options, or a bare number for all classes.

    Raises:
        SettingError: no class of that name, or no number.
    """
    found: dict[str, float] = {}
    for pair in pairs:
        name, _, text = pair.rpartition("=")
        try:
            value = float(text)
        except ValueError as error:
            raise SettingError(f"{option} {pair}: {text!r} is no number; write CLASS=NUMBER") from error
        if value <= 0:
            raise SettingError(f"{option} {pair}: must be above 0")
        names = [class_named(setting, name)] if name else list(setting.classes)
        found |= dict.fromkeys(names, value)
    return found
