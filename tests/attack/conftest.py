"""The seed and the size of the search, at the top of every run."""

from __future__ import annotations

from attack_settings import EXAMPLES, SEED, SHARDS, STEPS


def pytest_report_header() -> str:
    return f"attack: ATTACK_SEED={SEED} ATTACK_SHARDS={SHARDS} ATTACK_EXAMPLES={EXAMPLES} ATTACK_STEPS={STEPS}"
