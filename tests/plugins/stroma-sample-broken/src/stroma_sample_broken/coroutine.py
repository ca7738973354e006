"""A plugin that registers in a coroutine, which nobody awaits."""

from stroma.hookspecs import hookimpl


@hookimpl
async def stroma_register_stores(registry: object) -> None:
    """Never awaited."""
