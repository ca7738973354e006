"""Installed plugins: found, loaded, isolated when they are broken, and listed.

This is the only user of the plugin manager, and uses it for registration only. Each plugin
gets a manager of its own, so that nothing it does wrong can reach another one.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Final, Literal, NamedTuple, NoReturn, TypeAlias

from stroma import _offers
from stroma._entry_points import Found, entry_points_of
from stroma._offers import Offers
from stroma._version import __version__
from stroma.cost import Pricer
from stroma.errors import MissingPlugin, PluginError
from stroma.failures import Classifier
from stroma.hooks import NodeHooks
from stroma.install_hint import STORE_NAMES, plugin_hint
from stroma.registry import BUILT_IN_STORES, Registry, StoreRegistration, StoreRegistry

logger = logging.getLogger("stroma")

GROUP: Final = "stroma"
"""The entry-point group that plugins are found by."""

Status: TypeAlias = Literal["active", "disabled", "broken"]
Disabled: TypeAlias = Collection[str]


class PluginInfo(NamedTuple):
    """One installed plugin.

    Attributes:
        name: of its entry point.
        distribution: what was installed.
        version: of the distribution.
        provides: such as "store redis", "classifier llm", in the order of registration.
        status: "disabled" ones were not loaded, "broken" ones are not used.
        error: why it is not used, or what of it failed later; None when all is well.
    """

    name: str
    distribution: str
    version: str
    provides: tuple[str, ...]
    status: Status
    error: str | None

    @property
    def label(self) -> str:
        """The plugin and where it is from, for messages."""
        return f"{self.name} ({self.distribution} {self.version})"


class _Plugin:
    """An entry point, and what became of it."""

    def __init__(self, found: Found) -> None:
        self.entry_point, self.distribution, self.version = found
        self.name = self.entry_point.name
        self.status: Status = "active"
        self.error: BaseException | None = None
        self.stores = StoreRegistry()
        self.classifiers: Registry[Classifier] = Registry("classifier")
        self.hooks: Registry[NodeHooks] = Registry("hooks")
        self.pricers: Registry[Pricer] = Registry("pricer")

    @property
    def label(self) -> str:
        return f"{self.name} ({self.distribution} {self.version})"

    @property
    def run_label(self) -> str:
        return f"{self.name} {self.version}"

    @property
    def error_in_words(self) -> str:
        return _in_words(self.error) if self.error else ""

    def answers_to(self, names: Collection[str]) -> bool:
        return self.name in names or self.distribution in names

    def words(self) -> Iterator[str]:
        """Yield what `disabled_plugins` may call it and what it offers to runs."""
        yield from (self.name, self.distribution)
        for registry in (self.classifiers, self.hooks, self.pricers):
            yield from registry.factories

    def store_registrations(self) -> Iterator[StoreRegistration]:
        for name, (factory, schemes) in self.stores.factories.items():
            yield StoreRegistration(name, factory, schemes, self.label)

    def provides(self) -> tuple[str, ...]:
        groups: tuple[tuple[str, Iterable[str]], ...] = (
            ("store", self.stores.factories),
            ("classifier", self.classifiers.factories),
            ("hooks", self.hooks.factories),
            ("pricer", self.pricers.factories),
        )
        return tuple(f"{kind} {name}" for kind, names in groups for name in names)

    def info(self) -> PluginInfo:
        return PluginInfo(
            self.name,
            self.distribution,
            self.version,
            self.provides(),
            self.status,
            self.error_in_words or None,
        )

    def load(self) -> None:
        """Import the plugin and let it register, keeping whatever goes wrong."""
        try:
            self._register(self.entry_point.load())
        except KeyboardInterrupt:
            raise  # the user's, not the plugin's
        except BaseException as exc:  # sys.exit() in a plugin must not end the program
            self.fail(exc)
            self.status = "broken"

    def fail(self, error: BaseException) -> None:
        self.error = error
        logger.warning(
            "plugin %s is broken, and what failed is not used: %s; "
            "`python -m stroma plugins` lists it",
            self.label,
            _in_words(error),
        )

    def _register(self, target: object) -> None:
        # Imported here: without plugins, `import stroma` does not pay for pluggy.
        from pluggy import PluginManager

        from stroma import hookspecs

        _check_api_version(target, hookspecs.API_VERSION)
        manager = PluginManager("stroma")
        manager.add_hookspecs(hookspecs)
        manager.register(target, self.name)
        manager.check_pending()
        _check_marks(target, {hook.name for hook in manager.get_hookcallers(target) or ()})
        for hook, registry in (
            (manager.hook.stroma_register_stores, self.stores),
            (manager.hook.stroma_register_classifiers, self.classifiers),
            (manager.hook.stroma_register_hooks, self.hooks),
            (manager.hook.stroma_register_pricers, self.pricers),
        ):
            _check_results(hook.name, hook(registry=registry))


def _check_api_version(target: object, ours: int) -> None:
    wanted = getattr(target, "STROMA_API", ours)
    if not isinstance(wanted, int) or wanted < 1:
        raise PluginError(f"STROMA_API must be a number from 1, not {wanted!r}")
    if wanted > ours:
        raise PluginError(
            f"it was made for version {wanted} of the plugin interface, and stroma "
            f"{__version__} has version {ours}: upgrade stroma, or install an older version of it"
        )


def _check_marks(target: object, implemented: set[str]) -> None:
    """Refuse what pluggy would pass over in silence."""
    unmarked = [
        name
        for name in dir(target)
        if name.startswith("stroma_register_") and name not in implemented
    ]
    if unmarked:
        raise PluginError(f"{unmarked[0]} is not marked with @hookimpl, so it is never called")
    if not implemented:
        raise PluginError("it implements no hook: see stroma.hookspecs")


def _check_results(hook: str, results: object) -> None:
    for result in results if isinstance(results, list) else ():
        if inspect.iscoroutine(result):
            result.close()
            raise PluginError(f"{hook} is async: registration must be a plain function")


class PluginSet:
    """The plugins of one environment, and what they offer."""

    def __init__(self) -> None:
        self._plugins: tuple[_Plugin, ...] = ()
        self._is_discovered = False
        self._has_offers = False
        self.classifiers = Offers[Classifier](_offers.classifier)
        self.hooks = Offers[NodeHooks](_offers.node_hooks)
        self.pricers = Offers[Pricer](_offers.pricer)
        self._names: dict[frozenset[str], tuple[str, ...]] = {}

    def discover(self, environ: Mapping[str, str] = os.environ) -> None:
        """Find and load the plugins of this environment, once.

        Args:
            environ: where STROMA_PLUGINS and STROMA_DISABLE_PLUGINS are looked up.
        """
        if self._is_discovered:
            return
        self._is_discovered = True  # first, since a plugin may import what calls this
        found = [_Plugin(each) for each in entry_points_of(GROUP)]
        found.sort(key=lambda each: (each.name, each.distribution))
        self._plugins = tuple(found)
        _switch_off(found, environ)
        for plugin in found:
            if plugin.status == "active":
                plugin.load()
            if plugin.status == "active":
                self._take(plugin)

    def _take(self, plugin: _Plugin) -> None:
        for offers, registry in (
            (self.classifiers, plugin.classifiers),
            (self.hooks, plugin.hooks),
            (self.pricers, plugin.pricers),
        ):
            for name, factory in registry.factories.items():
                offers.add(name, plugin, factory)
                self._has_offers = True

    def infos(self) -> tuple[PluginInfo, ...]:
        """Return what is installed, by name."""
        return tuple(plugin.info() for plugin in self._plugins)

    def store(self, name: str) -> StoreRegistration:
        """Return the store backend of a name; see `store_factory`."""
        return self._only([each for each in self._stores() if each.name == name], name)

    def store_for_scheme(self, scheme: str) -> StoreRegistration:
        """Return the store backend of a URL scheme; see `store_for_scheme`."""
        return self._only([each for each in self._stores() if scheme in each.schemes], scheme)

    def active_names(self, disabled: Disabled) -> tuple[str, ...]:
        """Return which plugins take part in a run; see `active_names`."""
        if not self._has_offers:
            return ()
        key = frozenset(disabled)
        names = self._names.get(key)
        if names is None:
            self._warn_of_unknown(key)
            active = [
                offer.plugin.run_label
                for offers in (self.classifiers, self.hooks, self.pricers)
                for offer in offers.active(key)
            ]
            names = self._names[key] = tuple(sorted(set(active)))
        return names

    def _warn_of_unknown(self, disabled: frozenset[str]) -> None:
        known = {word for plugin in self._plugins for word in plugin.words()}
        for word in sorted(disabled - known):
            logger.warning(
                "disabled_plugins names %r, and there is no such plugin, classifier, hooks or "
                "pricer%s",
                word,
                did_you_mean(word, sorted(known)),
            )

    def _stores(self) -> Iterator[StoreRegistration]:
        for plugin in self._plugins:
            if plugin.status == "active":
                yield from plugin.store_registrations()

    def _only(self, found: list[StoreRegistration], word: str) -> StoreRegistration:
        if not found:
            self._explain_missing(word)
        if len(found) > 1:
            parties = " and ".join(each.plugin for each in found)
            raise PluginError(
                f"store {word!r} is offered by {parties}: uninstall one of them, or switch its "
                "plugin off with STROMA_DISABLE_PLUGINS"
            )
        return found[0]

    def _explain_missing(self, word: str) -> NoReturn:
        wanted = {word, STORE_NAMES.get(word, word)}
        for plugin in self._plugins:
            claimed = wanted & {plugin.name, *map(str, plugin.stores.claims)}
            if claimed and plugin.status == "broken":
                raise PluginError(
                    f"store {word!r} cannot be used: plugin {plugin.label} is broken: "
                    f"{plugin.error_in_words}"
                ) from plugin.error
            if claimed and plugin.status == "disabled":
                raise PluginError(
                    f"store {word!r} cannot be used: plugin {plugin.label} is switched off by "
                    "STROMA_PLUGINS or STROMA_DISABLE_PLUGINS"
                )
        if word in STORE_NAMES:
            plugin_name = STORE_NAMES[word]
            raise MissingPlugin(
                f"store {word!r} needs a plugin that is not installed: {plugin_hint(plugin_name)}"
            )
        names = sorted({*BUILT_IN_STORES, *(each.name for each in self._stores())})
        schemes = [scheme for each in self._stores() for scheme in each.schemes]
        longer = sorted(scheme for scheme in schemes if scheme.endswith(f"+{word}"))
        meant = f"; did you mean '{longer[0]}://'?" if longer else did_you_mean(word, names)
        raise PluginError(f"there is no store {word!r}; there are {', '.join(names)}{meant}")


def did_you_mean(word: str, names: Iterable[str]) -> str:
    """Return the end of a sentence that names the nearest of these names, or ""."""
    import difflib  # for the unlucky only

    near = difflib.get_close_matches(word, list(names), 1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _in_words(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")


def _switch_off(found: Iterable[_Plugin], environ: Mapping[str, str]) -> None:
    """Apply the two variables. Set and empty is the same as not set."""
    allowed = _words(environ.get("STROMA_PLUGINS", ""))
    refused = _words(environ.get("STROMA_DISABLE_PLUGINS", ""))
    known: set[str] = set()
    for plugin in found:
        known |= {plugin.name, plugin.distribution}
        is_allowed = not allowed or "*" in allowed or plugin.answers_to(allowed)
        if not is_allowed or "*" in refused or plugin.answers_to(refused):
            plugin.status = "disabled"
    for variable, words in (("STROMA_PLUGINS", allowed), ("STROMA_DISABLE_PLUGINS", refused)):
        for word in sorted(words - known - {"*"}):
            logger.warning(
                "%s names %r, and no such plugin is installed%s",
                variable,
                word,
                did_you_mean(word, sorted(known)),
            )


def _words(text: str) -> frozenset[str]:
    return frozenset(text.replace(",", " ").split())


_installed = PluginSet()


def discover() -> None:
    """Find and load the installed plugins; the first call counts.

    A plugin that is broken is logged, listed and not used: it never stops the caller.
    """
    _installed.discover()


def list_plugins() -> tuple[PluginInfo, ...]:
    """Return what is installed, by name: active, disabled and broken plugins."""
    return _installed.infos()


def store_factory(name: str) -> StoreRegistration:
    """Return the store backend that a plugin offers under a name.

    Raises:
        MissingPlugin: it is one of ours, and not installed; the message says what to install.
        PluginError: the plugin behind the name is broken or switched off, two distributions
            offer it, or none does.
    """
    return _installed.store(name)


def store_for_scheme(scheme: str) -> StoreRegistration:
    """Return the store backend that a plugin offers for URLs with a scheme.

    Raises:
        MissingPlugin: as for `store_factory`.
        PluginError: as for `store_factory`.
    """
    return _installed.store_for_scheme(scheme)


def active_classifiers(disabled: Disabled = ()) -> tuple[tuple[str, Classifier], ...]:
    """Return the installed classifiers with their names, in the order of asking.

    Args:
        disabled: names of classifiers, plugins or distributions to leave out.
    """
    return _installed.classifiers.named(disabled)


def active_hooks(disabled: Disabled = ()) -> tuple[NodeHooks, ...]:
    """Return the installed hooks, in the order of calling; see `active_classifiers`."""
    return _installed.hooks.values(disabled)


def active_pricers(disabled: Disabled = ()) -> tuple[Pricer, ...]:
    """Return the installed pricers, in the order of asking; see `active_classifiers`."""
    return _installed.pricers.values(disabled)


def active_names(disabled: Disabled = ()) -> tuple[str, ...]:
    """Return "name version" of the plugins whose classifiers, hooks or pricers are active."""
    return _installed.active_names(disabled)


_LAZY: Final[Mapping[str, Callable[[], object]]] = {
    "RedisStore": lambda: _attribute_of("redis", "RedisStore"),
    "SyncRedisStore": lambda: _attribute_of("redis", "SyncRedisStore"),
    "hookimpl": lambda: importlib.import_module("stroma.hookspecs").hookimpl,
}


def lazy_attribute(name: str) -> object:
    """Return an attribute of `stroma` that is imported when it is asked for.

    Raises:
        AttributeError: there is none of this name.
        MissingPlugin: the plugin that has it is not installed; the message says what to install.
        PluginError: the plugin is installed, and cannot be imported.
    """
    if name not in _LAZY:
        raise AttributeError(f"module 'stroma' has no attribute {name!r}")
    return _LAZY[name]()


def _attribute_of(plugin: str, name: str) -> object:
    module = f"stroma_{plugin}"
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as exc:
        if exc.name == module:
            raise MissingPlugin(
                f"{name} needs a plugin that is not installed: {plugin_hint(plugin)}"
            ) from exc
        raise PluginError(f"{name} cannot be used: {module} is broken: {_in_words(exc)}") from exc
    except Exception as exc:
        raise PluginError(f"{name} cannot be used: {module} is broken: {_in_words(exc)}") from exc
