"""Choosing a store: by object, by name, by URL, or by the environment's configuration."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from pydantic import BaseModel, ValidationError

from stroma import plugins
from stroma.errors import ConfigError, PluginError, StromaError
from stroma.registry import BUILT_IN_STORES, NAME_PATTERN, StoreRegistration
from stroma.schemas import describe

logger = logging.getLogger("stroma")

ENVIRONMENT_VARIABLE: Final = "STROMA_STORE"
VARIABLES: Final = (ENVIRONMENT_VARIABLE, "STROMA_PLUGINS", "STROMA_DISABLE_PLUGINS")
"""All that are read."""

_PREFIX: Final = "STROMA_"
_OF_TESTS: Final = re.compile("STROMA_(TEST|FAULTS|PLANTED|WRITE|EXPECTED)_")
_warned: set[str] = set()
OWN_FILE: Final = "stroma.toml"
SHARED_FILE: Final = "pyproject.toml"

_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+):")


class StoreChoice(NamedTuple):
    """A store that the environment's configuration names.

    Attributes:
        spec: its name or URL.
        options: its options.
        source: where this was found, for messages, such as "stroma.toml: [store]".
    """

    spec: str
    options: Mapping[str, object]
    source: str


def open_store(spec: object, options: Mapping[str, object] | None = None) -> object:
    """Return the store that a user chose.

    Args:
        spec: a store object, which is returned as it is; a name, such as "sqlite"; or a URL,
            such as "sqlite:///runs.db" or "memory:".
        options: of the backend; beside a URL they add to what it says.

    Returns:
        The store. Whoever calls this closes it, unless it was handed in.

    Raises:
        ConfigError: the choice or an option is wrong; the message names what is accepted.
        PluginError: no usable plugin offers the store.
        StoreError: the backend refused to open it.
    """
    options = dict(options or {})
    if isinstance(spec, os.PathLike):
        raise ConfigError(_path_hint(os.fspath(spec)))
    if not isinstance(spec, str):
        if options:
            raise ConfigError(
                f"options ({', '.join(options)}) go with the name or URL of a store; "
                f"this {type(spec).__name__} is open already"
            )
        return spec
    registration, from_url = _look_up(spec)
    merged = _merge(mask_passwords(spec), from_url, options)
    return _open(registration, merged, mask_passwords(spec))


def _look_up(spec: str) -> tuple[StoreRegistration, Mapping[str, object]]:
    """Return the backend that a name or URL means, and the options that the URL stands for."""
    url = _URL.match(spec)
    if url is None:
        if not NAME_PATTERN.fullmatch(spec):
            raise ConfigError(_path_hint(spec))
        return _built_in(spec) or plugins.store_factory(spec), {}
    scheme = url["scheme"].lower()
    registration = _built_in(scheme) or plugins.store_for_scheme(scheme)
    spec = scheme + spec[len(scheme) :]
    try:
        return registration, dict(registration.factory.from_url(spec))
    except StromaError:
        raise
    except Exception as exc:
        raise ConfigError(
            f"store URL {mask_passwords(spec)!r}: {mask_passwords(str(exc))}"
        ) from _without_secrets(exc)


def _built_in(word: str) -> StoreRegistration | None:
    if word not in BUILT_IN_STORES:
        return None
    # Their models of options are not made by `import stroma`, which most programs do for less.
    from stroma._built_in_stores import REGISTRATIONS

    return REGISTRATIONS[word]


def _path_hint(path: str | bytes) -> str:
    text = mask_passwords(os.fsdecode(path)).replace("\\", "/")
    bare = text.strip(_AROUND)
    if not bare:
        hint = "it is empty: write one such as 'sqlite:///runs.db'"
    elif bare != text:
        hint = "remove the quotes and blanks around it"
    elif "@" in text:
        hint = "a URL begins with a scheme, such as 'redis://' or 'postgresql://'"
    else:
        hint = f"for a SQLite file write 'sqlite:///{text}'"
    return f"store {text!r} is neither a name nor a URL: {hint}"


_AROUND: Final = " \t\r\n'\"`"


def _merge(
    spec: str, from_url: Mapping[str, object], options: Mapping[str, object]
) -> dict[str, object]:
    for name in options:
        if name in from_url and from_url[name] != options[name]:
            raise ConfigError(
                f"store {spec!r}: option {name!r} is given beside the URL, which says something "
                "else: give it once"
            )
    return {**from_url, **options}


def _open(registration: StoreRegistration, options: dict[str, object], spec: str) -> object:
    factory, name = registration.factory, registration.name
    try:
        model: type[BaseModel] = factory.options
        checked = _checked(model, options, name)
        return factory.open(checked)
    except StromaError:
        raise
    except Exception as exc:
        whose = f" of plugin {registration.plugin}" if registration.plugin else ""
        raise PluginError(
            f"store {spec!r}{whose} could not be opened: "
            f"{type(exc).__name__}: {mask_passwords(str(exc))}"
        ) from _without_secrets(exc)


def _checked(model: type[BaseModel], options: dict[str, object], name: str) -> BaseModel:
    accepted = _option_names(model)
    takes = ", ".join(accepted) or "no options"
    if model.model_config.get("extra") != "allow":
        for option in options:
            if option not in accepted:
                raise ConfigError(
                    f"store {name!r} has no option {option!r}: it takes {takes}"
                    f"{plugins.did_you_mean(option, accepted)}"
                )
    try:
        return model.model_validate(options)
    except ValidationError as exc:
        # Not chained: pydantic repeats the values, and one of them may be a password.
        problems = mask_passwords("; ".join(describe(exc, whole="")))
        raise ConfigError(f"store {name!r}: {problems}; it takes {takes}") from None


def _option_names(model: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()]


_SECRETS: Final = (
    # Greedy, up to the last "@": a password may hold any character.
    (re.compile(r"(//[^\s/@:]*):\S+@"), r"\1:***@"),
    (re.compile(r":(?!//)\S+@"), ":***@"),  # of one whose scheme was left out
    (
        re.compile(
            r"((?:password|passwd|passphrase|pwd|secret|token|api_?key)\w*\s*=\s*)"
            r"('[^']*'|\"[^\"]*\"|[^\s&;]+)",
            re.IGNORECASE,
        ),
        r"\1***",
    ),
)


def mask_passwords(text: str) -> str:
    """Return a text with the passwords of URLs and connection strings as ``***``.

    What stands between a ":" and an "@" counts as one, whatever it is.
    """
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


def _without_secrets(exc: Exception) -> Exception | None:
    """Return the cause to chain: none if printing it would print a password."""
    return exc if mask_passwords(repr(exc)) == repr(exc) else None


def default_store_spec(
    environ: Mapping[str, str] = os.environ, folder: Path | None = None
) -> StoreChoice | None:
    """Return the store that is configured outside the program.

    The first of these counts: the variable STROMA_STORE, `stroma.toml`, and `[tool.stroma]`
    in `pyproject.toml`, both in the working directory. An empty variable is none. One that
    begins like ours and is none of them is told in a warning, once.

    Args:
        environ: where the variable is looked up.
        folder: where the files are; None is the working directory.

    Raises:
        ConfigError: a file is malformed or has an unknown key; the message names both.
    """
    _warn_of_others(environ)
    spec = environ.get(ENVIRONMENT_VARIABLE, "")
    if spec:
        return StoreChoice(spec, {}, ENVIRONMENT_VARIABLE)
    folder = folder or Path()
    settings = _read_toml(folder / OWN_FILE)
    if settings is not None:
        choice = _choice(settings, OWN_FILE, "")
        if choice is not None:
            return choice
    settings = _read_toml(folder / SHARED_FILE)
    tool = (settings or {}).get("tool")
    if not isinstance(tool, dict) or "stroma" not in tool:
        return None
    return _choice(_table(tool["stroma"], SHARED_FILE, "tool.stroma"), SHARED_FILE, "tool.stroma.")


def _warn_of_others(environ: Mapping[str, str]) -> None:
    """Warn of variables that look like ours and are not read, as they may be misspelt."""
    for name in environ:
        if not name.startswith(_PREFIX) or name in VARIABLES or name in _warned:
            continue
        if not _OF_TESTS.match(name):
            _warned.add(name)
            ours = [each.removeprefix(_PREFIX) for each in VARIABLES]
            near = plugins.did_you_mean(name.removeprefix(_PREFIX), ours)
            hint = near.replace("'", f"'{_PREFIX}", 1) or f"; it reads {', '.join(VARIABLES)}"
            logger.warning("Stroma does not read the environment variable %s%s", name, hint)


def open_default_store(
    environ: Mapping[str, str] = os.environ, folder: Path | None = None
) -> object | None:
    """Open the store that is configured outside the program; None if none is.

    Raises:
        StromaError: as `open_store`; the message begins with where the choice was found.
    """
    choice = default_store_spec(environ, folder)
    return None if choice is None else _open_choice(choice)


def open_shared_store(spec: object = None) -> object:
    """Return a store whose runs other processes are to see.

    Args:
        spec: as for `open_store`; None takes the one that is configured outside the program.

    Raises:
        ConfigError: none is configured, or it would be a new one in memory, which nobody else sees.
        StromaError: as `open_store`.
    """
    if spec is not None:
        if isinstance(spec, str) and _is_in_memory(spec):
            raise unshared(f"store {mask_passwords(spec)!r}")
        return open_store(spec)
    choice = default_store_spec()
    if choice is None:
        raise ConfigError(
            "there is no store that workers share: set STROMA_STORE, write it into stroma.toml, "
            "or give the pipeline a runner that has one: Pipeline(…, runner=StromaRunner.quick("
            "store='sqlite:///runs.db'))"
        )
    if _is_in_memory(choice.spec):
        raise unshared(choice.source)
    return _open_choice(choice)


def unshared(whose: str) -> ConfigError:
    """Return the refusal of a store in memory where other processes are to see it."""
    return ConfigError(
        f"{whose}: a store in memory is seen by one process only, and ends with it: name one that "
        "processes share, such as sqlite:///runs.db"
    )


def _is_in_memory(spec: str) -> bool:
    return spec.partition(":")[0].lower() == "memory"


def _open_choice(choice: StoreChoice) -> object:
    try:
        return open_store(choice.spec, choice.options)
    except (ConfigError, PluginError) as exc:
        raise type(exc)(f"{choice.source}: {exc}") from exc.__cause__


def _read_toml(path: Path) -> dict[str, Any] | None:
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as exc:
        raise ConfigError(f"{path} cannot be read: {exc.strerror}") from exc
    if path.name == SHARED_FILE and b"stroma" not in data:
        return None  # other tools' settings are not parsed on our account
    import tomllib

    try:
        return tomllib.loads(data.decode())
    except ValueError as exc:
        raise ConfigError(f"{path} is no TOML: {exc}") from exc


def _choice(settings: dict[str, Any], file: str, prefix: str) -> StoreChoice | None:
    for key in settings:
        if key != "store":
            raise ConfigError(
                f"{file}: there is no key {prefix + key!r}, only {prefix + 'store'!r}"
            )
    store = settings.get("store")
    if store is None:
        return None
    key = f"{prefix}store"
    if isinstance(store, str):
        return StoreChoice(store, {}, f"{file}: {key}")
    return _choice_in_table(_table(store, file, key), file, key)


def _choice_in_table(table: dict[str, Any], file: str, key: str) -> StoreChoice:
    """Read a name and its options, or a URL and its options: beside a name, "url" is one."""
    named_by = "name" if "name" in table else "url"
    options = {name: value for name, value in table.items() if name != named_by}
    spec = table.get(named_by)
    if spec is None:
        raise ConfigError(
            f'{file}: [{key}] needs a name or a url, such as name = "sqlite", which says which '
            f"store it is{_of_which(options)}"
        )
    if not isinstance(spec, str):
        raise ConfigError(
            f"{file}: [{key}]: {named_by} must be text, such as "
            f"{_EXAMPLES[named_by]!r}, not {type(spec).__name__}"
        )
    return StoreChoice(spec, options, f"{file}: [{key}]")


_EXAMPLES: Final = {"name": "sqlite", "url": "sqlite:///runs.db"}


def _of_which(options: Iterable[str]) -> str:
    names = ", ".join(map(repr, options))
    return f"; it has only {names}" if names else ""


def _table(value: object, file: str, key: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{file}: {key} must be a table, not {value!r}")
    return value
