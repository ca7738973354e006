"""States as JSON: how those of a model are written and come back, and which models are known."""

from __future__ import annotations

import dataclasses
import json
import math
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final, Generic, TypeVar, cast

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, to_json

from stroma.errors import StateNotStorable, UnknownSchema
from stroma.forms import canonical_form, fingerprint, form_json, is_exact

_MAX_DEPTH: Final = 100
_MAX_REPR: Final = 10_000

M = TypeVar("M", bound=BaseModel)


class StateCodec(Generic[M]):
    """How states of one schema become bytes and come back; one instance per schema.

    States are written by field name, so that aliases come back. Where the schema alone does
    not prove that a value comes back as it was, the bytes are read back and compared.

    Attributes:
        schema: the model class.
        form: its canonical form.
        form_text: the form as JSON.
        fingerprint: of the form.
        ref: "module:qualname" of the class, as stores write it.
        validate: makes a state of a dict, by alias or by name; raises
            `pydantic.ValidationError` when it does not fit.
    """

    __slots__ = (
        "__weakref__",
        "_exact",
        "_nullable",
        "_to_json",
        "_to_python",
        "_validate_json",
        "fingerprint",
        "form",
        "form_text",
        "ref",
        "schema",
        "validate",
    )

    def __init__(self, schema: type[M]) -> None:
        if not schema.__pydantic_complete__:
            schema.model_rebuild()  # it refers to models that were defined after it
        serializer, validator = schema.__pydantic_serializer__, schema.__pydantic_validator__
        self.schema = schema
        self.form = canonical_form(schema)
        self.form_text = form_json(self.form)
        self.fingerprint = fingerprint(self.form)
        self.ref = f"{schema.__module__}:{schema.__qualname__}"
        self._to_json = serializer.to_json
        self._to_python = serializer.to_python
        self._validate_json = validator.validate_json
        self._exact = is_exact(schema)
        self.validate: Callable[..., M] = validator.validate_python
        fields = schema.model_fields.values()
        if not self._exact or any(field.alias or field.validation_alias for field in fields):
            self.validate = partial(validator.validate_python, by_alias=True, by_name=True)
        self._nullable = '"float"' in self.form_text

    def accept(self, raw: object) -> M:
        """Return ``raw`` as an instance of the schema; by alias or by name.

        Raises:
            pydantic.ValidationError: it does not fit.
        """
        if type(raw) is self.schema:
            return raw
        if type(raw) is not dict and isinstance(raw, BaseModel):
            raw = codec_of(type(raw)).fields(raw)
        return self.validate(raw)

    def fields(self, state: M) -> dict[str, Any]:
        """Return the state as a dict by field name, nested models as dicts too."""
        return cast("dict[str, Any]", self._to_python(state, round_trip=True, by_alias=False))

    def dump(self, state: M, *, is_validated: bool = False) -> bytes:
        """Return the state as JSON.

        Args:
            state: an instance of the schema.
            is_validated: it was made by `accept` just now, so that its fields hold what they
                say. One that a caller made may have been changed since, which is looked for.

        Raises:
            StateNotStorable: it would not come back as it is; the error names the fields.
        """
        # the word costs pydantic-core as much as all the rest
        warnings: Any = False if is_validated else "error"
        try:
            payload: bytes = self._to_json(
                state, round_trip=True, by_alias=False, warnings=warnings
            )
        except Exception as exc:
            raise self._unwritable(state, warnings, exc) from exc
        if not self._exact or (self._nullable and b"null" in payload):
            self._read_back(state, payload)
        return payload

    def _unwritable(self, state: M, warnings: Any, exc: Exception) -> StateNotStorable:
        """Return the error for a state that cannot be written, with the fields it is about."""
        found: dict[str, str] = {}
        for name in self.schema.model_fields:
            try:
                self._to_json(
                    state, include={name}, round_trip=True, by_alias=False, warnings=warnings
                )
            except Exception as reason:
                found[name] = _first_line(reason)
        problems = [f"{name}: {reason}" for name, reason in found.items()] or [_first_line(exc)]
        return StateNotStorable(
            f"{self.schema.__name__} cannot be written as JSON: {'; '.join(problems)}",
            fields=tuple(found),
        )

    def load(self, payload: bytes) -> M:
        """Return the state that `dump` wrote.

        Raises:
            pydantic.ValidationError: the payload does not fit the schema.
        """
        loaded: M = self._validate_json(payload, by_alias=False, by_name=True)
        return loaded

    def _read_back(self, state: M, payload: bytes) -> None:
        try:
            again = self.load(payload)
        except ValidationError as exc:
            problems = describe(exc)
            names = [problem.split(":", 1)[0] for problem in problems]
            raise StateNotStorable(
                f"{self.ref} does not come back from JSON: {'; '.join(problems)}{_hint(exc)}",
                fields=names,
            ) from exc
        if not differ(again, state):
            return
        problems = list(_lost(state, again, ""))
        if problems:
            names = [problem.split(":", 1)[0] for problem in problems]
            raise StateNotStorable(
                f"{self.ref} does not come back from JSON as it was: {'; '.join(problems[:5])}",
                fields=names,
                is_lossy=True,
            )


def _hint(error: ValidationError) -> str:
    """Say what to do about a number that came back as null."""
    if not any(p["type"] == "float_type" and p["input"] is None for p in error.errors()):
        return ""
    return (
        ". NaN and infinity are null in JSON: keep them out of the state, or let its model_config "
        "have ser_json_inf_nan='strings'"
    )


