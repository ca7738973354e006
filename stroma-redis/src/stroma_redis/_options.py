"""What a store can be told, checked once for both classes and for the registry."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal, TypedDict
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)

from stroma.checkpoint import Durability
from stroma.config import mask_passwords
from stroma.errors import ConfigError
from stroma.plugins import did_you_mean
from stroma.schemas import describe

DEFAULT_URL: Final = "redis://localhost:6379"
DEFAULT_TTL_SECONDS: Final = 3600
_UNIX: Final = ("unix", "redis+unix")
_SCHEMES: Final = ("redis", "rediss", *_UNIX)
_ENCODE: Final = "in a password, '#' has to be written %23, '/' %2F, '?' %3F and '@' %40"
_TLS_ONLY: Final = (
    "ssl_ca_certs",
    "ssl_certfile",
    "ssl_keyfile",
    "ssl_keyfile_password",
    "ssl_cert_reqs",
    "ssl_check_hostname",
)


class RedisOptions(BaseModel):
    """Options of the store "redis".

    Attributes:
        url: ``redis://``, ``rediss://`` for TLS, ``unix://`` or ``redis+unix://`` with the path
            of a socket. It may say the user, the password and the number of the database, and
            after "?" any other option.
        ttl_seconds: how long a run is kept after the last write to it, and a state that `save`
            kept. While a worker owns a run, it is kept for a minute longer than the lease, at
            the least.
        key_prefix: what all keys begin with; stores with different ones see nothing of each
            other.
        username: of an ACL user.
        password: of that user, or of the server.
        db: number of the database.
        cluster: the server is a node of a Redis Cluster.
        max_connections: how many connections a store opens at most in each event loop.
        timeout_seconds: how long to wait for a server that says nothing.
        connect_timeout_seconds: how long to wait for a connection.
        durability: what a returned commit survives, where the store cannot ask the server.
            None asks.
        ssl_ca_certs: file with the certificates to trust; None is the system's.
        ssl_certfile: file with this client's certificate.
        ssl_keyfile: file with its key.
        ssl_keyfile_password: what the key is encrypted with.
        ssl_cert_reqs: whether the server's certificate is checked.
        ssl_check_hostname: whether it has to be for the host in the URL.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    url: str = Field(default=DEFAULT_URL, repr=False)
    ttl_seconds: float = Field(
        default=DEFAULT_TTL_SECONDS, ge=1, le=3_153_600_000, allow_inf_nan=False
    )
    key_prefix: str = Field(default="stroma", pattern=r"^[^{}\s\x00]{1,128}$")
    username: str | None = None
    password: SecretStr | None = None
    db: int = Field(default=0, ge=0)
    cluster: bool = False
    max_connections: int = Field(default=32, ge=1, le=10_000)
    timeout_seconds: float = Field(default=10.0, gt=0, le=3600, allow_inf_nan=False)
    connect_timeout_seconds: float = Field(default=5.0, gt=0, le=3600, allow_inf_nan=False)
    durability: Durability | None = None
    ssl_ca_certs: Path | None = None
    ssl_certfile: Path | None = None
    ssl_keyfile: Path | None = None
    ssl_keyfile_password: SecretStr | None = None
    ssl_cert_reqs: Literal["required", "optional", "none"] = "required"
    ssl_check_hostname: bool = True

    @model_validator(mode="before")
    @classmethod
    def _read_url(cls, data: Any) -> Any:
        if not isinstance(data, Mapping) or not isinstance(data.get("url", ""), str):
            return data
        options = dict(data)
        for name, value in _in_url(_split(options.get("url", DEFAULT_URL))).items():
            if name not in cls.model_fields:
                if "@" in options["url"].partition("?")[2]:  # the name is half a password
                    raise ValueError(f"the URL has a '?' before the '@': {_ENCODE}")
                raise ValueError(
                    f'the URL has {name[:40]!r} after "?", and there is no such option'
                    f"{did_you_mean(name, cls.model_fields)}"
                )
            if name in options and _contradicts(name, options[name], value):
                raise ValueError(f"{name} is given beside the URL, which says something else")
            options[name] = value
        return options

    @model_validator(mode="after")
    def _check_together(self) -> RedisOptions:
        given = [name for name in _TLS_ONLY if name in self.model_fields_set]
        if given and self.scheme != "rediss":
            raise ValueError(f"{given[0]} is for TLS: write rediss:// in the URL")
        if self.ssl_keyfile is not None and self.ssl_certfile is None:
            raise ValueError("ssl_keyfile needs ssl_certfile")
        if self.cluster and (self.db or self.scheme in _UNIX):
            raise ValueError("a cluster has one database, 0, and no Unix socket")
        return self

    @property
    def scheme(self) -> str:
        """How the server is reached."""
        return _split(self.url).scheme

    @property
    def address(self) -> str:
        """The server, for people: without a password."""
        parts = _split(self.url)
        if parts.scheme in _UNIX:
            return f"unix://{unquote(parts.path)}?db={self.db}"
        host = parts.hostname or "localhost"
        host = f"[{host}]" if ":" in host else host
        return f"{parts.scheme}://{host}:{parts.port or 6379}/{self.db}"

    def connection(self) -> dict[str, Any]:
        """Return what redis-py's connections take, sync and async ones alike."""
        parts = _split(self.url)
        where: dict[str, Any]
        if parts.scheme in _UNIX:
            where = {"path": unquote(parts.path)}
        else:
            where = {"host": parts.hostname or "localhost", "port": parts.port or 6379}
            where["socket_keepalive"] = True
            where["socket_connect_timeout"] = self.connect_timeout_seconds
        if parts.scheme == "rediss":
            where |= self._tls()
        secret = self.password.get_secret_value() if self.password is not None else None
        return {**where, "username": self.username, "password": secret, "db": self.db}

    def _tls(self) -> dict[str, Any]:
        secret = self.ssl_keyfile_password
        encrypted = {} if secret is None else {"ssl_password": secret.get_secret_value()}
        return {
            **encrypted,
            "ssl_ca_certs": _text(self.ssl_ca_certs),
            "ssl_certfile": _text(self.ssl_certfile),
            "ssl_keyfile": _text(self.ssl_keyfile),
            "ssl_cert_reqs": self.ssl_cert_reqs,
            "ssl_check_hostname": self.ssl_check_hostname and self.ssl_cert_reqs != "none",
        }


