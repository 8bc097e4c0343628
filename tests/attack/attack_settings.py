"""How much is tried: small by default, and as much as one likes by ``make attack``.

Each shard searches from a seed of its own, so that several processes share the work and a failure can be run again
alone. The seed is printed with every run.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, Phase, settings

SEED = int(os.environ.get("ATTACK_SEED", "0"))
SHARDS = int(os.environ.get("ATTACK_SHARDS", "4"))
EXAMPLES = int(os.environ.get("ATTACK_EXAMPLES", "12"))
STEPS = int(os.environ.get("ATTACK_STEPS", "8"))
SHRINK = os.environ.get("ATTACK_SHRINK", "1") != "0"


def search(examples: int, **options: int) -> settings:
    """The settings of one shard. A failure is made smaller, which takes minutes, unless ATTACK_SHRINK=0."""
    return settings(
        max_examples=examples,
        deadline=None,
        database=None,
        print_blob=True,
        phases=(Phase.generate, Phase.shrink) if SHRINK else (Phase.generate,),
        suppress_health_check=list(HealthCheck),
        **options,
    )
