"""How an operation asks for what it wants to be sent. No I/O happens here.

An operation is a generator. It yields a `Request`, is sent the replies, and returns its result:
the sync and the async store drive the same ones.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import NamedTuple, TypeAlias, TypeVar

from redis.exceptions import NoScriptError

from stroma_redis._errors import Failure, Reply
from stroma_redis._lua import Script
from stroma_redis._scripts import BY_SHA

T = TypeVar("T")

Args: TypeAlias = tuple[bytes, ...]
"""A command: its name and arguments."""


class Request(NamedTuple):
    """Commands to send in one round trip.

    Attributes:
        commands: they are independent, and answered in this order.
        is_write: one of them changes something, so that a lost reply leaves it unknown.
        packed: the commands as they are sent, where that is known already.
    """

    commands: Sequence[Args]
    is_write: bool
    packed: bytes = b""


Steps: TypeAlias = Generator[Request, Sequence[Reply], T]
"""An operation under way, which returns T."""


def call(script: Script, keys: Sequence[bytes], *args: bytes) -> Args:
    """Return the command that calls a script."""
    return (b"EVALSHA", script.sha, b"%d" % len(keys), *keys, *args)


def ask(commands: Sequence[Args], *, is_write: bool) -> Steps[Sequence[Reply]]:
    """Send commands; what only reads once more if the connection broke.

    A script that the server has forgotten (a restart, SCRIPT FLUSH, another node) is sent whole.
    """
    if not commands:
        return []
    replies = yield Request(commands, is_write)
    for reply in replies:
        if type(reply) is Failure:
            break
    else:
        return replies
    if not is_write and any(_is_lost(reply) for reply in replies):
        replies = yield Request(commands, is_write)
    unknown = [i for i, reply in enumerate(replies) if is_unknown_script(reply)]
    if not unknown:
        return replies
    again = yield Request([_in_full(commands[i]) for i in unknown], is_write)
    answered = dict(zip(unknown, again, strict=True))
    return [answered.get(i, reply) for i, reply in enumerate(replies)]


def is_unknown_script(reply: Reply) -> bool:
    """Say whether the server has forgotten the script that was called."""
    return isinstance(reply, Failure) and isinstance(reply.error, NoScriptError)


def _is_lost(reply: Reply) -> bool:
    return isinstance(reply, Failure) and not reply.is_answer and reply.was_sent


def _in_full(command: Args) -> Args:
    _, sha, *rest = command
    return (b"EVAL", BY_SHA[sha].source, *rest)
