"""From what is declared and what was observed to an ordered list of actions.

Nothing here touches the host or a store: the same input gives the same plan, so that ``plan`` on
the command line, a dry run, drift and the agent agree.
"""

from controller.planning.actions import Action, Impact, Plan
from controller.planning.deletion import plan_pool_deletion, plan_volume_deletion
from controller.planning.pools import PoolHistory, plan_pool
from controller.planning.volumes import VolumeHistory, plan_volume

__all__ = [
    "Action",
    "Impact",
    "Plan",
    "PoolHistory",
    "VolumeHistory",
    "plan_pool",
    "plan_pool_deletion",
    "plan_volume",
    "plan_volume_deletion",
]
