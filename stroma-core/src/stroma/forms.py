"""The structure of states: its canonical form, what changed between two, what cannot be stored.

The form is our own: field names, whether they are required, and types. It has no titles,
descriptions or docstrings and does not depend on the pydantic version, so that a fingerprint
changes only when the structure does.
"""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import hashlib
import json
import types
import typing
import uuid
from collections.abc import Callable, Iterator
from typing import Any, Final, Literal, TypeVar, Union, cast, get_args, get_origin

import pydantic
from pydantic import BaseModel

Form = str | list[Any] | dict[str, Any]
"""The canonical form of a type: JSON-compatible."""

_LEAVES: Final[dict[object, str]] = {
    str: "str",
    int: "int",
    float: "float",
    bool: "bool",
    bytes: "bytes",
    type(None): "null",
    None: "null",
    decimal.Decimal: "decimal",
    datetime.datetime: "datetime",
    datetime.date: "date",
    datetime.time: "time",
    datetime.timedelta: "timedelta",
    uuid.UUID: "uuid",
    Any: "any",
    object: "any",
}
_EXACT_LEAVES: Final = frozenset(
    {"str", "int", "float", "bool", "null", "decimal", "datetime", "date", "time", "uuid"}
)
_CONTAINERS: Final = {list: "list", set: "set", frozenset: "set", tuple: "tuple", dict: "dict"}
_SECRETS: Final = (pydantic.SecretStr, pydantic.SecretBytes, pydantic.Secret)


def canonical_form(schema: object) -> Form:
    """Return the structure of a type as JSON-compatible data.

    Args:
        schema: a model class, or any annotation that a field may have.
    """
    return _form(schema, ())


def _form(tp: Any, stack: tuple[object, ...]) -> Form:
    tp = _bare(tp)
    if tp in stack:
        return f"^{len(stack) - stack.index(tp)}"
    try:
        if tp in _LEAVES:
            return _LEAVES[tp]
    except TypeError:
        return repr(tp)
    origin, args = get_origin(tp), get_args(tp)
    if origin in (Union, types.UnionType):
        members = [_form(arg, stack) for arg in args]
        return {"any_of": sorted(members, key=_sort_key)}
    if origin is Literal:
        return {"literal": sorted((_json_value(arg) for arg in args), key=_sort_key)}
    fields = _fields_of(tp)
    if fields is not None:
        return {
            "fields": {
                name: [_form(annotation, (*stack, tp)), "required" if required else "optional"]
                for name, annotation, required in fields
            }
        }
    names = getattr(tp, "_fields", None)
    if names is not None and isinstance(tp, type) and issubclass(tp, tuple):
        hints = typing.get_type_hints(tp)
        return {"tuple": [_form(hints.get(name, Any), (*stack, tp)) for name in names]}
    if isinstance(tp, type) and issubclass(tp, enum.Enum):
        return {"literal": sorted((_json_value(member.value) for member in tp), key=_sort_key)}
    if origin is not None:
        name = _CONTAINERS.get(origin, getattr(origin, "__name__", str(origin)).lower())
        return {name: [_form(arg, stack) if arg is not ... else "..." for arg in args]}
    if tp in _CONTAINERS:
        return {_CONTAINERS[tp]: []}
    return f"{_public_module(tp)}.{getattr(tp, '__qualname__', repr(tp))}"


def _public_module(tp: Any) -> str:
    """Return where a class is from, without private parts: those move from version to version."""
    parts = getattr(tp, "__module__", "").split(".")
    return ".".join(part for part in parts if not part.startswith("_"))


