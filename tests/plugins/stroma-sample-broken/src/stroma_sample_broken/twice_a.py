"""A plugin that offers a store that its neighbour offers, too."""

from stroma.hookspecs import hookimpl
from stroma.registry import StoreRegistry
from stroma_sample_broken.raises import Factory


@hookimpl
def stroma_register_stores(registry: StoreRegistry) -> None:
    """Offer a store."""
    registry.add("twice", Factory(), schemes=("twice",))
