"""What one process remembers of runs: those that it works on, and the last ones that it read."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Final

from stroma_s3._view import View

MAX_VIEWS: Final = 4096
"""A run that was forgotten is read again when something is added to it."""


class Views:
    """The runs that this process owns, by id; the least recently used are forgotten."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._kept: OrderedDict[str, View] = OrderedDict()

    def get(self, run_id: str) -> View | None:
        """Return what is remembered of a run, or None."""
        with self._guard:
            view = self._kept.get(run_id)
            if view is not None:
                self._kept.move_to_end(run_id)
            return view

    def keep(self, view: View) -> None:
        """Remember a run as long as somebody owns it."""
        run_id = view.run.run_id
        with self._guard:
            if not view.run.owner:
                self._kept.pop(run_id, None)
                return
            self._kept[run_id] = view
            self._kept.move_to_end(run_id)
            if len(self._kept) > MAX_VIEWS:
                self._kept.popitem(last=False)

    def forget(self, run_id: str) -> None:
        """Forget a run."""
        with self._guard:
            self._kept.pop(run_id, None)
