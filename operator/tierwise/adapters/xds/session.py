"""One gateway's stream: what it has, what it waits for, and what it may be sent next. No I/O.

Order makes the difference between a change and an outage. For each namespace:

1. clusters that are new or changed, then their endpoints and credentials;
2. when the gateway has acknowledged all of these: scopes and routes that use them;
3. when it has acknowledged the routes: removal of the clusters that they no longer use.

Every response holds resources of one owner, so that a refusal can be attributed by its nonce, and at most one route
configuration, because a bad one beside a good one can lose the good one. The one exception is the first answer about
scopes: the listener starts to take requests after it, so it holds all of them.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from tierwise.adapters.xds.catalog import SHARED, Served
from tierwise.render.envoy.fields import DEFAULT_ROUTES
from tierwise.render.envoy.protos import CLUSTER, ENDPOINTS, EXTENSION, LISTENER, ROUTES, SCOPE, SECRET, Encoded

WILDCARD = frozenset({CLUSTER, LISTENER, SCOPE})
TYPES = (CLUSTER, ENDPOINTS, SECRET, LISTENER, EXTENSION, SCOPE, ROUTES)
_UNOWNED = "?"
"""Owner of scopes that a gateway brought along and nobody has claimed yet; no namespace has this name."""
_UNKNOWN = "?"
"""Version of a resource of which the gateway may have the old or the new one."""


def owner_of(name: str) -> str:
    """Whose a cluster, its endpoints, its credential or a route configuration is."""
    first = name.split("/", 1)[0]
    return SHARED if name == DEFAULT_ROUTES or "." in first else first  # a namespace's name has no dot


@dataclass(frozen=True, slots=True)
class Request:
    """What a gateway says: a subscription, an acknowledgement or a refusal.

    Attributes:
        type_url: of the resources.
        subscribe, unsubscribe: names. `*`, or no name in the first request, means all.
        versions: what it has already, in the first request of a type.
        nonce: of the response that it answers; empty when it answers none.
        error: why it refuses; None when it does not.
    """

    type_url: str
    subscribe: tuple[str, ...] = ()
    unsubscribe: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    nonce: str = ""
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Response:
    """What a gateway is sent.

    Attributes:
        type_url: of the resources. nonce: names the response.
        resources: new or changed. removed: names that are gone.
        owners: whose resources, with the hash of the bundle that they are from.
    """

    type_url: str
    nonce: str
    resources: tuple[Encoded, ...]
    removed: tuple[str, ...]
    owners: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Refused:
    """A refusal with whose it is.

    Attributes:
        owner, hash: the bundle. type_url: what kind of resource. message: Envoy's words.
    """

    owner: str
    hash: str
    type_url: str
    message: str


@dataclass(frozen=True, slots=True)
class Heard:
    """What came out of a gateway's request.

    Attributes:
        owners: those whose resources it acknowledged or refused. refused: what it refused.
    """

    owners: frozenset[str] = frozenset()
    refused: tuple[Refused, ...] = ()


@dataclass(slots=True)
class _Type:
    """State of one resource type.

    Attributes:
        started: the gateway has asked for it. wildcard: for all of it. names: for these.
        known: name -> version that it has or is on its way to it. acked: that it has for sure.
        rejected: name -> version that it refused and the bundle with which it did, not to be sent again: one bad
            resource has the whole response refused, and the others may be fine in another bundle.
        answered: a response was sent.
    """

    started: bool = False
    wildcard: bool = False
    names: set[str] = field(default_factory=set)
    known: dict[str, str] = field(default_factory=dict)
    acked: dict[str, str] = field(default_factory=dict)
    rejected: dict[str, tuple[str, str]] = field(default_factory=dict)
    answered: bool = False

    def wants(self, name: str) -> bool:
        return self.wildcard or name in self.names

    def lacks(self, resource: Encoded, of: str) -> bool:
        """It shall be sent, with the bundle of this hash."""
        known = self.known.get(resource.name) == resource.version
        return self.wants(resource.name) and not known and not self.refused(resource, of)

    def refused(self, resource: Encoded, of: str) -> bool:
        """It was refused, in this version and with this bundle."""
        return self.rejected.get(resource.name) == (resource.version, of)

    def has(self, resource: Encoded) -> bool:
        """It has acknowledged this version."""
        return self.acked.get(resource.name) == resource.version


class Session:
    """State of one stream; `receive` what the gateway says, then send what `respond` gives."""

    def __init__(self) -> None:
        self._types = {type_url: _Type() for type_url in TYPES}
        self._pending: dict[str, Response] = {}
        self._nonce = 0
        self._dirty: set[str] = set()
        self._all_dirty = False
        self._clusters: dict[str, set[str]] = {}  # by owner, those that the gateway has or is getting
        self._scopes_of: dict[str, set[str]] = {}
        self._first_scopes = True

    def touch(self, owners: Iterable[str]) -> None:
        """What is served of these owners has changed."""
        self._dirty.update(owners)

    def receive(self, request: Request) -> Heard:
        """Take in what the gateway says."""
        state = self._types.get(request.type_url)
        if state is None:
            return Heard()
        heard = self._answer(request, state) if request.nonce else Heard()
        self._subscribe(request, state)
        return heard

    def acknowledged(self, served: Served) -> bool:
        """The gateway has all clusters, scopes and routes of an owner, in these versions, and none that are gone."""
        return all(
            self._types[type_url].has(resource)
            for type_url in (CLUSTER, SCOPE, ROUTES, LISTENER)
            for resource in served.of(type_url).values()
        )

    def respond(self, served: Mapping[str, Served]) -> list[Response]:
        """All that may be sent now, in the order in which to send it."""
        dirty = sorted(self._dirty.union(served, self._clusters) if self._all_dirty else self._dirty)
        self._dirty.clear()
        self._all_dirty = False
        responses: list[Response] = []
        for type_url in (CLUSTER, ENDPOINTS, SECRET, LISTENER, EXTENSION):
            for owner in dirty:
                responses += self._updates(type_url, owner, served.get(owner))
            responses += self._nothing(type_url)
        responses += self._scopes(dirty, served)
        for owner in dirty:
            found = served.get(owner)
            if found is not None and self._usable(found):
                responses += self._updates(ROUTES, owner, found)
        for owner in dirty:
            responses += self._remove_clusters(owner, served.get(owner))
        return responses

    def _answer(self, request: Request, state: _Type) -> Heard:
        response = self._pending.pop(request.nonce, None)
        if response is None:
            return Heard()
        self._dirty.update(response.owners)
        if request.error is None:
            for resource in response.resources:
                state.acked[resource.name] = resource.version
                state.rejected.pop(resource.name, None)
            for name in response.removed:
                state.acked.pop(name, None)
            return Heard(frozenset(response.owners))
        for resource in response.resources:
            if state.known.get(resource.name) == resource.version:
                state.known[resource.name] = _UNKNOWN
            if request.type_url in {CLUSTER, SCOPE}:
                state.acked.pop(resource.name, None)  # of several resources some may have been taken
        for name in response.removed:
            state.known.setdefault(name, _UNKNOWN)
        if len(response.owners) > 1:
            return Heard()  # each owner's will be sent by itself, and show whose it was
        for of in response.owners.values():
            state.rejected.update({resource.name: (resource.version, of) for resource in response.resources})
        refused = tuple(Refused(owner, of, request.type_url, request.error) for owner, of in response.owners.items())
        return Heard(frozenset(response.owners), refused)

    def _subscribe(self, request: Request, state: _Type) -> None:
        type_url = request.type_url
        first = not state.started
        if first:
            state.started = True
            state.wildcard = type_url in WILDCARD and not request.subscribe
            state.known.update(request.versions)
            state.acked.update(request.versions)
            self._all_dirty = True
            if type_url == CLUSTER:
                for name in request.versions:
                    self._clusters.setdefault(owner_of(name), set()).add(name)
            if type_url == SCOPE and request.versions:
                self._first_scopes = False  # it takes requests already
                self._scopes_of[_UNOWNED] = {*request.versions}
        for name in request.subscribe:
            if name == "*":
                state.wildcard = True
                continue
            if not first:
                state.known.pop(name, None)  # asked again: it shall get it again
            state.names.add(name)
            self._dirty.add(owner_of(name))
        for name in request.unsubscribe:
            if name == "*":
                state.wildcard = False
            state.names.discard(name)
            state.known.pop(name, None)
            state.acked.pop(name, None)
            state.rejected.pop(name, None)
            self._dirty.add(owner_of(name))

    def _updates(self, type_url: str, owner: str, served: Served | None) -> list[Response]:
        """Resources of one owner that the gateway lacks, in one response."""
        state = self._types[type_url]
        if served is None or not state.started:
            return []
        lacking = tuple(resource for resource in served.of(type_url).values() if state.lacks(resource, served.hash))
        if not lacking:
            return []
        if type_url == CLUSTER:
            self._clusters.setdefault(owner, set()).update(resource.name for resource in lacking)
            for resource in lacking:
                # A changed cluster waits for its endpoints anew, and gets them only if they are sent anew.
                self._types[ENDPOINTS].known.pop(resource.name, None)
                self._types[ENDPOINTS].acked.pop(resource.name, None)
        return [self._send(type_url, lacking, (), {owner: served.hash})]

    def _nothing(self, type_url: str) -> list[Response]:
        """A gateway that asks for all and is told nothing waits for ever."""
        state = self._types[type_url]
        if state.wildcard and not state.answered:
            return [self._send(type_url, (), (), {})]
        return []

    def _usable(self, served: Served) -> bool:
        """All that the routes of an owner use is there: clusters in this version, endpoints and credentials in any.

        Endpoints of a cluster that a gateway brings along are no matter of routes, and an older gateway lacks it.
        """
        used = {ENDPOINTS: served.of(ENDPOINTS).keys() & served.of(CLUSTER).keys(), SECRET: served.of(SECRET).keys()}
        return all(self._types[CLUSTER].has(resource) for resource in served.of(CLUSTER).values()) and all(
            name in self._types[type_url].acked for type_url, names in used.items() for name in names
        )

    def _decided(self, served: Served) -> bool:
        """Nothing that the routes of an owner use is still on its way."""
        return self._usable(served) or any(
            self._types[type_url].refused(resource, served.hash)
            for type_url in (CLUSTER, ENDPOINTS, SECRET)
            for resource in served.of(type_url).values()
        )

    def _scopes(self, dirty: list[str], served: Mapping[str, Served]) -> list[Response]:
        state = self._types[SCOPE]
        if not state.started:
            return []
        if self._first_scopes:
            if not all(self._decided(each) for each in served.values()):
                return []
            self._first_scopes = False
            found = [each for each in served.values() if self._usable(each)]
            return [self._send_scopes(tuple(r for each in found for r in each.of(SCOPE).values()), (), found)]
        responses = []
        for owner in [*dirty, _UNOWNED]:
            each = served.get(owner)
            wanted = each.of(SCOPE) if each is not None else {}
            left = self._scopes_of.get(owner, set()) - {*wanted}
            if left:
                # A hostname may have moved to another namespace: its scope is replaced there, not removed here.
                left -= {name for other in served.values() for name in other.of(SCOPE)}
            usable = each is not None and self._usable(each)
            of = each.hash if each is not None else ""
            lacking = tuple(resource for resource in wanted.values() if state.lacks(resource, of)) if usable else ()
            if owner in self._scopes_of:
                self._scopes_of[owner] -= left
            if lacking or left:
                responses.append(self._send_scopes(lacking, tuple(sorted(left)), [each] if each is not None else []))
        return responses

    def _send_scopes(self, resources: tuple[Encoded, ...], removed: tuple[str, ...], of: list[Served]) -> Response:
        for each in of:
            names = {name for name in each.of(SCOPE) if any(name == resource.name for resource in resources)}
            for other in self._scopes_of.values():
                other.difference_update(names)
            self._scopes_of.setdefault(each.owner, set()).update(names)
        return self._send(SCOPE, resources, removed, {each.owner: each.hash for each in of})

    def _remove_clusters(self, owner: str, served: Served | None) -> list[Response]:
        """Clusters that no route uses any more."""
        wanted = served.of(CLUSTER) if served is not None else {}
        gone = tuple(sorted(self._clusters.get(owner, set()) - {*wanted}))
        if not gone or not self._routes_moved_on(owner, served):
            return []
        self._clusters[owner] -= {*gone}
        return [self._send(CLUSTER, (), gone, {owner: served.hash if served is not None else ""})]

    def _routes_moved_on(self, owner: str, served: Served | None) -> bool:
        """The gateway's routes of this owner are those that are served; it has none when none are."""
        routes = self._types[ROUTES]
        wanted = served.of(ROUTES) if served is not None else {}
        if not routes.started:
            return False  # a gateway that comes back has not said yet which routes it has
        if wanted:
            return all(routes.has(resource) or not routes.wants(name) for name, resource in wanted.items())
        return owner not in routes.names

    def _send(
        self, type_url: str, resources: tuple[Encoded, ...], removed: tuple[str, ...], owners: Mapping[str, str]
    ) -> Response:
        state = self._types[type_url]
        state.answered = True
        self._nonce += 1
        for resource in resources:
            state.known[resource.name] = resource.version
        for name in removed:
            state.known.pop(name, None)
            state.rejected.pop(name, None)
        response = Response(type_url, str(self._nonce), resources, removed, owners)
        self._pending[response.nonce] = response
        return response
