"""What is known and not installed: the error says what to type."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

from stroma import plugins
from stroma.errors import MissingPlugin, PluginError
from stroma.hookspecs import hookimpl
from stroma.install_hint import PLUGIN_DISTRIBUTIONS, extra_hint, plugin_hint
from stroma.plugins import PluginSet


@pytest.fixture(autouse=True)
def _no_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "_installed", PluginSet())


@pytest.mark.parametrize(
    ("word", "distribution"),
    [
        ("redis", "stroma-redis"),
        ("rediss", "stroma-redis"),
        ("redis+unix", "stroma-redis"),
        ("postgres", "stroma-postgres"),
        ("postgresql", "stroma-postgres"),
        ("s3", "stroma-s3"),
    ],
)
def test_a_known_store_says_what_to_install(word: str, distribution: str) -> None:
    for ask in (plugins.store_factory, plugins.store_for_scheme):
        with pytest.raises(MissingPlugin, match=f"pip install ./stroma-core ./{distribution}$"):
            ask(word)


def test_hints_name_all_distributions_in_one_command() -> None:
    for plugin, distribution in PLUGIN_DISTRIBUTIONS.items():
        assert f"./stroma-core ./{distribution}" in plugin_hint(plugin)
    assert "pip install './stroma-core[cli]'" in extra_hint("cli")


@pytest.mark.parametrize("name", ["RedisStore", "SyncRedisStore"])
def test_a_lazy_class_says_what_to_install(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "stroma_redis", None)

    with pytest.raises(MissingPlugin, match=f"{name} needs a plugin.*./stroma-redis$"):
        plugins.lazy_attribute(name)


def test_a_lazy_class_comes_from_the_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("stroma_redis")
    module.__dict__["RedisStore"] = store = type("RedisStore", (), {})
    monkeypatch.setitem(sys.modules, "stroma_redis", module)

    assert plugins.lazy_attribute("RedisStore") is store
    with pytest.raises(PluginError, match="SyncRedisStore cannot be used: stroma_redis is broken"):
        plugins.lazy_attribute("SyncRedisStore")


def test_a_missing_driver_is_not_taken_for_a_missing_plugin(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(name: str) -> ModuleType:
        raise ModuleNotFoundError("No module named 'redis'", name="redis")

    monkeypatch.setattr("importlib.import_module", fail)

    with pytest.raises(PluginError, match=r"stroma_redis is broken: .*'redis'") as caught:
        plugins.lazy_attribute("RedisStore")
    assert not isinstance(caught.value, MissingPlugin)


def test_hookimpl_is_lazy_and_other_names_are_none() -> None:
    assert plugins.lazy_attribute("hookimpl") is hookimpl
    with pytest.raises(AttributeError, match="module 'stroma' has no attribute 'nope'"):
        plugins.lazy_attribute("nope")
