"""Readers that turn a projection module into tensors; one file per adapter library."""
