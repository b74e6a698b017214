"""A real Kubernetes cluster on this machine, without containers.

Upstream's control plane, CoreDNS and Prometheus, compiled from their Go modules, and a node whose Pods are processes.
All of it lives in namespaces of its own: nothing outlives it, nothing leads out of it, several can run side by side.
"""
