"""The URL of a database: what the driver reads there, and what the store does."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Final
from urllib.parse import parse_qsl, urlsplit

from stroma.config import mask_passwords
from stroma.plugins import did_you_mean

PARAMETERS: Final = frozenset(
    {
        "host",
        "port",
        "database",
        "dbname",
        "user",
        "password",
        "passfile",
        "service",
        "sslmode",
        "sslcert",
        "sslkey",
        "sslpassword",
        "sslrootcert",
        "sslcrl",
        "sslnegotiation",
        "ssl_min_protocol_version",
        "ssl_max_protocol_version",
        "target_session_attrs",
        "krbsrvname",
        "gsslib",
    }
)
"""What asyncpg reads behind the "?"; it sends everything else to the server, as a setting."""

SETTINGS: Final = frozenset(
    {
        "application_name",
        "client_encoding",
        "default_transaction_isolation",
        "default_transaction_read_only",
        "idle_in_transaction_session_timeout",
        "idle_session_timeout",
        "jit",
        "lock_timeout",
        "options",
        "role",
        "search_path",
        "statement_timeout",
        "synchronous_commit",
        "tcp_keepalives_count",
        "tcp_keepalives_idle",
        "tcp_keepalives_interval",
        "tcp_user_timeout",
        "timezone",
        "work_mem",
    }
)
"""Settings of the server that stand in URLs; by "options", all others can be given."""

_FILES: Final = frozenset({"sslcert", "sslkey", "sslrootcert", "sslcrl"})

# Of the names above, those whose values are or may hold a secret.
_HIDDEN: Final = frozenset({"password", "sslpassword", "options"})

_NOT_IN_A_URL: Final = ("dsn", "connect_options")
_SCHEMES: Final = ("postgresql", "postgres")
_HOST: Final = re.compile(r"(?:\[[^\[\]]+\]|[^:\[\]]+)(?::(.*))?")
_ENCODE: Final = (
    "the URL cannot be read: write postgresql://user:password@host:5432/database, with every "
    "special character of the password percent-encoded"
)


def check_url(dsn: str) -> None:
    """Refuse what the driver would misread; what is wrong is said without repeating it.

    A special character in a password moves the parts of the URL, and the driver's messages then
    quote pieces of the password as a port, a path or a setting.

    Raises:
        ValueError: it is no URL of a PostgreSQL database.
    """
    if not dsn.lower().startswith(tuple(f"{scheme}://" for scheme in _SCHEMES)):
        raise ValueError("the URL must begin with postgresql:// or postgres://")
    if "%00" in dsn or "\0" in dsn:
        raise ValueError("the URL has a NUL (%00), which PostgreSQL takes nowhere")
    try:
        parts = urlsplit(dsn)
        settings = dict(parse_qsl(parts.query, strict_parsing=True)) if parts.query else {}
    except ValueError:
        raise ValueError(_ENCODE) from None
    _, at, hosts = parts.netloc.rpartition("@")
    ports = settings.get("port", "").split(",")
    if (
        "#" in dsn
        or dsn.count("@") != len(at)  # one that is not before the host is in the wrong part
        or re.search(r"[\s\[\]]", dsn.rpartition("@")[0])
        or not all(map(_is_place, hosts.split(",")) if hosts else ())
        or not all(each == "" or _is_port(each) for each in ports)
        or _is_shown_in_part(parts.query)
    ):
        raise ValueError(_ENCODE)


def _is_place(host: str) -> bool:
    match = _HOST.fullmatch(host)
    return match is not None and (not match[1] or _is_port(match[1]))


def _is_port(text: str) -> bool:
    return re.fullmatch("[0-9]{1,5}", text) is not None and 0 < int(text) < 65_536


def _is_shown_in_part(query: str) -> bool:
    """Say whether `mask_passwords` would take the end of a password for something else."""
    return "password" in query.lower() and re.search(r"[;'\"\s]", query) is not None


def take_options(dsn: str, names: Collection[str]) -> tuple[str, dict[str, str]]:
    """Return a checked URL as the driver is to see it, and the store's options that it had.

    Args:
        dsn: what `check_url` let pass.
        names: of the store's options.

    Raises:
        ValueError: there is a name that means nothing, or an option twice; its value is not
            repeated, as it may be a password with a slip in its name.
    """
    kept: list[str] = []
    options: dict[str, str] = {}
    for name, value, text in _in_query(dsn):
        if name in _NOT_IN_A_URL:
            raise ValueError(f"{name} cannot stand in a URL")
        if name in options:
            raise ValueError(f"the URL says {name} twice")
        if name in names:
            options[name] = value
        elif _is_for_the_driver(name):
            kept.append(text)
        else:
            raise ValueError(
                f'the URL has {name[:40]!r} after "?", which is neither an option of the store '
                "nor a parameter of the driver; a setting of the server is written "
                "options=-c%20name%3Dvalue"
                + did_you_mean(
                    name.lower(), {*names, *PARAMETERS, *SETTINGS}.difference(_NOT_IN_A_URL)
                )
            )
    return _with_query(dsn, kept), options


def shown(dsn: str) -> str:
    """Return a URL for people: without what is or may be a password."""
    texts = [
        text if name in PARAMETERS | SETTINGS and name not in _HIDDEN else f"{name}=***"
        for name, _, text in _in_query(dsn)
    ]
    return mask_passwords(_with_query(dsn, texts))


def hidden_values(dsn: str, settings: Mapping[str, str]) -> tuple[str, ...]:
    """Return values of settings that may be secrets, and that the server may repeat.

    Args:
        dsn: the URL.
        settings: what is set beside it.

    Returns:
        The longest first, so that none is the beginning of a later one.
    """
    found: set[str] = set()
    for name, value in [*((name, value) for name, value, _ in _in_query(dsn)), *settings.items()]:
        if name == "options":
            for word in re.split(r"(?<!\\)\s+", value):
                found.update(re.sub(r"\\(.)", r"\1", text) for text in _values_of(word))
        elif name not in PARAMETERS | SETTINGS:
            found.add(value)
    return tuple(sorted(found - {""}, key=len, reverse=True))


def _values_of(word: str) -> tuple[str, ...]:
    """Return what is no name in a word of "options", such as ``jit=off`` or ``--jit=off``.

    A word that sets nothing may be a secret: as a whole, or behind the letter of an option.
    """
    _, equals, value = word.partition("=")
    return (value,) if equals else (word, re.sub("^-[-a-zA-Z]", "", word))


def unreadable_file(dsn: str) -> str:
    """Return the parameter of a URL that names a file which cannot be read, or ""."""
    for name, path, _ in _in_query(dsn):
        if name in _FILES and not os.access(path, os.R_OK):
            return name
    return ""


def _is_for_the_driver(name: str) -> bool:
    # A setting of an extension has a dot, and is the extension's to know.
    return name in PARAMETERS or name.lower() in SETTINGS or "." in name


def _in_query(dsn: str) -> Iterator[tuple[str, str, str]]:
    """Yield the name and value of each parameter, and the text that says so."""
    query = dsn.partition("?")[2]
    for text in query.split("&") if query else ():
        for name, value in parse_qsl(text, keep_blank_values=True):
            yield name, value, text


def _with_query(dsn: str, texts: list[str]) -> str:
    place = dsn.partition("?")[0]
    return f"{place}?{'&'.join(texts)}" if texts else place
