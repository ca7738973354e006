"""How much of everything is tried: a little on each change, a lot before a release."""

from __future__ import annotations

import os
from typing import Final, NamedTuple


class Size(NamedTuple):
    """The size of the suite.

    Attributes:
        points: at how many points of a kind a worker is killed, or a run cancelled.
        kills: random kills for each store.
        network_faults: random faults of the network for each store.
        restarts: how often a server is killed in the middle of one case.
        competition_seconds: how long workers compete while their server is restarted.
        competitors: how many workers.
        restart_seconds: from and to: pauses between restarts meanwhile.
        lost_replies: how many commits lose their reply.
    """

    points: int
    kills: int
    network_faults: int
    restarts: int
    competition_seconds: float
    competitors: int
    restart_seconds: tuple[float, float]
    lost_replies: int


SMALL: Final = Size(
    points=6,
    kills=4,
    network_faults=6,
    restarts=2,
    competition_seconds=4.0,
    competitors=2,
    restart_seconds=(0.5, 1.5),
    lost_replies=4,
)
FULL: Final = Size(
    points=10_000,
    kills=200,
    network_faults=300,
    restarts=50,
    competition_seconds=3600.0,
    competitors=4,
    restart_seconds=(5.0, 40.0),
    lost_replies=100,
)

VARIABLE: Final = "STROMA_FAULTS_SIZE"
SIZE: Final = {"small": SMALL, "full": FULL}[os.environ.get(VARIABLE, "small")]
"""The size of this run of the suite."""
