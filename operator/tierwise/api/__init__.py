"""The user's fields: what a person may write into a Tierwise object, what the operator reports back, and nothing else."""
