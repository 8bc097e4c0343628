"""The static stage of ``patchkit check``: every block of a release is rewritten, as text."""
