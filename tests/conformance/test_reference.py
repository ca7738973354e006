"""The reference has every public name of the store half of `stroma.testing`, as it is."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from stroma import testing
from stroma.testing import FaultyStore, StoreConformance
from tests.docs.test_reference import fields_of, methods_of, section_of, signature_of

CLASSES = ["FakeClock", "Fault", "FaultKind", "FaultyStore", "Injected", "StoreSubject", "TcpProxy"]


@pytest.mark.parametrize("name", CLASSES)
def test_fields_and_methods_are_documented(name: str) -> None:
    cls: Any = getattr(testing, name)
    section = section_of(name)
    methods = [f"{method}{signature_of(f)}" for method, f in methods_of(cls)]
    properties = [n for n, member in inspect.getmembers(cls) if isinstance(member, property)]
    wanted = [*methods, *properties, *fields_of(cls), *getattr(cls, "__members__", ())]
    assert [each for each in wanted if f"`{each}`" not in section] == []


@pytest.mark.parametrize("name", ["FakeClock", "Fault", "Injected", "StoreSubject", "TcpProxy"])
def test_a_class_is_made_with_the_arguments_that_are_documented(name: str) -> None:
    heading = f"{name}{signature_of(getattr(testing, name))}"
    section_of(heading[:-1])


def test_the_arguments_of_a_faulty_store_are_documented() -> None:
    section = section_of("FaultyStore")
    arguments = [name for name in inspect.signature(FaultyStore).parameters if name != "self"]
    assert [name for name in arguments if f"`{name}`" not in section] == []


def test_the_attributes_of_the_conformance_class_are_documented() -> None:
    section = section_of("StoreConformance")
    names = [
        name
        for name in dir(StoreConformance)
        if not name.startswith(("_", "test_")) and name not in ("kit", "subject", "pytestmark")
    ]
    assert [name for name in names if f"`{name}`" not in section] == []
