"""The hooks that a plugin may implement.

A plugin is a module that an entry point of the group "stroma" names. It marks the hooks that
it implements with `hookimpl`, and they hand over factories: nothing is opened, and no driver
imported, until somebody asks for it.

    from stroma import hookimpl

    @hookimpl
    def stroma_register_stores(registry):
        registry.add("redis", RedisFactory(), schemes=("redis", "rediss"))

A module that needs a certain version of this interface says so with ``STROMA_API = 1``. What
Stroma calls during a run are plain protocols, not hooks.
"""

from __future__ import annotations

from typing import Final

from pluggy import HookimplMarker, HookspecMarker

from stroma.registry import ClassifierRegistry, HooksRegistry, PricerRegistry, StoreRegistry

API_VERSION: Final = 1
"""Version of this interface: raised when a hook is added or changed."""

hookspec: Final = HookspecMarker("stroma")
hookimpl: Final = HookimplMarker("stroma")
"""Marks a plugin's implementation of one of the hooks."""


@hookspec
def stroma_register_stores(registry: StoreRegistry) -> None:
    """Offer store backends: ``registry.add(name, factory, schemes=())``.

    A store is used when somebody chooses it by its name or by a URL, never because it is
    installed. The factory is a `StoreFactory`.
    """


@hookspec
def stroma_register_classifiers(registry: ClassifierRegistry) -> None:
    """Offer failure classifiers: ``registry.add(name, factory)``.

    The factory returns a `Classifier`. It is asked in every run, after those that the user
    passes and before the built-in rules, unless it is switched off by name.
    """


@hookspec
def stroma_register_hooks(registry: HooksRegistry) -> None:
    """Offer callbacks: ``registry.add(name, factory)``.

    The factory returns a `NodeHooks`, called in every run after the user's, unless it is
    switched off by name.
    """


@hookspec
def stroma_register_pricers(registry: PricerRegistry) -> None:
    """Offer prices of models: ``registry.add(name, factory)``.

    The factory returns a `Pricer`. It is asked after those that the user passes and before
    the built-in table, unless it is switched off by name.
    """
