"""Kubernetes and Envoy fields: pure builders of manifests and Envoy resources, as plain sorted dicts."""
