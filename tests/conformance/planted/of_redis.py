"""Defects of stores on a server: connections, event loops, lost replies, and two steps for one."""

from __future__ import annotations

from tests.conformance.planted.copies import REDIS, SYNC_REDIS, Edit
from tests.conformance.planted.defect import Defect

_SEND = """        commands = [self._commit(commit) for commit in wanted]
        listings = list(self._indexes.beside_commits(wanted))
        answers = yield from ask((*commands, *listings), is_write=True)
"""
_ANSWERS = """        for i, answer in zip(sent, answers, strict=False):
            if answer != 1:
                outcomes[i] = self._refusal(commits[i], answer)
"""
_LOOK_FIRST = """        for i in sent:
            _, token, records, _ = commits[i]
            key = self.keys.run(commits[i].run_id)
            names = [field_of(header) for header, _ in records]
            asked = [(b"HMGET", key, b"owner", *(b"h:" + name for name in names))]
            ((owner, *kept),) = yield from ask(asked, is_write=False)
            if token and owner != token.encode():
                outcomes[i] = stale(commits[i].run_id, None if owner is None else "")
                continue
            for (header, _), found in zip(records, kept, strict=True):
                if found and token and record_from(found, b"").header.commit_id != header.commit_id:
                    outcomes[i] = already_committed(header.key)
            if outcomes[i] is not None:
                continue
            fields = []
            for header, payload in records:
                name, stored, _ = record_args(header, payload)
                fields += (b"h:" + name, b"%d %b" % (time.time_ns(), stored),
                           b"p:" + name, payload)
            if fields:
                yield from ask([(b"MULTI",), (b"HSET", key, *fields), (b"EXEC",)], is_write=True)
        return outcomes
"""
_LOST = """        except BaseException:
            await held.connection.disconnect(nowait=True)
            raise
        finally:
            silence.end()
"""
_GENERAL = (
    Edit(
        "_commands.py",
        "        run_id, token, records, update = commit\n        if update is not None or",
        "        run_id, token, records, update = commit\n        if True or",
    ),
    Edit(
        "_commands.py",
        "        if update is None and token and len(records) == 1:\n            return self._add(",
        "        if False:\n            return self._add(",
    ),
)
"""Commits that come alone go the way of the others, which the defect is on."""


def _commands(*edits: tuple[str, str]) -> tuple[Edit, ...]:
    return tuple(Edit("_commands.py", old, new) for old, new in edits)


