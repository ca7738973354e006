"""What plugins offer to every run: made on first use, isolated, and cached for each run."""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Callable, Collection
from typing import Generic, NamedTuple, Protocol, TypeVar, cast

from stroma.cost import Price, Pricer
from stroma.failures import Classifier
from stroma.hooks import NodeHooks

logger = logging.getLogger("stroma")

T = TypeVar("T")


class Owner(Protocol):
    """The plugin behind an offer."""

    @property
    def run_label(self) -> str:
        """What run records call it."""
        ...

    def answers_to(self, names: Collection[str]) -> bool:
        """Whether one of these names means it."""
        ...

    def fail(self, error: BaseException) -> None:
        """Keep and log an error."""
        ...


class Offer(NamedTuple, Generic[T]):
    """Something that is there for every run.

    Attributes:
        name: what it was registered as.
        plugin: whose it is.
        value: what the factory made.
    """

    name: str
    plugin: Owner
    value: T


class Offers(Generic[T]):
    """The offers of one kind, in the order in which they are used.

    Args:
        finish: makes of a name and what the factory returned what a run uses; raises if it is
            something else.
    """

    def __init__(self, finish: Callable[[str, object], T]) -> None:
        self._finish = finish
        self._pending: list[tuple[str, Owner, Callable[[], object]]] = []
        self._made: tuple[Offer[T], ...] | None = None
        self._lock = threading.RLock()
        self._values: dict[frozenset[str], tuple[T, ...]] = {}
        self._named: dict[frozenset[str], tuple[tuple[str, T], ...]] = {}

    def add(self, name: str, plugin: Owner, factory: Callable[[], object]) -> None:
        """Note a factory, to be called when a run first needs it."""
        self._pending.append((name, plugin, factory))

    def values(self, disabled: Collection[str]) -> tuple[T, ...]:
        """Return what is active. Called for every run, so that it is looked up, not made."""
        if not self._pending:
            return ()
        key = frozenset(disabled)
        found = self._values.get(key)
        if found is None:
            found = self._values[key] = tuple(offer.value for offer in self.active(key))
        return found

    def named(self, disabled: Collection[str]) -> tuple[tuple[str, T], ...]:
        """Return what is active, with its names."""
        if not self._pending:
            return ()
        key = frozenset(disabled)
        found = self._named.get(key)
        if found is None:
            found = self._named[key] = tuple((each.name, each.value) for each in self.active(key))
        return found

    def active(self, disabled: Collection[str]) -> list[Offer[T]]:
        """Return the offers that are not switched off, by their own or their plugin's name."""
        return [
            offer
            for offer in self._all()
            if offer.name not in disabled and not offer.plugin.answers_to(disabled)
        ]

    def _all(self) -> tuple[Offer[T], ...]:
        with self._lock:
            if self._made is None:
                self._made = ()  # a factory that starts a run of its own finds nothing, not itself
                self._made = tuple(self._make())
                self._values.clear()
                self._named.clear()
            return self._made

    def _make(self) -> list[Offer[T]]:
        made = []
        for name, plugin, factory in self._pending:
            try:
                made.append(Offer(name, plugin, self._finish(name, factory())))
            except Exception as exc:
                plugin.fail(exc)
        return made


def classifier(name: str, made: object) -> Classifier:
    """Return a plugin's classifier.

    Raises:
        TypeError: it is none.
    """
    if not callable(made):
        raise TypeError(f"classifier {name!r} is a {type(made).__name__}, which cannot be called")
    return cast("Classifier", made)


def node_hooks(name: str, made: object) -> NodeHooks:
    """Return a plugin's hooks, named after their registration unless they have a name.

    Raises:
        TypeError: they are none.
    """
    if not isinstance(made, NodeHooks):
        raise TypeError(f"hooks {name!r} are a {type(made).__name__}, not NodeHooks")
    if made.name:
        return made
    named = copy.copy(made)
    named.name = name
    return named


def pricer(name: str, made: object) -> Pricer:
    """Return a plugin's pricer, passed over when it raises: it must not end somebody's run.

    Raises:
        TypeError: it is none.
    """
    if not callable(made):
        raise TypeError(f"pricer {name!r} is a {type(made).__name__}, which cannot be called")
    return _GuardedPricer(name, cast("Pricer", made))


class _GuardedPricer:
    def __init__(self, name: str, ask: Pricer) -> None:
        self._name = name
        self._ask = ask
        self._is_reported = False

    def __call__(self, model: str, input_tokens: int, output_tokens: int, /) -> Price | None:
        try:
            price = self._ask(model, input_tokens, output_tokens)
            if price is None or isinstance(price, Price):
                return price
            raise TypeError(f"it returned a {type(price).__name__}, not a Price or None")
        except Exception:
            if not self._is_reported:
                self._is_reported = True
                logger.warning(
                    "pricer %s failed on model %r; it is passed over, and this is said once",
                    self._name,
                    model,
                    exc_info=True,
                )
            return None
