"""``patchkit check``: whether a transformers release is what patchkit knows. ``run.py`` says in which order."""

TIME_LIMIT = 1800.0
"""Seconds that pip may take for one release, and one tiny model for its numbers; usually both take seconds.

Here, because ``patchkit --help`` shows it, and imports nothing of what it limits.
"""
