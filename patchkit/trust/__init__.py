"""What is proven, and what may be bound because of it: the ledger, its keys and the policy."""
