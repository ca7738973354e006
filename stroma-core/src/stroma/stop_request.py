"""How a worker asks the runs that it has under way to go no further."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from stroma._aio import first_of


class StopRequest:
    """Tells runs to begin no other call; those under way are awaited, and recorded.

    It belongs to one event loop. One request serves all the runs of a worker.
    """

    def __init__(self) -> None:
        self._made = asyncio.Event()

    @property
    def is_made(self) -> bool:
        """Somebody asked."""
        return self._made.is_set()

    def make(self) -> None:
        """Ask, once and for all."""
        self._made.set()

    async def wait(self) -> None:
        """Return when somebody has asked."""
        await self._made.wait()

    async def cut_short(self, work: Coroutine[Any, Any, object]) -> None:
        """Wait for some work to end, and cancel it when somebody asks.

        Raises:
            Exception: what the work raised.
        """
        await first_of(work, self.wait())
