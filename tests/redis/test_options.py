"""What the store is told, and what the plugin costs who does not use it."""

from __future__ import annotations

import subprocess
import sys
from typing import Any, get_type_hints

import pytest

import stroma
from stroma import StromaRunner
from stroma.config import open_store
from stroma.errors import ConfigError, PluginError
from stroma_redis import RedisOptions, RedisStore, SyncRedisStore
from stroma_redis._options import MoreOptions

SECRET = "hunter2hunter2"


def test_stroma_has_the_stores_by_name() -> None:
    assert stroma.RedisStore is RedisStore
    assert stroma.SyncRedisStore is SyncRedisStore


@pytest.mark.parametrize(
    ("spec", "options", "address"),
    [
        ("redis", {}, "redis://localhost:6379/0"),
        ("redis", {"url": "redis://h:1/2", "ttl_seconds": 7200}, "redis://h:1/2"),
        ("redis://localhost", {}, "redis://localhost:6379/0"),
        ("redis://[::1]:7/3?ttl_seconds=60", {}, "redis://[::1]:7/3"),
        ("rediss://h?ssl_cert_reqs=none", {}, "rediss://h:6379/0"),
        ("redis+unix:///run/r.sock?db=4", {}, "unix:///run/r.sock?db=4"),
        ("redis", {"url": "unix:///run/r.sock"}, "unix:///run/r.sock?db=0"),
    ],
)
def test_a_store_by_name_or_url(spec: str, options: dict[str, Any], address: str) -> None:
    store = open_store(spec, options)
    assert isinstance(store, RedisStore)
    assert repr(address)[:-1] in repr(store)


def test_the_scheme_of_drivers_for_sockets_leads_to_that_of_the_store() -> None:
    with pytest.raises(PluginError, match=r"no store 'unix'; .*did you mean 'redis\+unix://'\?$"):
        open_store(f"unix://:{SECRET}@/run/redis.sock")


def test_with_redis() -> None:
    """The builders that the tutorial shows; nothing connects before the first run."""
    StromaRunner.quick().with_redis("redis://localhost:6379", ttl_seconds=7200)
    StromaRunner.quick().with_store("redis", url="redis://localhost", ttl_seconds=60)
    with pytest.raises(ConfigError, match="ttl_seconds"):
        StromaRunner.quick().with_redis("redis://localhost:6379", ttl_seconds=0)


