"""The one rule for ids, and how the place of a node in a run is written."""

from __future__ import annotations

from stroma.errors import ConfigError

MAX_ID_BYTES = 512


def check_id(value: object, what: str) -> str:
    """Return an id that every store can keep: text without NUL, 1 to 512 bytes of UTF-8.

    Args:
        value: the id.
        what: what it is the id of, for the message.

    Raises:
        ConfigError: it cannot be stored.
    """
    if not isinstance(value, str):
        raise ConfigError(f"a {what} must be a str, not {type(value).__name__}: {value!r}")
    try:
        size = len(value.encode())
    except UnicodeEncodeError as exc:
        raise ConfigError(f"{what} {value!r} cannot be encoded as UTF-8") from exc
    if not value or "\0" in value or size > MAX_ID_BYTES:
        raise ConfigError(
            f"{what} {value[:60]!r} must have 1 to {MAX_ID_BYTES} bytes of UTF-8 and no NUL; "
            f"it has {size}"
        )
    return value


def path_of(node_id: str, index: tuple[int, ...]) -> str:
    """Return where a node stands in a run: its id, and the items of `fan_out` it is in.

    Opening brackets of the id are doubled when an index follows or could be read, so that
    no two places have one path.
    """
    if "[" in node_id:
        node_id = node_id.replace("[", "[[")
    if not index:
        return node_id
    return node_id + "".join(f"[{i}]" for i in index)
