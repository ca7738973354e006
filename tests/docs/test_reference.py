"""The reference names everything public, with the signature that it has."""

import dataclasses
import inspect
import re
import typing
from collections.abc import Iterator
from types import FunctionType, ModuleType
from typing import Any

import pytest
import typer
from pydantic import BaseModel

import stroma
from stroma import NodeHooks, RunConfig, StromaError, errors, hookspecs, record_codec
from stroma._built_in_stores import REGISTRATIONS
from stroma.checkpoint import Capabilities, RecordStore, check_size
from stroma.cli.app import app
from stroma.hooks import EVENTS
from stroma.per_loop import PerLoop
from stroma.records import (
    Commit,
    OpenedRun,
    OpenRequest,
    RunUpdate,
    check_digest,
    digest_of,
    epochs_from_text,
    epochs_to_text,
    last_result,
)
from stroma.scope import NodeScope
from stroma.stores import rules
from tests.docs.pages import ROOT

REFERENCE = {
    page.name: page.read_text(encoding="utf-8") for page in (ROOT / "docs/reference").glob("*.md")
}
EVERYTHING = "\n".join(REFERENCE.values())
# What the runner itself uses, and nobody else has to.
INTERNAL = {
    "CheckpointManager": {"batcher", "commit_many", "is_in_memory", "is_set_up", "setup"},
}

CLASSES = [
    value
    for name in stroma.__all__
    if inspect.isclass(value := getattr(stroma, name)) and name not in vars(errors)
]
FUNCTIONS = [value for name in stroma.__all__ if inspect.isfunction(value := getattr(stroma, name))]
# What authors of stores take from the core.
CLASSES += [PerLoop, OpenedRun, OpenRequest, RunUpdate, Commit, Capabilities]
FUNCTIONS += [
    value
    for module in (rules, record_codec)
    for name, value in vars(module).items()
    if isinstance(value, FunctionType) and value.__module__ == module.__name__ and name[0] != "_"
]
FUNCTIONS += [check_size, last_result, digest_of, check_digest, epochs_to_text, epochs_from_text]
ERRORS = [
    value
    for value in vars(errors).values()
    if inspect.isclass(value) and issubclass(value, StromaError)
]
HOOK_SPECS = [
    value
    for name, value in vars(hookspecs).items()
    if name.startswith("stroma_") and isinstance(value, FunctionType)
]


def signature_of(function: Any) -> str:
    """Return the parameters and defaults of a callable, without types."""
    found = inspect.signature(function)
    parameters = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for name, parameter in found.parameters.items()
        if name not in ("self", "cls")
    ]
    return str(inspect.Signature(parameters))


def fields_of(cls: type) -> list[str]:
    """Return the fields of a model, dataclass or named tuple, and public slots."""
    if issubclass(cls, BaseModel):
        return list(cls.model_fields)
    if dataclasses.is_dataclass(cls):
        return [field.name for field in dataclasses.fields(cls)]
    return list(getattr(cls, "_fields", ()))


def methods_of(cls: type) -> Iterator[tuple[str, Any]]:
    """Yield the public methods of a class, those of its bases in this package too."""
    for name, member in inspect.getmembers(cls):
        plain = inspect.unwrap(getattr(member, "__func__", member))
        module = getattr(plain, "__module__", "")
        is_ours = isinstance(plain, FunctionType) and module.startswith("stroma")
        if is_ours and not name.startswith("_"):
            yield name, plain


def section_of(heading: str) -> str:
    """Return the text below the heading that names something, down to the next such heading."""
    pattern = rf"^##+ `{re.escape(heading)}\b[^`\n]*`\n(.*?)(?=^## |\Z)"
    found = re.search(pattern, EVERYTHING, re.MULTILINE | re.DOTALL)
    assert found, f"docs/reference has no heading for {heading}"
    return found[1]


def rows_of(text: str) -> dict[str, list[str]]:
    """Return the rows of the tables in a text, by what stands in their first cell."""
    rows = (line.strip().strip("|").split(" | ") for line in text.splitlines() if "|" in line)
    return {row[0].strip().strip("`"): [cell.strip() for cell in row] for row in rows}


@pytest.mark.parametrize("name", sorted({*stroma.__all__, "RedisStore", "SyncRedisStore"}))
def test_every_public_name_is_in_the_reference(name: str) -> None:
    assert re.search(rf"`(stroma\.)?{re.escape(name)}\b", EVERYTHING)


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_a_function_has_the_signature_that_is_documented(function: Any) -> None:
    if typing.get_overloads(function):
        assert f"### `{function.__name__}(" in EVERYTHING
        section = section_of(function.__name__)
        names = [p for p in inspect.signature(function).parameters if p != "function"]
        assert names == [name for name in rows_of(section) if name in names]
    else:
        assert f"`{function.__name__}{signature_of(function)}`" in EVERYTHING


