"""A plugin that forgot to mark its hook."""


def stroma_register_stores(registry: object) -> None:
    """Never called."""
