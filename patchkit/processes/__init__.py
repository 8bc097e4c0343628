"""Processes that patchkit starts: isolated, limited in time, and answering through a channel of their own.

``interpreters`` has the command and the variables of one, ``isolated`` runs first in it, ``children`` runs one to its
end, and ``workers`` answer requests.
"""
