"""Numbers and rules: pure functions over typed values. No clock, no random source, no network."""
