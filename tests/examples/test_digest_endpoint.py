"""examples/digest.py with an OpenAI-compatible endpoint: its bill, its errors, its key."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest

from tests.examples.endpoint import Endpoint, Reply, serving
from tests.examples.processes import (
    Done,
    finish,
    kill_when,
    passages,
    records,
    start,
)

KEY = "sk-test-0123456789abcdef"
CONCURRENCY = 4
BEFORE = "Spent before: "
IN_ALL = "Spent in all: "


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with serving() as found:
        yield found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder to work in, with a text of twenty passages."""
    paragraphs = (f"Passage {n} " + f"word{n} " * 200 for n in range(20))
    (tmp_path / "text.md").write_text("\n\n".join(paragraphs))
    return tmp_path


def begin(folder: Path, url: str, *options: object) -> subprocess.Popen[str]:
    fixed = ("--run-id", "r", "--model", "m", "--concurrency", CONCURRENCY, "--price", 1, 2)
    env = {"OPENAI_BASE_URL": url, "OPENAI_API_KEY": KEY}
    return start("digest.py", "text.md", *fixed, *options, cwd=folder, env=env)


def digest(folder: Path, url: str, *options: object) -> Done:
    done = finish(begin(folder, url, *options))
    assert KEY not in done.out + done.err
    assert "Traceback" not in done.err
    for file in folder.iterdir():
        assert file.is_dir() or KEY.encode() not in file.read_bytes()
    return done


def test_passages_go_to_the_endpoint_with_the_key(folder: Path, endpoint: Endpoint) -> None:
    done = digest(folder, endpoint.url)
    assert done.code == 0, done.err
    assert len(endpoint.calls) == len(set(endpoint.calls)) == 20
    assert set(endpoint.keys) == {f"Bearer {KEY}"}
    assert done.tokens(IN_ALL) == endpoint.tokens
    read = endpoint.tokens - 20 * 7
    assert done.line(IN_ALL).endswith(f"${Decimal(read + 2 * 20 * 7) / 1_000_000}")


@pytest.mark.crash
@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 7, 20])
async def test_killed_at_a_call_nothing_recorded_is_bought_again(
    folder: Path, endpoint: Endpoint, count: int
) -> None:
    database = folder / "digest.db"

    async def is_time() -> bool:
        return len(endpoint.billed) >= count

    await kill_when(begin(folder, endpoint.url), is_time)
    before = await records(database, "r")
    texts = await passages(database, "r")
    recorded = {texts[item].strip() for item in before.items}
    billed = list(endpoint.billed)
    in_doubt = [tokens for text, tokens in billed if text.strip() not in recorded]
    assert len(in_doubt) <= CONCURRENCY

    done = digest(folder, endpoint.url)
    assert done.code == 0, done.err
    bought = {text.strip() for text, _ in endpoint.billed[len(billed) :]}
    assert recorded.isdisjoint(bought)
    assert done.tokens(BEFORE) == before.tokens if before.headers else True
    assert done.tokens(IN_ALL) + sum(in_doubt) == endpoint.tokens
    whole = digest(folder, endpoint.url, "--store", "memory:", "--report", "whole.md")
    assert whole.code == 0
    assert Path(folder, "report.md").read_bytes() == Path(folder, "whole.md").read_bytes()


@pytest.mark.slow
def test_a_wrong_key_is_said_once_and_not_shown(folder: Path, endpoint: Endpoint) -> None:
    body = f'{{"error": {{"message": "Incorrect API key provided: {KEY}"}}}}'
    endpoint.faults = [Reply(401, body)] * 50
    done = digest(folder, endpoint.url)
    assert done.code == 1
    assert "answered 401" in done.err
    assert "Incorrect API key provided: ***" in done.err
    assert "Start the same command again" in done.err
    assert len(endpoint.calls) <= CONCURRENCY  # never retried
    endpoint.faults = []
    assert digest(folder, endpoint.url).code == 0


