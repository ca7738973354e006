"""Where a store's tables and functions are: quoted names, from checked identifiers."""

from __future__ import annotations

from typing import Final, NamedTuple

from stroma_postgres._options import MAX_PREFIX_BYTES, check_identifier

DEFAULT_SCHEMA: Final = "public"
DEFAULT_PREFIX: Final = "stroma_"


class Names(NamedTuple):
    """The qualified names of one store's tables and functions.

    Attributes:
        schema: the PostgreSQL schema, not quoted.
        prefix: of the names in it, not quoted.
    """

    schema: str
    prefix: str

    def of(self, name: str) -> str:
        """Return the qualified and quoted name of something."""
        return f'"{self.schema}"."{self.prefix}{name}"'

    @property
    def sql_command(self) -> str:
        """The command that prints the SQL of these tables."""
        command = "python -m stroma_postgres sql"
        if self.schema != DEFAULT_SCHEMA:
            command += f" --schema {self.schema}"
        if self.prefix != DEFAULT_PREFIX:
            command += f" --table-prefix {self.prefix}"
        return command

    @property
    def runs(self) -> str:
        """The table of runs."""
        return self.of("runs")

    @property
    def records(self) -> str:
        """The table of records."""
        return self.of("records")

    @property
    def migrations(self) -> str:
        """The table of what was done to the schema."""
        return self.of("migrations")


def names_of(schema: str, table_prefix: str) -> Names:
    """Return the names of a store.

    Raises:
        ConfigError: one of the two is no plain identifier.
    """
    return Names(
        check_identifier(schema, "schema", 63),
        check_identifier(table_prefix, "table_prefix", MAX_PREFIX_BYTES),
    )
