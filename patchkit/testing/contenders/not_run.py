"""Why a contender has no figures."""

from __future__ import annotations


class NotRunError(Exception):
    """A contender cannot run a cell; the text says why."""
