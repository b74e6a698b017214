"""The replica model, traces, and offline simulation. Everything computed here is simulated and says so."""
