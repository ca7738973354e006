"""`python -m stroma_postgres sql`: print the SQL of the tables, for who may create them."""

from __future__ import annotations

import argparse
import sys

from stroma.errors import ConfigError
from stroma_postgres._migrations import migrations_sql


def main(arguments: list[str] | None = None) -> int:
    """Print what was asked for.

    Args:
        arguments: of the command line; None takes the process's.

    Returns:
        The exit code: 2 when a name cannot be used.
    """
    parser = argparse.ArgumentParser(prog="python -m stroma_postgres")
    commands = parser.add_subparsers(dest="command", required=True)
    sql = commands.add_parser("sql", help="print the SQL that creates or upgrades the tables")
    sql.add_argument("--schema", default="public", help="schema of the tables (public)")
    sql.add_argument("--table-prefix", default="stroma_", help="begins their names (stroma_)")
    sql.add_argument("--grant-to", default="", metavar="ROLE", help="role that uses the store")
    chosen = parser.parse_args(arguments)
    try:
        text = migrations_sql(chosen.schema, chosen.table_prefix, grant_to=chosen.grant_to)
    except ConfigError as exc:
        sys.stderr.write(f"{exc}\n")
        return 2
    sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
