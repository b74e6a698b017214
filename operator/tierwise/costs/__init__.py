"""`tierwise costs`: what a namespace's models cost, and who caused it, out of the ledger."""