@pytest.mark.slow
def test_a_rate_limit_is_waited_for(folder: Path, endpoint: Endpoint) -> None:
    endpoint.faults = [Reply(429, "slow down", {"Retry-After": "2"})]
    began = time.monotonic()
    done = digest(folder, endpoint.url)
    assert done.code == 0, done.err
    assert time.monotonic() - began >= 2
    assert len(endpoint.calls) == 21


def test_a_server_error_is_retried(folder: Path, endpoint: Endpoint) -> None:
    endpoint.faults = [Reply(status, "oops") for status in (500, 503, 408)]
    assert digest(folder, endpoint.url).code == 0
    assert len(endpoint.calls) == 23


def test_a_useless_answer_is_paid_for_and_asked_again(folder: Path, endpoint: Endpoint) -> None:
    endpoint.faults = [Reply(200, "I would rather not."), Reply(200, '{"summary": 5}')]
    done = digest(folder, endpoint.url)
    assert done.code == 0, done.err
    assert len(endpoint.billed) == 22
    assert done.tokens(IN_ALL) == endpoint.tokens


@pytest.mark.slow
def test_a_failure_loses_no_call_that_is_under_way(folder: Path, endpoint: Endpoint) -> None:
    endpoint.latency_seconds = 0.3
    endpoint.faults = [Reply(400, "no", delay_seconds=0.0)]
    failed = digest(folder, endpoint.url)
    assert failed.code == 1
    assert failed.tokens(IN_ALL) == endpoint.tokens
    assert len(endpoint.billed) == CONCURRENCY - 1
    endpoint.latency_seconds = 0.01
    done = digest(folder, endpoint.url)
    assert done.code == 0
    assert done.tokens(IN_ALL) == endpoint.tokens
    assert len(endpoint.billed) == 20


@pytest.mark.slow
def test_a_budget_loses_no_call_that_is_under_way(folder: Path, endpoint: Endpoint) -> None:
    stopped = digest(folder, endpoint.url, "--budget-tokens", 1000)
    assert stopped.code == 1
    assert "In doubt" not in stopped.out
    assert stopped.tokens(IN_ALL) == endpoint.tokens
    done = digest(folder, endpoint.url, "--budget-tokens", 100_000)
    assert done.code == 0
    assert done.tokens(IN_ALL) == endpoint.tokens
    assert len(endpoint.billed) == 20


def test_a_redirect_does_not_carry_the_key_away(folder: Path, endpoint: Endpoint) -> None:
    with serving() as other:
        location = {"Location": f"{other.url}/chat/completions"}
        endpoint.faults = [Reply(302, "", location)] * 50
        done = digest(folder, endpoint.url)
        assert done.code == 1
        assert "answered 302" in done.err
        assert other.calls == []


def test_nobody_answers(folder: Path) -> None:
    with serving() as endpoint:
        url = endpoint.url
    done = digest(folder, url)
    assert done.code == 1
    assert "no answer from 127.0.0.1: [Errno" in done.err
    assert "Start the same command again" in done.err


def test_a_budget_without_a_price_is_said(folder: Path, endpoint: Endpoint) -> None:
    env = {"OPENAI_BASE_URL": endpoint.url, "OPENAI_API_KEY": KEY}
    options = ("--model", "m", "--budget-usd", 1)
    done = finish(start("digest.py", "text.md", *options, cwd=folder, env=env))
    assert done.code == 1
    assert "give --price" in done.err


@pytest.mark.parametrize("url", ["ftp://example.org", "example.org/v1", "http://"])
def test_a_wrong_address_is_refused(folder: Path, url: str) -> None:
    done = digest(folder, url)
    assert done.code == 2
    assert "OPENAI_BASE_URL" in done.err


def test_a_model_is_never_asked_by_accident(folder: Path, endpoint: Endpoint) -> None:
    env = {"OPENAI_BASE_URL": endpoint.url, "OPENAI_API_KEY": KEY}
    done = finish(start("digest.py", "text.md", cwd=folder, env=env))
    assert done.code == 0
    assert endpoint.calls == []
