"""The economics benchmark: what the loop costs and keeps on published traces, beside baselines and an offline bound."""
