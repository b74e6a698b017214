"""The fluid simulator: whole slots of demand through the replica model in closed form, under the real planner."""
