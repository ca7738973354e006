"""What plugins hand over: factories under names, collected before anything is asked for."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Generic, NamedTuple, Protocol, TypeAlias, TypeVar

from pydantic import BaseModel

from stroma.cost import Pricer
from stroma.errors import ConfigError
from stroma.failures import Classifier
from stroma.hooks import NodeHooks

F = TypeVar("F")
OptionsT = TypeVar("OptionsT", bound=BaseModel)

BUILT_IN_STORES: Final = ("memory", "sqlite")
"""Names and URL schemes that no plugin can have."""

NAME_PATTERN: Final = re.compile(r"[a-z][a-z0-9_-]{0,63}")
"""What names of stores, classifiers, hooks and pricers look like."""

_SCHEME_PATTERN = re.compile(r"[a-z][a-z0-9+.-]{1,63}")


class StoreFactory(Protocol[OptionsT]):
    """Makes the stores of one backend. Making the factory itself must not import a driver.

    Core validates options against the model before `open`, refuses those that the model does
    not have, and masks passwords in what it says about them.
    """

    @property
    def options(self) -> type[OptionsT]:
        """The model of the backend's options. A property may import it when it is asked for."""
        ...

    def from_url(self, url: str) -> Mapping[str, object]:
        """Return the options that a URL with one of the registered schemes stands for.

        Raises:
            ValueError: the URL cannot be one of this backend; the message says why.
        """
        ...

    def open(self, options: OptionsT) -> object:
        """Return a new store. It should connect on first use, not here.

        Raises:
            StromaError: the store cannot be used as it was asked for.
        """
        ...


class StoreRegistration(NamedTuple):
    """A store backend as it was registered.

    Attributes:
        name: what the backend is chosen by.
        factory: makes its stores.
        schemes: URL schemes that choose it, in lower case.
        plugin: whose it is, such as "redis (stroma-redis 1.0.0)"; "" for built-in ones.
    """

    name: str
    factory: StoreFactory[Any]
    schemes: tuple[str, ...] = ()
    plugin: str = ""


class StoreRegistry:
    """Takes the store backends of one plugin."""

    def __init__(self) -> None:
        self.claims: list[str] = []
        self.factories: dict[str, tuple[StoreFactory[Any], tuple[str, ...]]] = {}

    def add(
        self, name: str, factory: StoreFactory[OptionsT], *, schemes: Iterable[str] = ()
    ) -> None:
        """Offer a store backend.

        Args:
            name: what users choose it by, as in ``store="redis"``: lower case letters,
                digits, "-" and "_".
            factory: makes the stores.
            schemes: what begins the URLs that choose it, as in ``redis://``.

        Raises:
            ConfigError: the name or a scheme is malformed, built in or registered already, or
                the factory lacks something.
        """
        schemes = (schemes,) if isinstance(schemes, str) else tuple(schemes)
        # Noted first: if this fails, whoever asks for one of these names is told why.
        self.claims += [name, *schemes]
        _check_name(name, NAME_PATTERN, "store name")
        for scheme in schemes:
            _check_name(scheme, _SCHEME_PATTERN, "URL scheme")
        self._check_free(name, schemes)
        missing = [part for part in ("options", "from_url", "open") if not _has(factory, part)]
        if missing:
            raise ConfigError(
                f"the factory of store {name!r} has no {', '.join(missing)}: see StoreFactory"
            )
        self.factories[name] = (factory, schemes)

    def _check_free(self, name: str, schemes: tuple[str, ...]) -> None:
        for word in (name, *schemes):
            if word in BUILT_IN_STORES:
                raise ConfigError(f"store {word!r} is built in, and cannot be overridden")
        if name in self.factories:
            raise ConfigError(f"store {name!r} is registered twice by this plugin")
        taken = {scheme for _, others in self.factories.values() for scheme in others}
        twice = sorted(taken & set(schemes))
        if twice:
            raise ConfigError(f"URL scheme {twice[0]!r} is registered twice by this plugin")


class Registry(Generic[F]):
    """Takes what one plugin offers of one kind, as factories called on first use.

    Args:
        kind: what they make, for messages.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.factories: dict[str, Callable[[], F]] = {}

    def add(self, name: str, factory: Callable[[], F]) -> None:
        """Offer something under a name by which users can switch it off.

        Args:
            name: lower case letters, digits, "-" and "_".
            factory: called without arguments, once, when a run first needs it.

        Raises:
            ConfigError: the name is malformed or registered already, or the factory cannot be
                called.
        """
        _check_name(name, NAME_PATTERN, f"{self.kind} name")
        if name in self.factories:
            raise ConfigError(f"{self.kind} {name!r} is registered twice by this plugin")
        if not callable(factory):
            raise ConfigError(
                f"the factory of {self.kind} {name!r} must be a callable without parameters, "
                f"not {type(factory).__name__}"
            )
        self.factories[name] = factory


ClassifierRegistry: TypeAlias = Registry[Classifier]
HooksRegistry: TypeAlias = Registry[NodeHooks]
PricerRegistry: TypeAlias = Registry[Pricer]


def _has(factory: object, part: str) -> bool:
    # Without calling it: a property that imports a driver's module must not run yet.
    return inspect.getattr_static(factory, part, None) is not None


def _check_name(name: object, pattern: re.Pattern[str], what: str) -> None:
    if not isinstance(name, str) or not pattern.fullmatch(name):
        raise ConfigError(f"{what} {name!r} must match {pattern.pattern}")