SERVERS = (
    Defect(
        "two-writes-for-a-commit",
        "kills",
        "the records of a commit and its update are two commands, and the client dies between",
        REDIS,
        _GENERAL
        + _commands(
            (
                _SEND,
                """        first = [self._commit(commit._replace(update=None)) for commit in wanted]
        answers = yield from ask(first, is_write=True)
        if all(answer == 1 for answer in answers):
            again = [self._commit(commit) for commit in wanted]
            listings = list(self._indexes.beside_commits(wanted))
            answers = yield from ask((*again, *listings), is_write=True)
""",
            )
        ),
        ("test_a_killed_commit_is_whole_or_not_there",),
    ),
    Defect(
        "look-then-multi",
        "ownership",
        "MULTI writes what an earlier command allowed: of two writers both succeed",
        REDIS,
        _GENERAL + _commands((_SEND + _ANSWERS, _LOOK_FIRST)),
        ("test_two_writers_have_one_winner_for_each_record",),
    ),
    Defect(
        "clients-clock",
        "ownership",
        "leases are measured by the clock of the client",
        REDIS,
        (
            Edit(
                "_wire.py",
                '    return b"".join([b"*%d',
                """    import time
    from stroma_redis import _scripts

    def timed(command):
        if command[0] != b"EVALSHA":
            return command
        clock = b"{'%d', '0'}" % time.time()
        source = _scripts.BY_SHA[command[1]].source.replace(b"redis.call('TIME')", clock)
        return (b"EVAL", source, *command[2:])

    commands = [timed(command) for command in commands]
    return b"".join([b"*%d""",
            ),
        ),
        ("test_a_lease_holds_against_a_wrong_clock", "test_a_lease_of_a_wrong_clock_ends"),
    ),
    Defect(
        "one-client-for-all-loops",
        "connections",
        "one client is kept for all event loops",
        REDIS,
        (
            Edit(
                "_async.py",
                "        line = self._lines.get().line\n        try:",
                '        if "kept" not in self.__dict__:\n'
                "            self.kept = self._lines.get()\n"
                "        line = self.kept.line\n        try:",
            ),
        ),
        ("test_one_object_serves_event_loops_one_after_another",),
    ),
    Defect(
        "inherited-connection",
        "connections",
        "a forked child goes on with its parent's connection",
        SYNC_REDIS,
        (
            Edit(
                "_sync_lines.py",
                "            connection = self._pool.get_connection()\n",
                '            if "kept" not in self.__dict__:\n'
                "                self.kept = self._pool.get_connection()\n"
                "            connection = self.kept\n"
                "            if not connection.is_connected:\n"
                "                connection.connect()\n",
            ),
            Edit(
                "_sync_lines.py",
                "        finally:\n            self._pool.release(connection)\n        return",
                "        return",
            ),
        ),
        ("test_a_forked_child_and_its_parent_both_write",),
    ),
    Defect(
        "connection-with-a-reply-under-way",
        "cancellation",
        "a connection whose reply is under way is used again after a cancellation",
        REDIS,
        (
            Edit(
                "_async_lines.py",
                _LOST,
                "        finally:\n            silence.end()\n",
            ),
        ),
        ("test_a_cancelled_operation_over_a_slow_line",),
    ),
    Defect(
        "broken-connection-kept",
        "connections",
        "a connection that broke is kept",
        REDIS,
        (
            Edit(
                "_async_lines.py",
                """            await held.connection.disconnect(nowait=True)
            error =""",
                "            error =",
            ),
            Edit(
                "_async_lines.py",
                "    reader = getattr(connection",
                "    return False\n    reader = getattr(connection",
            ),
        ),
        ("test_idle_connections_that_broke",),
    ),
    Defect(
        "retried-and-refused",
        "lost replies",
        "a command is repeated when its reply was lost, and refused by what it wrote itself",
        REDIS,
        (
            *_GENERAL,
            Edit(
                "_steps.py",
                "    if not is_write and any(_is_lost(reply) for reply in replies):",
                "    if any(_is_lost(reply) for reply in replies):",
            ),
            Edit("_scripts.py", "if kept and kept ~= id then", "if kept then"),
        ),
        ("test_lost_replies_of_commits",),
    ),
    Defect(
        "retried-and-doubled",
        "lost replies",
        "a command is repeated when its reply was lost, and adds its records twice",
        REDIS,
        (
            *_GENERAL,
            Edit(
                "_steps.py",
                "    if not is_write and any(_is_lost(reply) for reply in replies):",
                "    if any(_is_lost(reply) for reply in replies):",
            ),
            Edit(
                "_scripts.py",
                "if kept and kept ~= id then return {'taken', name} end",
                "kept = nil",
            ),
            Edit(
                "_scripts.py", "set('h:' .. name, written", "set('h:' .. name .. written, written"
            ),
        ),
        ("test_lost_replies_of_commits",),
    ),
    Defect(
        "no-reply-is-success",
        "lost replies",
        "a commit without a reply is reported as success",
        REDIS,
        _GENERAL
        + _commands(
            (
                "            if answer != 1:\n",
                "            if answer != 1 and not getattr(answer, 'was_sent', False):\n",
            )
        ),
        ("test_a_server_that_does_not_answer",),
    ),
    Defect(
        "no-reply-is-nothing-written",
        "lost replies",
        "a commit whose reply was lost is reported as not written",
        REDIS,
        (
            Edit(
                "_errors.py", "        error = OutcomeUnknown(", "        error = StoreUnavailable("
            ),
        ),
        ("test_lost_replies_of_commits",),
    ),
    Defect(
        "drivers-errors-leak",
        "errors",
        "an exception of the driver comes out of the store",
        REDIS,
        _commands(
            (
                "            raise self._error(reply, what, is_write=is_write)",
                "            raise reply.error",
            )
        ),
        ("test_a_server_that_is_down",),
    ),
    Defect(
        "no-timeout",
        "lost replies",
        "an operation waits for a server that says nothing",
        REDIS,
        (
            Edit(
                "_async_lines.py",
                "Silence(connection, self._timeout_seconds)",
                "Silence(connection, 60)",
            ),
        ),
        ("test_a_server_that_does_not_answer",),
    ),
    Defect(
        "two-trips-for-a-claim",
        "round trips",
        "a claim looks first whether there is a run",
        REDIS,
        _commands(
            (
                "        asked, sweeping = self._indexes.sweeping()\n",
                (
                    "        asked, sweeping = self._indexes.sweeping()\n"
                    '        look = (b"EXISTS", self.keys.run(run_id))\n'
                    "        yield from ask([look], is_write=False)\n"
                ),
            )
        ),
        ("test_a_clean_run_takes_one_round_trip_for_each_node_and_one_more",),
    ),
)
