"""The user's fields: what a person may write into an object, what the operator reports back, and nothing else."""
