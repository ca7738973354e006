"""A plugin that implements a hook with a parameter that it does not have."""

from stroma.hookspecs import hookimpl


@hookimpl
def stroma_register_stores(registry: object, settings: object) -> None:
    """Never called."""