class MoreOptions(TypedDict, total=False):
    """What the stores take by keyword besides the URL and ``ttl_seconds``: see `RedisOptions`."""

    key_prefix: str
    username: str | None
    password: str | SecretStr | None
    db: int
    cluster: bool
    max_connections: int
    timeout_seconds: float
    connect_timeout_seconds: float
    durability: Durability | None
    ssl_ca_certs: Path | str | None
    ssl_certfile: Path | str | None
    ssl_keyfile: Path | str | None
    ssl_keyfile_password: str | SecretStr | None
    ssl_cert_reqs: Literal["required", "optional", "none"]
    ssl_check_hostname: bool


WITH_A_CLIENT: Final = ("ttl_seconds", "key_prefix", "timeout_seconds", "durability")
"""Options that go with a ready client; the others are settings of the client's own."""


def options_of(given: Mapping[str, object], *, has_client: bool) -> RedisOptions:
    """Return checked options.

    Raises:
        ConfigError: one is wrong; the message names it and those that are accepted.
    """
    accepted = WITH_A_CLIENT if has_client else tuple(RedisOptions.model_fields)
    takes = ", ".join(accepted)
    for name in given:
        if name not in accepted:
            why = "with a ready client it takes" if has_client else "it takes"
            hint = did_you_mean(name, accepted)
            raise ConfigError(f"the Redis store has no option {name!r}: {why} {takes}{hint}")
    try:
        return RedisOptions.model_validate(given)
    except ValidationError as exc:
        # Not chained: pydantic repeats the values, and one of them may be a password.
        problems = mask_passwords("; ".join(describe(exc, whole="")))
    raise ConfigError(f"the Redis store: {problems}; it takes {takes}")


def _split(url: str) -> SplitResult:
    """Return the parts of a URL; what is wrong with it is said without repeating it."""
    if "#" in url:
        raise ValueError(f"the URL has a '#', and what follows it would be lost: {_ENCODE}")
    try:
        parts = urlsplit(url)
        is_whole = parts.port != 0 and (parts.hostname is not None or parts.scheme in _UNIX)
    except ValueError:
        # Its message may hold a part of a password with a "/" or "#" in it.
        raise ValueError(
            f"the URL cannot be read: write it as in redis://localhost:6379/0; {_ENCODE}"
        ) from None
    if parts.scheme not in _SCHEMES:
        raise ValueError(f"the URL must begin with {', '.join(f'{s}://' for s in _SCHEMES)}")
    is_socket = parts.scheme in _UNIX
    where = parts.path if is_whole else parts.path + parts.query
    if "@" in where and ("@" in parts.netloc or not is_socket):
        raise ValueError(f"the URL has a '/' or '?' before the '@': {_ENCODE}")
    if is_socket:
        if parts.netloc.rpartition("@")[2]:
            raise ValueError(f"a socket has no host, as in unix:///run/redis.sock; {_ENCODE}")
        if not parts.path.strip("/"):
            raise ValueError("the path of the socket is missing, as in unix:///run/redis.sock")
    elif not is_whole:
        raise ValueError("the URL names no host, as in redis://localhost:6379")
    return parts


def _in_url(parts: SplitResult) -> dict[str, Any]:
    """Return the options that a URL says besides where the server is."""
    said: list[tuple[str, Any]] = list(parse_qsl(parts.query, keep_blank_values=True))
    if parts.username:
        said.append(("username", unquote(parts.username)))
    if parts.password:
        said.append(("password", unquote(parts.password)))
    number = parts.path.strip("/")
    if number and parts.scheme not in _UNIX:
        if not number.isdecimal():
            raise ValueError("what follows the port is the number of a database, as in :6379/0")
        said.append(("db", int(number)))
    options: dict[str, Any] = {}
    for name, value in said:
        if name == "url":
            raise ValueError("a URL cannot hold another one")
        if name in options:
            raise ValueError(f"the URL says {name[:40]} twice")
        options[name] = value
    return options


def _contradicts(name: str, given: object, in_url: object) -> bool:
    """Say whether an option says something else than the URL."""
    if name == "ttl_seconds" and given == DEFAULT_TTL_SECONDS:
        return False  # who gives none has this one passed on
    plain = given.get_secret_value() if isinstance(given, SecretStr) else given
    return str(plain) != str(in_url)


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
