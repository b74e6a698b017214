"""Tierwise: a Kubernetes operator for tiered model deployments.

Watch, snapshot, plan, apply, status: one direction. `core`, `render` and `planner` are pure functions over typed
values; `adapters` and `runtime` carry data in and out.
"""

__version__ = "0.1.0"