def _lost(was: object, now: object, where: str) -> Iterator[str]:
    """Name what differs between a value and what was read back; values are not shown."""
    place = where or "state"
    if isinstance(was, BaseModel) or (dataclasses.is_dataclass(was) and not isinstance(was, type)):
        if type(was) is not type(now):
            yield f"{place}: {type(was).__name__} comes back as {type(now).__name__}"
            return
        prefix = f"{where}." if where else ""
        values, others = values_of(was), values_of(now)
        for name in dict.fromkeys([*values, *others]):
            yield from _lost(values.get(name), others.get(name), f"{prefix}{name}")
    elif isinstance(was, Mapping) and isinstance(now, Mapping):
        if was.keys() != now.keys():
            yield f"{place}: its keys do not come back"
            return
        for key in was:
            yield from _lost(was[key], now[key], f"{where}[{key!r}]")
    elif _is_list(was) and _is_list(now):
        was_items, now_items = cast("Sequence[object]", was), cast("Sequence[object]", now)
        if len(was_items) != len(now_items):
            yield f"{place}: {len(was_items)} items come back as {len(now_items)}"
            return
        for i, (a, b) in enumerate(zip(was_items, now_items, strict=True)):
            yield from _lost(a, b, f"{where}[{i}]")
    elif isinstance(was, float) and isinstance(now, float) and math.isnan(was) and math.isnan(now):
        return
    elif differ(was, now):
        kind = "NaN or infinity" if _is_odd_float(was) else type(was).__name__
        yield f"{place}: {kind} comes back as {type(now).__name__}"


def differ(first: object, second: object) -> bool:
    """Say whether two values differ, as far as they can be compared: arrays cannot."""
    try:
        return bool(first != second)
    except Exception:
        return True


def values_of(value: object) -> dict[str, object]:
    """Return what a model or a dataclass holds, by name, fields that it took in addition too."""
    if isinstance(value, BaseModel):
        return {**value.__dict__, **(value.__pydantic_extra__ or {})}
    return {f.name: getattr(value, f.name) for f in dataclasses.fields(cast(Any, value))}


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray)


def _is_odd_float(value: object) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def tolerant_json(raw: object) -> tuple[object, bool]:
    """Return anything as JSON-compatible data, and whether the data says all of it.

    For what does not fit its schema and must not be lost: it was paid for.
    """
    try:
        data = to_json(raw, by_alias=False, round_trip=True, inf_nan_mode="constants")
        return json.loads(data), True
    except Exception:
        replaced: list[str] = []
        return _plain(raw, replaced, 0), not replaced


def _plain(value: object, replaced: list[str], depth: int) -> object:
    """Return a value as JSON-compatible data; the type of what has no such form is noted."""
    if value is None or isinstance(value, str | bool | float):
        return value
    if isinstance(value, int) and abs(value) < 1 << 1024:
        return value
    if depth < _MAX_DEPTH:
        if isinstance(value, BaseModel):
            value = values_of(value)
        if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
            return {k: _plain(v, replaced, depth + 1) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [_plain(item, replaced, depth + 1) for item in value]
    replaced.append(type(value).__name__)
    try:
        return repr(value)[:_MAX_REPR]
    except Exception:
        return f"<{type(value).__name__}>"


def _first_line(exc: BaseException) -> str:
    return str(exc).split("\n", 1)[0][:200]


_CODEC = "__stroma_codec__"
_registered: dict[str, weakref.WeakSet[type[BaseModel]]] = {}


def codec_of(schema: type[M]) -> StateCodec[M]:
    """Return the one codec of a schema, and register the schema under its reference."""
    # kept on the class, not in a table: a codec and its class are then collected together
    found = schema.__dict__.get(_CODEC)
    if found is None:
        found = StateCodec(schema)
        setattr(schema, _CODEC, found)
        _registered.setdefault(found.ref, weakref.WeakSet()).add(schema)
    return cast("StateCodec[M]", found)


def register_models(*schemas: type[BaseModel]) -> None:
    """Make models known, so that `load()` without a schema finds them by reference.

    Models of contracts, and those that this process has saved, are known already.
    """
    for schema in schemas:
        codec_of(schema)


def registered_model(ref: str) -> type[BaseModel]:
    """Return the model that this process registered under a stored reference.

    Nothing is imported by a stored name: stored data must not choose what code is loaded.

    Raises:
        UnknownSchema: no model, or more than one, is registered under it.
    """
    found = list(_registered.get(ref, ()))
    if len(found) == 1:
        return found[0]
    if not found:
        raise UnknownSchema(
            f"no model is registered as {ref!r} in this process: call "
            "stroma.register_models(Model), or load with load_typed(run_id, node_id, Model)"
        )
    raise UnknownSchema(
        f"{len(found)} models of this process are called {ref!r}: "
        "load with load_typed(run_id, node_id, Model)"
    )


def describe(error: ValidationError, whole: str = "state: ") -> list[str]:
    """Return "field: message" for each problem, without the values, which may be private.

    Args:
        error: what pydantic raised.
        whole: stands before a problem that is none of one field.
    """
    problems = error.errors(include_url=False, include_input=False, include_context=False)
    return [f"{_where(p) or whole}{_said(p)}" for p in problems]


def _where(problem: ErrorDetails) -> str:
    return f"{'.'.join(map(str, problem['loc']))}: " if problem["loc"] else ""


def _said(problem: ErrorDetails) -> str:
    return problem["msg"].removeprefix("Value error, ")
