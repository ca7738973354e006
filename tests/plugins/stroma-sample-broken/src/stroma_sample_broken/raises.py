"""A plugin that raises while it registers, after it has offered a store."""

from collections.abc import Mapping

from pydantic import BaseModel

from stroma.hookspecs import hookimpl
from stroma.registry import StoreRegistry


class Options(BaseModel):
    """No options."""


class Factory:
    """Makes nothing."""

    options = Options

    def from_url(self, url: str) -> Mapping[str, object]:
        """Take any URL."""
        return {}

    def open(self, options: Options) -> object:
        """Return something."""
        return object()


@hookimpl
def stroma_register_stores(registry: StoreRegistry) -> None:
    """Offer a store, and then fail."""
    registry.add("half", Factory(), schemes=("halves",))
    raise RuntimeError("the licence has expired")