@pytest.mark.parametrize("cls", CLASSES, ids=lambda c: c.__name__)
def test_a_class_has_the_fields_and_methods_that_are_documented(cls: type) -> None:
    section = section_of(cls.__name__)
    internal = INTERNAL.get(cls.__name__, set())
    properties = [
        name
        for name, member in inspect.getmembers(cls)
        if isinstance(member, property)
        and not name.startswith("_")
        and member.fget.__module__.startswith("stroma")
    ]
    signatures = [
        f"{name}{signature_of(method)}" for name, method in methods_of(cls) if name not in internal
    ]

    missing = [
        name
        for name in (*fields_of(cls), *properties)
        if name not in internal and not re.search(rf"`{name}[`(]", section)
    ]
    missing += [
        text
        for text in signatures
        if f"`{text}`" not in section and f"\n### `{text}`\n" not in EVERYTHING
    ]
    assert missing == []


@pytest.mark.parametrize("name", ["CheckpointManager", "ContractRegistry", "Pipeline"])
def test_a_class_is_made_with_the_arguments_that_are_documented(name: str) -> None:
    cls = getattr(stroma, name)

    assert f"`{name}{signature_of(cls)}`" in EVERYTHING


def test_every_option_of_a_run_is_documented_with_its_default() -> None:
    rows = rows_of(section_of("RunConfig"))

    for name, field in RunConfig.model_fields.items():
        default = field.get_default(call_default_factory=True)
        shown = rows[name][1].strip("`")
        if isinstance(default, (str, int, float, bool, type(None), tuple)):
            assert shown == repr(default), name
        elif isinstance(default, dict | frozenset) and not default:
            assert shown == ("{}" if isinstance(default, dict) else "frozenset()"), name
        else:
            assert shown, name


def test_every_callback_is_documented_with_what_it_gets() -> None:
    section = section_of("NodeHooks")
    hints = typing.get_type_hints(NodeHooks)  # without help: pydantic 2.11 does so, too

    for event in EVENTS:
        (callback,) = (a for a in typing.get_args(hints[event]) if a is not type(None))
        wanted = [_name(argument) for argument in typing.get_args(callback)[0]]
        found = re.search(rf"`{event}\((.*?)\)`", section)
        assert found, event
        documented = [each.split(": ")[1] for each in re.split(r", (?=\w+: )", found[1])]
        assert documented == wanted, event


def _name(annotation: Any) -> str:
    if annotation == dict[str, Any]:
        return "dict"
    return str(annotation.__name__)


@pytest.mark.parametrize("spec", HOOK_SPECS, ids=lambda f: f.__name__)
def test_every_hook_of_plugins_is_documented(spec: Any) -> None:
    assert HOOK_SPECS
    assert f"`{spec.__name__}{signature_of(spec)}`" in REFERENCE["plugins.md"]


@pytest.mark.parametrize("error", ERRORS, ids=lambda c: c.__name__)
def test_every_error_is_documented_with_its_bases_and_attributes(error: type) -> None:
    row = rows_of(REFERENCE["errors.md"])[error.__name__]
    own = re.findall(
        r"^    (\w+): ", (error.__doc__ or "").partition("Attributes:")[2], re.MULTILINE
    )

    assert row[1] == ", ".join(f"`{base.__name__}`" for base in error.__bases__)
    assert [name for name in own if f"`{name}`" not in row[2]] == []


def test_the_operations_of_record_stores_are_documented() -> None:
    section = section_of("RecordStore")

    for name, method in methods_of(RecordStore):
        assert f"`{name}{signature_of(method)}`" in section


def test_what_a_node_can_ask_is_documented() -> None:
    section = section_of("NodeScope")
    public = [name for name in dir(NodeScope) if not name.startswith("_")]

    assert [name for name in public if f"`{name}`" not in section] == []


@pytest.mark.parametrize("name", sorted(REGISTRATIONS))
def test_the_options_of_built_in_stores_are_documented(name: str) -> None:
    for option in REGISTRATIONS[name].factory.options.model_fields:
        assert f"`{option}`" in REFERENCE["configuration.md"]


def test_the_variables_of_the_environment_are_documented() -> None:
    sources = "".join(path.read_text() for path in (ROOT / "stroma-core/src").rglob("*.py"))
    variables = set(re.findall(r"\bSTROMA_[A-Z_]+\b", sources)) - {"STROMA_API"}

    assert variables
    assert [name for name in variables if f"`{name}`" not in REFERENCE["configuration.md"]] == []


def test_every_command_is_documented_with_its_options() -> None:
    root: Any = typer.main.get_command(app)
    page = REFERENCE["cli.md"]

    for name, command in root.commands.items():
        assert f"### `stroma {name}" in page
        section = page.partition(f"### `stroma {name}")[2].partition("\n## ")[0]
        for parameter in command.params:
            for option in parameter.opts:
                if option.startswith("--") and option != "--help":
                    assert f"`{option}" in section.partition("\n### ")[0], (name, option)


def test_the_lists_here_are_of_something() -> None:
    assert len(CLASSES) > 20
    assert len(FUNCTIONS) > 5
    assert len(ERRORS) > 20
    assert isinstance(errors, ModuleType)
