"""A plugin that implements a hook that does not exist."""

from stroma.hookspecs import hookimpl


@hookimpl
def stroma_register_storse(registry: object) -> None:
    """Never called."""
