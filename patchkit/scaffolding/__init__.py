"""A new plugin package: where the classes of an architecture are, what is said of them, and the files."""
