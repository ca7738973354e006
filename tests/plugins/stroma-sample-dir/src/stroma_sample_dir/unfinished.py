"""Which runs may not have ended: an empty file for each, so that nobody has to look at all."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from stroma_sample_dir.files import make_folder, sync_folder


class Unfinished:
    """The names of the folders of runs that have not ended, and of no others but a few.

    Whoever adds or removes one holds its run's lock. A name that is one too many does no harm,
    and comes from a process that was killed between the two steps of a change.

    Args:
        folder: where the store keeps its runs.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "unfinished"

    def add(self, name: str) -> None:
        """Name a run, before it is written that it has not ended."""
        make_folder(self._folder)
        (self._folder / name).touch()
        sync_folder(self._folder)

    def remove(self, name: str) -> None:
        """Name a run no more, after it was written that it has ended, or after its removal."""
        with suppress(OSError):
            (self._folder / name).unlink()

    def names(self) -> list[str]:
        """Return the names, in any order."""
        try:
            return [path.name for path in self._folder.iterdir()]
        except FileNotFoundError:
            return []