def _bare(tp: Any) -> Any:
    """Strip what does not change the structure: Annotated, aliases, NewType, type variables."""
    while True:
        origin = get_origin(tp)
        name = getattr(origin, "_name", "")  # a special form has one, of typing_extensions, too
        if origin is typing.Annotated or name in ("Required", "NotRequired", "ReadOnly"):
            tp = get_args(tp)[0]
        elif hasattr(tp, "__supertype__"):
            tp = tp.__supertype__
        elif isinstance(tp, TypeVar):
            tp = tp.__bound__ or Any
        elif type(tp).__name__ == "TypeAliasType":
            tp = tp.__value__
        else:
            return tp


def _fields_of(tp: Any) -> list[tuple[str, Any, bool]] | None:
    """Return (name, annotation, required) of a model, dataclass or typed dict, or None."""
    if not isinstance(tp, type):
        return None
    if issubclass(tp, BaseModel):
        return [(n, f.annotation, f.is_required()) for n, f in tp.model_fields.items()]
    if dataclasses.is_dataclass(tp):
        hints = typing.get_type_hints(tp, include_extras=True)
        missing = dataclasses.MISSING
        return [
            (f.name, hints[f.name], f.default is missing and f.default_factory is missing)
            for f in dataclasses.fields(tp)
        ]
    if issubclass(tp, dict) and hasattr(tp, "__required_keys__"):  # of typing_extensions, too
        hints = typing.get_type_hints(tp, include_extras=True)
        required: frozenset[str] = getattr(tp, "__required_keys__", frozenset())
        return [(n, a, _is_required(a, n in required)) for n, a in hints.items()]
    return None


def _is_required(annotation: Any, otherwise: bool) -> bool:
    """Say whether a typed dict needs a key: its own list misses words in quoted annotations."""
    word = getattr(get_origin(annotation), "_name", "")
    return word == "Required" or (otherwise and word != "NotRequired")


def _json_value(value: object) -> Any:
    if isinstance(value, enum.Enum):
        value = value.value
    return value if isinstance(value, str | int | float | bool | None) else repr(value)


def _sort_key(form: object) -> str:
    return json.dumps(form, sort_keys=True, default=repr)


def form_json(form: Form) -> str:
    """Return the one text of a form, which fingerprints are made from."""
    return json.dumps(form, separators=(",", ":"), sort_keys=True, ensure_ascii=False)


def fingerprint(form: Form) -> str:
    """Return 16 hex digits that are equal when two forms are."""
    return hashlib.sha256(form_json(form).encode()).hexdigest()[:16]


def differences(recorded: Form, live: Form, where: str = "") -> list[str]:
    """Return what keeps a state recorded under one form from being read under another.

    A new optional field, a field that became optional, and a wider union or literal are
    compatible.

    Args:
        recorded: the form that the state was recorded under.
        live: the form that the pipeline has now.
        where: dotted name of the place looked at, for the sentences.

    Returns:
        One sentence for each field that was removed, renamed or retyped; empty when the
        recorded state can be read.
    """
    if recorded == live or live == "any":
        return []
    if isinstance(live, dict) and isinstance(recorded, dict):
        if "fields" in live and "fields" in recorded:
            return _field_differences(recorded["fields"], live["fields"], where)
        if "literal" in live and "literal" in recorded:
            lost = [v for v in recorded["literal"] if v not in live["literal"]]
            return [f"{where or 'value'}: {v!r} is no longer allowed" for v in lost]
        if recorded.keys() == live.keys() and "any_of" not in live:
            (kind,) = live.keys()
            if len(recorded[kind]) == len(live[kind]):
                pairs = zip(recorded[kind], live[kind], strict=True)
                return [d for was, now in pairs for d in differences(was, now, f"{where}[]")]
    if isinstance(live, dict) and "any_of" in live:
        was_any = isinstance(recorded, dict) and "any_of" in recorded
        members = cast("dict[str, Any]", recorded)["any_of"] if was_any else [recorded]
        if all(any(not differences(m, option) for option in live["any_of"]) for m in members):
            return []
    return [f"{where or 'state'}: was {_short(recorded)}, is {_short(live)}"]


