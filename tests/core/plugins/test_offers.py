"""Classifiers, hooks and pricers of plugins: made on first use, isolated, and switched off."""

from __future__ import annotations

import logging
from collections.abc import Callable
from decimal import Decimal

import pytest

from stroma import plugins
from stroma.cost import Price
from stroma.errors import ConfigError
from stroma.failures import FailureClass, NodeContext
from stroma.hooks import NodeHooks
from stroma.plugins import PluginSet
from stroma.registry import Registry, StoreRegistry
from tests.core.plugins.fakes import EmptyOptions, Factory, Registering, plugin_set

PRICE = Price(Decimal(1), Decimal(2), "a list")


def classify(exc: Exception, ctx: NodeContext) -> FailureClass | None:
    return None


def priced(model: str, input_tokens: int, output_tokens: int, /) -> Price | None:
    return PRICE if model == "known" else None


def registered(**kinds: dict[str, Callable[[], object]]) -> Registering:
    return Registering(kinds)


def test_without_plugins_there_is_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "_installed", PluginSet())

    assert plugins.active_classifiers() == ()
    assert plugins.active_hooks(["x"]) == ()
    assert plugins.active_pricers(frozenset()) == ()
    assert plugins.active_names(()) == ()


def test_what_is_active_is_made_once_and_then_looked_up() -> None:
    calls: list[str] = []

    def make() -> NodeHooks:
        calls.append("made")
        return NodeHooks()

    found = plugin_set(registered(hooks={"timer": make}))

    assert calls == []
    assert found.hooks.values(()) is found.hooks.values(frozenset())
    assert calls == ["made"]


def test_hooks_are_named_after_their_registration() -> None:
    unnamed, named = NodeHooks(), NodeHooks(name="own")
    found = plugin_set(registered(hooks={"timer": lambda: unnamed, "other": lambda: named}))

    assert [hooks.name for hooks in found.hooks.values(())] == ["timer", "own"]
    assert unnamed.name == ""


def test_plugins_come_in_the_order_of_their_names() -> None:
    found = plugin_set(
        registered(classifiers={"z": lambda: classify}),
        registered(classifiers={"b": lambda: classify, "a": lambda: classify}),
    )

    assert [name for name, _ in found.classifiers.named(())] == ["z", "b", "a"]


@pytest.mark.parametrize("word", ["timer", "plugin0", "sample-plugin0"])
def test_it_can_be_switched_off_by_its_own_its_plugins_and_its_distributions_name(
    word: str,
) -> None:
    found = plugin_set(
        registered(hooks={"timer": NodeHooks}), registered(classifiers={"c": lambda: classify})
    )

    assert found.hooks.values([word]) == ()
    assert len(found.hooks.values(["another"])) == 1
    assert found.active_names([word]) == ("plugin1 1.0",)
    assert found.active_names(()) == ("plugin0 1.0", "plugin1 1.0")


def test_a_misspelt_name_to_switch_off_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    found = plugin_set(registered(hooks={"timer": NodeHooks}), registered(stores={"box": Factory}))
    disabled = ["timer", "plugin1", "sample-plugin0", "tiemr"]

    with caplog.at_level(logging.WARNING, logger="stroma"):
        for _ in range(2):
            assert found.active_names(disabled) == ()

    (record,) = caplog.records
    assert record.getMessage() == (
        "disabled_plugins names 'tiemr', and there is no such plugin, classifier, hooks or "
        "pricer; did you mean 'timer'?"
    )


def test_a_store_alone_is_not_active_in_runs() -> None:
    found = plugin_set(registered(stores={"box": Factory}))

    assert found.active_names(()) == ()
    assert found.store("box").plugin == "plugin0 (sample-plugin0 1.0)"


@pytest.mark.parametrize(
    ("kind", "made", "message"),
    [
        ("hooks", 1, "hooks 'bad' are a int, not NodeHooks"),
        ("classifiers", 1, "classifier 'bad' is a int, which cannot be called"),
        ("pricers", 1, "pricer 'bad' is a int, which cannot be called"),
        ("hooks", RuntimeError("no key"), "no key"),
    ],
)
def test_a_factory_that_fails_is_left_out_logged_once_and_listed(
    kind: str, made: object, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    def bad() -> object:
        if isinstance(made, Exception):
            raise made
        return made

    found = plugin_set(registered(**{kind: {"bad": bad}, "pricers2": {}}))

    with caplog.at_level(logging.WARNING, logger="stroma"):
        for _ in range(2):
            assert getattr(found, kind).values(()) == ()
        assert found.active_names(()) == ()

    assert caplog.text.count(message) == 1
    (info,) = found.infos()
    assert message in (info.error or "")


def test_a_factory_that_needs_the_plugins_finds_none_instead_of_itself() -> None:
    found = PluginSet()

    def make() -> NodeHooks:
        assert found.hooks.values(()) == ()
        return NodeHooks()

    plugin_set(registered(hooks={"deep": make}), into=found)

    assert len(found.hooks.values(())) == 1
    assert len(found.hooks.values(())) == 1


def test_a_pricer_that_raises_is_passed_over_and_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def bad(model: str, input_tokens: int, output_tokens: int, /) -> Price | None:
        raise LookupError(model)

    def odd(model: str, input_tokens: int, output_tokens: int, /) -> object:
        return 3.5

    found = plugin_set(
        registered(pricers={"bad": lambda: bad, "odd": lambda: odd, "good": lambda: priced})
    )

    with caplog.at_level(logging.WARNING, logger="stroma"):
        answers = [ask("known", 1, 1) for ask in found.pricers.values(()) * 2]

    assert answers == [None, None, PRICE] * 2
    assert [record.getMessage()[:10] for record in caplog.records] == ["pricer bad", "pricer odd"]


@pytest.mark.parametrize("name", ["", "Redis", "a b", "é", "-x", "x" * 65, 7])
def test_malformed_names_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="must match"):
        StoreRegistry().add(name, Factory())
    with pytest.raises(ConfigError, match="must match"):
        Registry[object]("hooks").add(name, object)


def test_a_name_or_scheme_is_registered_once_by_a_plugin() -> None:
    stores, hooks = StoreRegistry(), Registry[object]("hooks")
    stores.add("box", Factory(), schemes=["box", "boxes"])
    hooks.add("timer", object)

    with pytest.raises(ConfigError, match="store 'box' is registered twice"):
        stores.add("box", Factory())
    with pytest.raises(ConfigError, match="URL scheme 'boxes' is registered twice"):
        stores.add("crate", Factory(), schemes="boxes")
    with pytest.raises(ConfigError, match="hooks 'timer' is registered twice"):
        hooks.add("timer", object)
    assert stores.factories.keys() == {"box"}


@pytest.mark.parametrize("word", ["memory", "sqlite"])
def test_built_in_schemes_cannot_be_overridden(word: str) -> None:
    with pytest.raises(ConfigError, match=f"store '{word}' is built in"):
        StoreRegistry().add("mine", Factory(), schemes=(word,))


def test_a_factory_has_to_have_its_parts() -> None:
    class Half:
        options = EmptyOptions

    with pytest.raises(ConfigError, match="'box' has no from_url, open: see StoreFactory"):
        StoreRegistry().add("box", Half())  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="must be a callable without parameters, not str"):
        Registry[object]("hooks").add("timer", "timer")  # type: ignore[arg-type]
