"""`tierwise demo`: everything together on one machine, with a bill measured beside the operator, never by it."""