def _field_differences(recorded: dict[str, Any], live: dict[str, Any], where: str) -> list[str]:
    prefix = f"{where}." if where else ""
    added = [n for n, (_, need) in live.items() if n not in recorded and need == "required"]
    found: list[str] = []
    for name, (form, _) in recorded.items():
        if name in live:
            found += differences(form, live[name][0], f"{prefix}{name}")
        else:
            renamed = [n for n in live if n not in recorded and live[n][0] == form]
            hint = f" (renamed to {prefix}{renamed[0]}?)" if renamed else ""
            found.append(f"{prefix}{name}: recorded, but no longer a field{hint}")
    found += [f"{prefix}{name}: now required, but not recorded" for name in added]
    return found


def _short(form: Form) -> str:
    text = form if isinstance(form, str) else form_json(form)
    return text if len(text) <= 80 else text[:77] + "..."


def unstorable_fields(schema: type[BaseModel]) -> list[str]:
    """Return "field: reason" for each field that can never come back from JSON as it was."""
    return list(_unstorable(schema, "", ()))


def _unstorable(tp: Any, where: str, stack: tuple[object, ...]) -> Iterator[str]:
    tp = _bare(tp)
    if isinstance(tp, type) and issubclass(tp, _SECRETS):
        yield f"{where}: {tp.__name__} is stored as asterisks; pass secrets through the context"
        return
    if isinstance(tp, type) and issubclass(tp, BaseModel) and tp not in stack:
        for name, field in tp.model_fields.items():
            if field.exclude:
                yield f"{where}{'.' if where else ''}{name}: excluded fields are not stored"
    if tp is Callable or get_origin(tp) is Callable:
        yield f"{where}: functions are not stored; pass them through the context"
        return
    if tp in stack:
        return
    prefix = f"{where}." if where else ""
    for name, annotation, _ in _fields_of(tp) or ():
        yield from _unstorable(annotation, f"{prefix}{name}", (*stack, tp))
    if get_origin(tp) is not Literal:
        for arg in get_args(tp):
            if arg is not ...:
                yield from _unstorable(arg, where, stack)


def _is_exact(tp: Any) -> bool:
    """Say whether every value of this type is known to come back from JSON as it was.

    A nested model is not: a subclass of it would lose its fields.
    """
    if get_origin(tp) is typing.Annotated:
        metadata = get_args(tp)[1:]
        return not any(_is_functional(m) for m in metadata) and _is_exact(get_args(tp)[0])
    tp = _bare(tp)
    form = _form(tp, ())
    if not isinstance(form, dict):
        return form in _EXACT_LEAVES
    if "literal" in form:
        return True
    args = [arg for arg in get_args(tp) if arg is not ...]
    if "any_of" in form:
        present = [arg for arg in args if arg is not type(None)]
        return len(present) == 1 and _is_exact(present[0])
    if form.keys() & {"list", "set", "tuple"}:
        return bool(args) and all(_is_exact(arg) for arg in args)
    if "dict" in form:
        return len(args) == 2 and _bare(args[0]) in (str, int) and _is_exact(args[1])
    return False


def _is_functional(metadata: object) -> bool:
    return type(metadata).__module__.startswith(
        ("pydantic.functional_", "pydantic.types", "pydantic.json_schema")
    )


def is_exact(schema: type[BaseModel]) -> bool:
    """Say whether every state of a model is known to come back from JSON as it was."""
    decorators = schema.__pydantic_decorators__
    if (
        decorators.field_serializers
        or decorators.model_serializers
        or decorators.field_validators
        or decorators.model_validators
        or decorators.root_validators
        or decorators.validators
        or schema.model_config.get("extra") == "allow"
        or schema.model_config.get("json_encoders")
    ):
        return False
    return all(
        field.annotation is not None
        and not any(_is_functional(m) for m in field.metadata)
        and _is_exact(field.annotation)
        for field in schema.model_fields.values()
    )
