"""A plugin that wants to replace a built-in store."""

from stroma.hookspecs import hookimpl
from stroma.registry import StoreRegistry
from stroma_sample_broken.raises import Factory


@hookimpl
def stroma_register_stores(registry: StoreRegistry) -> None:
    """Offer what is there already."""
    registry.add("memory", Factory())
