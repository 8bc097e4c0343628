"""The cache directory: files that nobody else can have written, and keeping it within bounds."""
