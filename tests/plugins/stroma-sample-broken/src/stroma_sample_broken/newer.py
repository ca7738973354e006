"""A plugin that was made for a later core."""

from stroma.hookspecs import hookimpl

STROMA_API = 99


@hookimpl
def stroma_register_stores(registry: object) -> None:
    """Never called."""
