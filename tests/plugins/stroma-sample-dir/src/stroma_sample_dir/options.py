"""The options of the store."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict


class DirOptions(BaseModel):
    """Options of the store "dir".

    Attributes:
        path: the folder; it is created when it does not exist.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Path
