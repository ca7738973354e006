"""Plugins without entry points, for tests of what happens after loading."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint

import pytest
from pydantic import BaseModel

from stroma import hookspecs, plugins
from stroma._entry_points import Found
from stroma.plugins import PluginSet
from stroma.registry import (
    ClassifierRegistry,
    HooksRegistry,
    PricerRegistry,
    StoreFactory,
    StoreRegistry,
)


class EmptyOptions(BaseModel):
    """No options."""


class Factory:
    """Makes objects."""

    options = EmptyOptions

    def from_url(self, url: str) -> Mapping[str, object]:
        return {}

    def open(self, options: EmptyOptions) -> object:
        return object()


Offered = Mapping[str, Callable[[], object]]


class Registering:
    """A plugin that offers, by kind and name, what it was made with."""

    def __init__(self, kinds: Mapping[str, Offered], schemes: tuple[str, ...] = ()) -> None:
        self.kinds = kinds
        self.schemes = schemes

    @hookspecs.hookimpl
    def stroma_register_stores(self, registry: StoreRegistry) -> None:
        for name, make in self.kinds.get("stores", {}).items():
            factory: StoreFactory[EmptyOptions] = make()  # type: ignore[assignment]
            registry.add(name, factory, schemes=self.schemes)

    @hookspecs.hookimpl
    def stroma_register_classifiers(self, registry: ClassifierRegistry) -> None:
        self._offer("classifiers", registry)

    @hookspecs.hookimpl
    def stroma_register_hooks(self, registry: HooksRegistry) -> None:
        self._offer("hooks", registry)

    @hookspecs.hookimpl
    def stroma_register_pricers(self, registry: PricerRegistry) -> None:
        self._offer("pricers", registry)

    def _offer(
        self, kind: str, registry: ClassifierRegistry | HooksRegistry | PricerRegistry
    ) -> None:
        for name, make in self.kinds.get(kind, {}).items():
            registry.add(name, make)  # type: ignore[arg-type]


class _Loaded:
    """An entry point that gives an object of the test's."""

    def __init__(self, name: str, target: object) -> None:
        self.name = name
        self._target = target

    def load(self) -> object:
        return self._target


def plugin_set(*targets: object, into: PluginSet | None = None) -> PluginSet:
    """Return the plugins plugin0, plugin1, … of the distributions sample-plugin0, …"""
    found = PluginSet() if into is None else into
    entries = [
        Found(_as_entry_point(_Loaded(f"plugin{i}", target)), f"sample-plugin{i}", "1.0")
        for i, target in enumerate(targets)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plugins, "entry_points_of", lambda group: iter(entries))
        found.discover({})
    return found


def _as_entry_point(loaded: _Loaded) -> EntryPoint:
    return loaded  # type: ignore[return-value]
