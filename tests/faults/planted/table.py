"""All planted defects."""

from __future__ import annotations

from typing import Final

from tests.faults.planted.of_accounts import ACCOUNTS
from tests.faults.planted.of_commits import COMMITS
from tests.faults.planted.of_ownership import OWNERSHIP

DEFECTS: Final = (*OWNERSHIP, *COMMITS, *ACCOUNTS)
