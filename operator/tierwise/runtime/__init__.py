"""The running operator: watch, snapshot, plan, apply, status; leader election, telemetry."""
