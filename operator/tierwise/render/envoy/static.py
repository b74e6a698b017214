"""All resources in one bootstrap, with nothing left to fetch: what `envoy --mode validate` can read whole.

Validation contacts nobody. Each reference to the configuration service is replaced by what it would bring; kinds of
resource are told apart by the fields that refer to them, so those that come later need no change but for new kinds of
reference.
"""

from collections.abc import Mapping
from typing import Any

from tierwise.render.envoy import unattended
from tierwise.render.envoy.bundle import Resource
from tierwise.render.envoy.protos import CLUSTER, ENDPOINTS, EXTENSION, LISTENER, ROUTES, SCOPE, SECRET

Resources = Mapping[str, Mapping[str, Resource]]


def bootstrap(base: Mapping[str, Any], resources: Resources, files: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The bootstrap.

    Args:
        base: the gateway's own, as `bootstrap.bootstrap` makes it.
        resources: type URL -> name -> resource.
        files: path on the gateway -> path here, of files that are not where they are on a gateway.
    """
    at_home = _AtHome(resources, files or {})
    static = base["static_resources"]
    here: dict[str, list[Any]] = {
        "clusters": [
            *(at_home.cluster(each) if "eds_cluster_config" in each else each for each in static["clusters"]),
            *map(at_home.cluster, _of(resources, CLUSTER)),
        ],
        "listeners": [*static["listeners"], *map(at_home.plain, _of(resources, LISTENER))],
        "secrets": [at_home.plain(each) for each in _of(resources, SECRET)],
    }
    kept = {name: value for name, value in base.items() if name != "dynamic_resources"}
    return {**kept, "static_resources": here, "layered_runtime": unattended.attended()}


def _of(resources: Resources, type_url: str) -> list[Resource]:
    return [resource for _, resource in sorted(resources.get(type_url, {}).items())]


class _AtHome:
    def __init__(self, resources: Resources, files: Mapping[str, str]) -> None:
        self._resources = resources
        self._files = files

    def plain(self, resource: Resource) -> dict[str, Any]:
        """A resource as it stands in a bootstrap: its type is known from where it stands."""
        return {name: self._replaced(value) for name, value in resource.items() if name != "@type"}

    def cluster(self, resource: Resource) -> dict[str, Any]:
        """A cluster with its endpoints."""
        found = self.plain(resource)
        if found.pop("eds_cluster_config", None) is None:
            return found
        name = str(found["name"])
        assigned = self._resources.get(ENDPOINTS, {}).get(name, {"cluster_name": name})
        return {**found, "type": "STATIC", "load_assignment": self.plain(assigned)}

    def _replaced(self, found: Any) -> Any:  # noqa: ANN401 - any JSON value
        if isinstance(found, list):
            return [self._replaced(each) for each in found]
        if not isinstance(found, Mapping):
            return found
        here = {name: self._replaced(value) for name, value in found.items() if name != "sds_config"}
        if here.get("filename") in self._files:
            here["filename"] = self._files[here["filename"]]
        if "scoped_rds" in here:
            del here["scoped_rds"], here["rds_config_source"]
            here["scoped_route_configurations_list"] = {"scoped_route_configurations": self._scopes()}
        if "config_discovery" in here:
            del here["config_discovery"]
            brought = self._resources.get(EXTENSION, {}).get(str(here["name"]))
            if brought is not None:
                here["typed_config"] = self._replaced(brought["typed_config"])
        return here

    def _scopes(self) -> list[dict[str, Any]]:
        routes = self._resources.get(ROUTES, {})
        found = []
        for scope in _of(self._resources, SCOPE):
            of_scope = routes.get(str(scope["route_configuration_name"]))
            if of_scope is not None:
                found.append({"name": scope["name"], "key": scope["key"], "route_configuration": self.plain(of_scope)})
        return found
