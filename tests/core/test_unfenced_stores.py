"""A store that cannot keep two workers apart is used, and says so once."""

from __future__ import annotations

import pytest
from pydantic import BaseModel

import stroma
from stroma import AsyncInMemoryStore, StromaRunner
from stroma.checkpoint import Capabilities


class Text(BaseModel):
    text: str


@stroma.node
async def shout(state: Text) -> Text:
    return Text(text=state.text.upper())


class UnfencedStore(AsyncInMemoryStore):
    """Finds out in `setup` that its server does not hold what fencing needs."""

    def __init__(self) -> None:
        super().__init__()
        self.promises = super().capabilities

    @property
    def capabilities(self) -> Capabilities:
        return self.promises

    async def setup(self) -> None:
        self.promises = self.promises._replace(fencing=False)


async def test_a_store_without_fencing_warns_once(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        runner = StromaRunner.quick(store=UnfencedStore())
        for _ in range(2):
            result = await runner.run([shout], Text(text="a"))
            assert result.is_complete
    (warning,) = caplog.messages
    assert warning.startswith("UnfencedStore cannot keep a worker that lost its run from writing")


async def test_a_store_with_fencing_does_not(caplog: pytest.LogCaptureFixture) -> None:
    await StromaRunner.quick(store=AsyncInMemoryStore()).run([shout], Text(text="a"))
    assert caplog.messages == []
