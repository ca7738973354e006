"""Choosing a store by object, name or URL, with options that are checked."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict, Field, field_validator

from stroma import AsyncInMemoryStore, InMemoryStore, SQLiteStore, plugins
from stroma.config import mask_passwords, open_store
from stroma.errors import ConfigError, MissingPlugin, PluginError, StoreUnavailable
from stroma.plugins import PluginSet
from stroma.registry import BUILT_IN_STORES
from tests.core.plugins.fakes import Registering, plugin_set

SECRET = "s3cr/t@x"


class BoxOptions(BaseModel):
    model_config = ConfigDict(frozen=True)

    url: str
    ttl_seconds: int = Field(default=60, gt=0)

    @field_validator("url")
    @classmethod
    def _no_ftp(cls, url: str) -> str:
        if "ftp" in url:
            raise ValueError(f"{url} is not a box")
        return url


class Box:
    def __init__(self, options: BoxOptions) -> None:
        self.options = options


class BoxFactory:
    """A backend of somebody else's."""

    error: Exception | None = None
    options = BoxOptions

    def from_url(self, url: str) -> Mapping[str, object]:
        if url.endswith("nowhere"):
            raise ValueError(f"{url} is nowhere")
        return {"url": url}

    def open(self, options: BoxOptions) -> Box:
        if self.error is not None:
            raise self.error
        return Box(options)


@pytest.fixture(autouse=True)
def boxes(monkeypatch: pytest.MonkeyPatch) -> type[BoxFactory]:
    monkeypatch.setattr(BoxFactory, "error", None)
    plugin = Registering({"stores": {"box": BoxFactory}}, schemes=("box", "boxes", "box+unix"))
    monkeypatch.setattr(plugins, "_installed", plugin_set(plugin))
    return BoxFactory


def text_of(error: BaseException) -> str:
    """Return what a user would see, causes included."""
    return "".join(traceback.format_exception(error))


def test_a_store_object_is_returned_as_it_is() -> None:
    store = InMemoryStore()

    assert open_store(store) is store
    assert open_store(store, {}) is store
    with pytest.raises(ConfigError, match=r"options .ttl_seconds. go with the name or URL"):
        open_store(store, {"ttl_seconds": 1})


@pytest.mark.parametrize("spec", ["memory", "memory:", "memory://", "MEMORY:"])
def test_memory(spec: str) -> None:
    assert isinstance(open_store(spec), AsyncInMemoryStore)


def test_a_memory_store_has_no_name() -> None:
    with pytest.raises(ConfigError, match=r"'memory://x': nothing comes after the colon"):
        open_store("memory://x")
    with pytest.raises(ConfigError, match=r"'memory' has no option 'ttl': it takes no options$"):
        open_store("memory", {"ttl": 1})


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:///runs.db", "runs.db"),
        ("sqlite:///a/runs.db", "a/runs.db"),
        ("sqlite:///a%20b%3F.db", "a b?.db"),
        ("sqlite:///C:/runs.db", "C:/runs.db"),
        ("SQLite:///runs.db?busy_timeout_seconds=2.5", "runs.db"),
    ],
)
def test_sqlite_by_url(
    url: str, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    opened: list[Path] = []
    monkeypatch.setattr(
        "stroma.stores.sqlite.SQLiteStore",
        lambda path, **_: opened.append(path),
    )

    open_store(url)

    assert opened == [Path(path)]


def test_sqlite_by_name_and_by_absolute_url(tmp_path: Path) -> None:
    path = tmp_path / "runs.db"

    assert isinstance(open_store("sqlite", {"path": path}), SQLiteStore)
    assert isinstance(open_store(f"sqlite:///{path}"), SQLiteStore)


@pytest.mark.parametrize(
    "url", ["sqlite:runs.db", "sqlite:/runs.db", "sqlite://runs.db", "sqlite:///"]
)
def test_other_forms_of_sqlite_urls_are_explained(url: str) -> None:
    with pytest.raises(ConfigError, match=f"'{url}': three slashes .* sqlite:///runs.db, and four"):
        open_store(url)


@pytest.mark.parametrize(
    "path", ["runs.db", "./runs", "/var/runs.db", r"C:\runs.db", Path("runs.db")]
)
def test_a_plain_path_is_refused_with_the_url_to_write(path: str | Path) -> None:
    expected = str(path).replace("\\", "/")

    with pytest.raises(ConfigError, match=r"neither a name nor a URL") as caught:
        open_store(path)

    assert str(caught.value).endswith(f"for a SQLite file write 'sqlite:///{expected}'")


@pytest.mark.parametrize(
    ("spec", "hint"),
    [
        ("", "it is empty: write one such as 'sqlite:///runs.db'"),
        ("''", "it is empty: write one such as 'sqlite:///runs.db'"),
        ('"redis://h:1/0"', "remove the quotes and blanks around it"),
        (" redis://h:1/0", "remove the quotes and blanks around it"),
        ("u@h:1", "a URL begins with a scheme, such as 'redis://' or 'postgresql://'"),
    ],
)
def test_what_is_no_path_either_is_explained(spec: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_store(spec)

    assert str(caught.value) == f"store {spec!r} is neither a name nor a URL: {hint}"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pth": "x"}, "has no option 'pth': it takes path, .*; did you mean 'path'"),
        ({}, "store 'sqlite': path: Field required; it takes path, busy_timeout_seconds"),
        ({"path": "x", "busy_timeout_seconds": "nan"}, "busy_timeout_seconds: .*a finite number"),
        ({"path": "x", "busy_timeout_seconds": -1}, "busy_timeout_seconds: .*greater than or eq"),
    ],
)
def test_a_wrong_option_is_named_with_the_accepted_ones(
    options: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        open_store("sqlite", options)


def test_a_plugins_store_by_name_and_by_url() -> None:
    named = open_store("box", {"url": "box://here", "ttl_seconds": "5"})
    by_url = open_store("BOXES://here", {"ttl_seconds": 7})

    assert isinstance(named, Box)
    assert named.options == BoxOptions(url="box://here", ttl_seconds=5)
    assert isinstance(by_url, Box)
    assert by_url.options == BoxOptions(url="boxes://here", ttl_seconds=7)


def test_an_option_that_a_lenient_model_would_ignore_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"store 'box' has no option 'ttl': it takes url, ttl_sec"
    ):
        open_store("box://here", {"ttl": 7})


