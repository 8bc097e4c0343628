"""Processes that patchkit starts: isolated, limited in time, and answering through a channel of their own."""
