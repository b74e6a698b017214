"""A cluster in memory, at the adapter's boundary, that versions objects as the API server does."""

# ruff: noqa: ARG002 - the fake takes all that the real one takes

import copy
from datetime import UTC, datetime

from tierwise.adapters import kinds
from tierwise.adapters.cluster import ConflictError, Listing, NotFoundError
from tierwise.core.plan import ObjectRef

NOW = datetime(2026, 11, 25, 8, 0, tzinfo=UTC)


class FakeCluster:
    """Holds objects; `fail[(verb, name)]` is a list of errors to raise, one per call."""

    def __init__(self):
        self.objects = {}
        self.version = 100
        self.calls = []
        self.fail = {}

    def _called(self, verb, name):
        self.calls.append((verb, name))
        errors = self.fail.get((verb, name)) or self.fail.get((verb, "*"))
        if errors:
            raise errors.pop(0) if isinstance(errors, list) else errors

    def _stamp(self, manifest):
        self.version += 1
        manifest["metadata"]["resourceVersion"] = str(self.version)
        return copy.deepcopy(manifest)

    def place(self, manifest):
        manifest = copy.deepcopy(manifest)
        kind = kinds.kind_of(manifest["apiVersion"], manifest["kind"])
        metadata = manifest["metadata"]
        metadata.setdefault("uid", f"uid-{kind.name}-{metadata['name']}")
        self.objects[kind, metadata["namespace"], metadata["name"]] = manifest
        return self._stamp(manifest)

    async def list(self, kind, *, namespace=None, label_selector=None):
        self._called("list", kind.name)
        items = [
            copy.deepcopy(one)
            for (other, where, _), one in self.objects.items()
            if other == kind and namespace in {None, where}
        ]
        return Listing(tuple(items), str(self.version))

    async def get(self, kind, namespace, name):
        self._called("get", name)
        try:
            return copy.deepcopy(self.objects[kind, namespace, name])
        except KeyError:
            raise NotFoundError(name) from None

    async def secret(self, namespace, name):
        return await self.get(kinds.SECRET, namespace, name)

    async def apply(self, manifest, *, manager="tierwise", force=True):
        self._called("apply", manifest["metadata"]["name"])
        kind = kinds.kind_of(manifest["apiVersion"], manifest["kind"])
        key = (kind, manifest["metadata"]["namespace"], manifest["metadata"]["name"])
        held = self.objects.get(key)
        if held is None:
            return self.place(manifest)
        wanted = copy.deepcopy(dict(manifest))
        wanted["metadata"] = {**held["metadata"], **wanted["metadata"]}
        if {k: v for k, v in wanted.items() if k != "status"} == {k: v for k, v in held.items() if k != "status"}:
            return copy.deepcopy(held)
        self.objects[key] = {**held, **wanted}
        return self._stamp(self.objects[key])

    async def apply_status(self, manifest, *, manager="tierwise", force=True):
        self._called("status", manifest["metadata"]["name"])
        self.calls[-1] += (manager,)
        kind = kinds.kind_of(manifest["apiVersion"], manifest["kind"])
        key = (kind, manifest["metadata"]["namespace"], manifest["metadata"]["name"])
        if key not in self.objects:
            raise NotFoundError(key[2])
        held = self.objects[key]
        if manifest["metadata"].get("uid", held["metadata"]["uid"]) != held["metadata"]["uid"]:
            raise ConflictError("uid")
        status = {**held.get("status", {}), **copy.deepcopy(dict(manifest["status"]))}
        if status == held.get("status"):
            return copy.deepcopy(held)
        held["status"] = status
        return self._stamp(held)

    async def scale(self, kind, namespace, name, replicas, *, uid=""):
        self._called("scale", name)

    async def delete(self, kind, namespace, name, *, uid):
        self._called("delete", name)
        held = self.objects.get((kind, namespace, name))
        if held is not None and held["metadata"]["uid"] != uid:
            raise ConflictError("uid")
        self.objects.pop((kind, namespace, name), None)

    async def create(self, manifest):
        self._called("create", manifest["metadata"]["name"])
        return self.place(manifest)


def tier(name="compact", namespace="team-a", version=10, image="vllm/vllm-openai:v0.24.0", **metadata):
    return {
        "apiVersion": "tierwise.dev/v1alpha1",
        "kind": "ModelTier",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "uid": f"uid-{name}",
            "generation": 1,
            "resourceVersion": str(version),
            **metadata,
        },
        "spec": {
            "model": "qwen3-8b",
            "inCluster": {"image": image, "replicas": {"min": 1, "max": 4, "startupSeconds": 60}},
        },
    }


def external(name="frontier", namespace="team-a", reference="provider-key", version=11):
    return {
        "apiVersion": "tierwise.dev/v1alpha1",
        "kind": "ModelTier",
        "metadata": {"name": name, "namespace": namespace, "uid": f"uid-{name}", "resourceVersion": str(version)},
        "spec": {
            "model": "big",
            "external": {"url": "https://api.provider.example/v1", "credentialsRef": {"name": reference}},
        },
    }


def deployment(name="compact", namespace="team-a", version=20, ready=1, owner="compact"):
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "uid": f"uid-deployment-{name}",
            "generation": 3,
            "resourceVersion": str(version),
            "labels": {"app.kubernetes.io/managed-by": "tierwise", "tierwise.dev/tier": owner},
            "ownerReferences": [
                {
                    "apiVersion": "tierwise.dev/v1alpha1",
                    "kind": "ModelTier",
                    "name": owner,
                    "uid": f"uid-{owner}",
                    "controller": True,
                }
            ],
            "managedFields": [{"manager": "tierwise"}],
        },
        "spec": {"replicas": 2},
        "status": {"replicas": 2, "readyReplicas": ready, "updatedReplicas": 2, "observedGeneration": 3},
    }


def reference(name="compact", namespace="team-a"):
    return ObjectRef("tierwise.dev/v1alpha1", "ModelTier", namespace, name, f"uid-{name}")