def test_an_option_is_given_once() -> None:
    assert open_store("box://here", {"url": "box://here"})
    with pytest.raises(ConfigError, match=r"'box://here': option 'url' is given beside the URL"):
        open_store("box://here", {"url": "box://there"})


def test_what_a_plugin_fails_with_names_the_plugin(boxes: type[BoxFactory]) -> None:
    boxes.error = OSError("no route")

    with pytest.raises(
        PluginError, match=r"'box://h' of plugin plugin0 .* OSError: no rou"
    ) as caught:
        open_store("box://h")
    assert caught.value.__cause__ is boxes.error


def test_a_plugins_own_errors_pass(boxes: type[BoxFactory]) -> None:
    boxes.error = StoreUnavailable("down")

    with pytest.raises(StoreUnavailable, match=r"down"):
        open_store("box://h")


@pytest.mark.parametrize(
    "spec",
    [
        f"redis://user:{SECRET}@host:6379/0",
        f"rediss://:{SECRET}@host",
        f"reddis://:{SECRET}@host",
        f"box://u:{SECRET}@host/nowhere",
        f"box://u:{SECRET}@ftp",
        f"box://u:{SECRET}@host/fails",
        f"//u:{SECRET}@host",
        f"host=x user=y password={SECRET}",
        f"box://host/nowhere?password={SECRET}",
        f"memory://u:{SECRET}@x",
        f"sqlite://u:{SECRET}@x",
    ],
)
def test_passwords_never_show(spec: str, boxes: type[BoxFactory]) -> None:
    boxes.error = OSError(f"cannot reach {spec}")

    with pytest.raises((ConfigError, PluginError)) as caught:
        open_store(spec, {"url": f"box://z:{SECRET}@h"} if "fails" in spec else None)

    assert SECRET not in text_of(caught.value)
    assert "s3cr" not in text_of(caught.value)


def test_passwords_in_options_never_show(boxes: type[BoxFactory]) -> None:
    url = f"box://u:{SECRET}@host"
    boxes.error = OSError(f"cannot reach {url}")

    for options in ({"url": url}, {"url": url, "ttl_seconds": -1}, {"url": f"ftp{url}"}):
        with pytest.raises((ConfigError, PluginError)) as caught:
            open_store("box", options)
        assert "s3cr" not in text_of(caught.value)


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("redis://u:p@h:1/0", "redis://u:***@h:1/0"),
        ("redis://:p:q/r@s@h", "redis://:***@h"),
        ("redis://h:6379/0", "redis://h:6379/0"),
        ("postgresql://h/db?password=p&x=1", "postgresql://h/db?password=***&x=1"),
        ("host=h password='a b' dbname=d", "host=h password=*** dbname=d"),
        ("aws_secret_access_key = abc", "aws_secret_access_key = ***"),
        ("nothing to hide", "nothing to hide"),
        (":p@127.0.0.1:6379", ":***@127.0.0.1:6379"),
        ("u:p/q@r@h/db is no URL: why?", "u:***@h/db is no URL: why?"),
        ("sqlite:///home/me@work/runs.db", "sqlite:///home/me@work/runs.db"),
    ],
)
def test_masking(text: str, masked: str) -> None:
    assert mask_passwords(text) == masked


def test_unknown_names_list_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        PluginError, match=r"there is no store 'bix'; there are box, memory, sqlite;"
    ):
        open_store("bix")
    with pytest.raises(PluginError, match=r"no store 'unix'; .*; did you mean 'box\+unix://'\?$"):
        open_store(f"unix://:{SECRET}@/run/box.sock")
    monkeypatch.setattr(plugins, "_installed", PluginSet())
    with pytest.raises(MissingPlugin, match=r"./stroma-postgres"):
        open_store("postgresql://localhost/app")


def test_the_built_in_backends_are_the_reserved_names() -> None:
    from stroma._built_in_stores import REGISTRATIONS

    assert tuple(REGISTRATIONS) == BUILT_IN_STORES
    for name, registration in REGISTRATIONS.items():
        assert (registration.name, registration.schemes) == (name, (name,))
