from __future__ import annotations

import pytest

from tests.core.helpers import Calls
from tests.otel.support import Seen


@pytest.fixture
def seen() -> Seen:
    return Seen()


@pytest.fixture
def calls() -> Calls:
    return Calls()
