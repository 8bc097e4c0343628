"""Patched classes, and giving them to the modules of one model."""