@pytest.mark.parametrize(
    ("url", "options", "problem"),
    [
        ("redis://h", {"ttl": 3}, "no option 'ttl'"),
        (
            "redis://h?foo=1",
            {},
            "store: the URL has 'foo' after \"?\", and there is no such option; it",
        ),
        ("redis://h?key_prefx=red", {}, "no such option; did you mean 'key_prefix'?; it takes"),
        ("redis://h?ttl_seconds=soon", {}, "store: ttl_seconds: Input should be a valid number"),
        ("redis://h?ttl_seconds=nan", {}, "store: ttl_seconds: Input should be a finite number"),
        ("redis://h?timeout_seconds=nan", {}, "timeout_seconds: Input should be a finite number"),
        ("redis://h?ttl_seconds=0", {}, "store: ttl_seconds: Input should be greater than"),
        ("redis://h?cluster=perhaps", {}, "store: cluster: Input should be a valid boolean"),
        ("rediss://h?ssl_cert_reqs=no", {}, "Input should be 'required', 'optional' or 'none'"),
        ("redis://h?ssl_ca_certs=x", {}, "store: ssl_ca_certs is for TLS: write rediss://"),
        ("redis://h/1?db=2", {}, "store: the URL says db twice"),
        ("redis://u@h?username=v", {}, "store: the URL says username twice"),
        ("redis://h?db=1&db=2", {}, "store: the URL says db twice"),
        ("redis://h?ttl_seconds=60", {"ttl_seconds": 70}, "ttl_seconds is given beside the URL"),
        ("redis://h", {"ttl_seconds": 0}, "ttl_seconds"),
        ("redis://h", {"key_prefix": "a{b}"}, "key_prefix"),
        ("redis://h", {"ssl_ca_certs": "x"}, "rediss://"),
        ("rediss://h", {"ssl_keyfile": "x"}, "ssl_certfile"),
        ("redis://h/1", {"db": 2}, "db is given beside the URL"),
        ("redis://h/x", {}, "number of a database"),
        ("http://h", {}, "must begin with redis://"),
        ("redis://", {}, "no host"),
        ("unix://", {}, "path of the socket"),
        ("unix://run/redis.sock", {}, "a socket has no host, as in unix:///run/redis.sock"),
        ("redis://h:1/0#part", {}, "the URL has a '#', and what follows it would be lost"),
        ("redis://h:1/0#", {}, "the URL has a '#'"),
        ("unix:///run/a#b.sock", {}, "the URL has a '#'"),
        ("redis://h", {"cluster": True, "db": 1}, "one database"),
    ],
)
@pytest.mark.parametrize("kind", [RedisStore, SyncRedisStore])
def test_a_wrong_option_is_named(
    kind: type, url: str, options: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        kind(url, **options)
    assert problem in str(refused.value)
    assert "ttl_seconds, key_prefix" in str(refused.value)


def test_the_url_says_how_long_runs_are_kept() -> None:
    """The stores and `with_redis` have a default for it, which contradicts nothing."""
    for store in (
        RedisStore("redis://h?ttl_seconds=60"),
        RedisStore("redis://h?ttl_seconds=60", ttl_seconds=60),
        SyncRedisStore("redis://h?ttl_seconds=60"),
        open_store("redis://h?ttl_seconds=60"),
        StromaRunner.quick().with_redis("redis://h?ttl_seconds=60").checkpoint_manager.store,
    ):
        assert "ttl_seconds=60)" in repr(store)


@pytest.mark.parametrize(
    "password",
    [
        "#word",
        "12#word",
        "word#12",
        "/word",
        "12/word",
        "1/2",
        "?word",
        "12?word",
        "1?a=word",
        "1@/word",
        "a[b",
    ],
)
@pytest.mark.parametrize(
    "url", ["redis://:{}@h", "rediss://u:{}@h:1/0", "redis+unix://u:{}@/r.sock"]
)
def test_a_password_that_is_not_encoded_is_told_without_it(url: str, password: str) -> None:
    """Where the rest of it can be read as a port, a path or an option, too."""
    for attempt in (
        lambda: RedisStore(url.format(password)),
        lambda: open_store(url.format(password)),
    ):
        with pytest.raises(ConfigError) as refused:
            attempt()
        problem, _, _ = str(refused.value).partition("; it takes")
        assert problem.endswith(
            "in a password, '#' has to be written %23, '/' %2F, '?' %3F and '@' %40"
        )
        assert password not in problem
        assert "word" not in problem.replace("password", "")


def test_what_a_url_may_hold_as_it_is() -> None:
    for url, password in (
        ("redis://u:a%23%2F%3F%40@h", "a#/?@"),
        ("redis://u:a@b:c@h", "a@b:c"),
        ("redis://h?password=a@b", "a@b"),
        ("unix:///run/a@b.sock?password=c", "c"),
        ("unix://u:c@/run/a%40b.sock", "c"),
    ):
        assert RedisOptions.model_validate({"url": url}).connection()["password"] == password


@pytest.mark.parametrize(
    "url",
    [
        f"redis://u:{SECRET}@h:notaport/0",
        f"redis://u:{SECRET}/x@h:1/0",
        f"redis://u:{SECRET}#x@h:1/0",
        f"redis://u:{SECRET}@h:1/x",
        f"redis://u:{SECRET}@h:1/0?password=other&colour=red",
        f"redis://h:1/0?password={SECRET}&colour=red",
        f"redis://u:{SECRET}@[h:1/0",
        f"http://u:{SECRET}@h",
    ],
)
def test_a_url_that_is_wrong_shows_no_password(url: str) -> None:
    for attempt in (
        lambda: RedisStore(url, db=9),
        lambda: open_store("redis", {"url": url, "db": 9}),
    ):
        with pytest.raises(ConfigError) as refused:
            attempt()
        assert SECRET not in f"{refused.value!r} {refused.value.__cause__!r}"


def test_options_show_no_password() -> None:
    options = RedisOptions.model_validate({"url": f"redis://u:{SECRET}@h"})
    assert SECRET not in repr(options)
    assert options.connection()["password"] == SECRET
    store = RedisStore("redis://h", password=SECRET)
    assert SECRET not in repr(store)
    assert SECRET not in repr(vars(store))


def test_the_keywords_of_the_stores_are_the_options() -> None:
    assert {"url", "ttl_seconds", *get_type_hints(MoreOptions)} == set(RedisOptions.model_fields)


def test_the_plugin_imports_no_driver() -> None:
    code = (
        "import sys, stroma_redis._plugin as p; p.RedisFactory(); "
        "print([m for m in sys.modules if m.split('.')[0] == 'redis' or m.endswith('._options')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_no_driver_is_imported_until_a_store_of_this_name_is_opened() -> None:
    """Not by a program that has the package and keeps its runs elsewhere."""
    code = (
        "import sys, stroma, stroma_redis\n"
        "from stroma.config import open_store\n"
        "def seen(): return [m for m in sys.modules if m.split('.')[0] in ('redis', 'hiredis')]\n"
        "stroma.StromaRunner.quick(store='memory')\n"
        "open_store('memory')\n"
        "print(seen())\n"
        "open_store('redis://localhost')\n"
        "print('redis' in seen())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[]", "True"]
