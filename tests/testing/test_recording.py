"""Paid calls are recorded once, and replayed."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime as dt
import json
import subprocess
import sys
from collections.abc import Awaitable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, SecretStr

from stroma import AsyncInMemoryStore, ConfigError, RunStatus, StromaRunner, node
from stroma.testing import FakeClock, RecordedCalls, RecordedError, UnknownCall, recorded_calls


class Answer(BaseModel):
    text: str
    at: dt.datetime = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


class Service:
    """What costs: it counts how often it is called."""

    def __init__(self) -> None:
        self.calls = 0

    async def ask(self, prompt: str, *, model: str = "small", api_key: str = "") -> Answer:
        self.calls += 1
        return Answer(text=f"{prompt} {model} {self.calls}")

    def count(self, words: list[str]) -> int:
        self.calls += 1
        return len(words)

    async def fail(self, prompt: str, password: str = "") -> Answer:
        self.calls += 1
        raise TimeoutError(f"{prompt} took too long for {password}")


@pytest.fixture(autouse=True)
def no_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cassettes" / "calls.json"


@pytest.fixture
def service() -> Service:
    return Service()


async def test_a_call_is_made_once_and_then_replayed(path: Path, service: Service) -> None:
    with recorded_calls(path, mode="record") as calls:
        bought = await calls.wrap(service.ask)("hello")
    with recorded_calls(path, mode="replay") as calls:
        replayed = await calls.wrap(service.ask)("hello")
        assert calls.unused == ()
    assert bought == replayed == Answer(text="hello small 1")
    assert type(replayed) is Answer
    assert service.calls == 1


def test_sync_functions_are_wrapped_too(path: Path, service: Service) -> None:
    for mode in ("record", "replay", "auto"):
        with recorded_calls(path, mode=mode) as calls:
            assert calls.wrap(service.count)(["a", "b"]) == 2
    assert service.calls == 1


async def test_a_call_is_known_by_its_arguments_however_they_are_given(
    path: Path, service: Service
) -> None:
    with recorded_calls(path) as calls:
        ask = calls.wrap(service.ask)
        await ask("a", model="small")
    with recorded_calls(path, mode="replay") as calls:
        assert (await calls.wrap(service.ask)(prompt="a")).text == "a small 1"


async def test_several_answers_of_one_call_come_back_in_their_order(
    path: Path, service: Service
) -> None:
    with recorded_calls(path, mode="record") as calls:
        ask = calls.wrap(service.ask)
        recorded = [(await ask("a")).text for _ in range(3)]
    with recorded_calls(path, mode="replay") as calls:
        ask = calls.wrap(service.ask)
        assert [(await ask("a")).text for _ in range(3)] == recorded
        with pytest.raises(UnknownCall, match="recorded 3 times, and was made once more"):
            await ask("a")


async def test_auto_buys_what_is_new_and_nothing_else(path: Path, service: Service) -> None:
    for expected in (1, 1):
        with recorded_calls(path) as calls:
            await calls.wrap(service.ask)("a")
        assert service.calls == expected
    with recorded_calls(path) as calls:
        await calls.wrap(service.ask)("b")
        assert calls.unused == ('ask("api_key": "[redacted]", "model": "small", "prompt": "a")',)
    assert service.calls == 2
    with recorded_calls(path, mode="replay") as calls:
        ask = calls.wrap(service.ask)
        assert [(await ask(p)).text for p in "ab"] == ["a small 1", "b small 2"]


async def test_in_ci_auto_buys_nothing(
    path: Path, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    with recorded_calls(path) as calls:
        await calls.wrap(service.ask)("a")
    monkeypatch.setenv("CI", "true")
    with recorded_calls(path) as calls:
        await calls.wrap(service.ask)("a")
        with pytest.raises(UnknownCall, match='mode "auto" makes no calls where CI is set'):
            await calls.wrap(service.ask)("b")
    with (
        pytest.raises(ConfigError, match="there are no recorded calls at"),
        recorded_calls(path.with_name("other.json")),
    ):
        pass
    assert service.calls == 1
    with recorded_calls(path, mode="record") as calls:  # asked for by name
        await calls.wrap(service.ask)("b")
    assert service.calls == 2


async def test_an_unknown_call_is_named_with_the_nearest(path: Path, service: Service) -> None:
    with recorded_calls(path) as calls:
        ask = calls.wrap(service.ask)
        await ask("What is the capital of France?")
        await ask("Nothing like it", model="large")
        calls.wrap(service.count)(["What is the capital of Franc?"])
    with recorded_calls(path, mode="replay") as calls, pytest.raises(UnknownCall) as caught:
        await calls.wrap(service.ask)("What is the capital of Italy?")
    message = str(caught.value)
    assert 'ask("api_key": "[redacted]", "model": "small", "prompt": "What is the capital of I' in (
        message
    )
    assert "the nearest that is recorded is ask(" in message
    assert "France?" in message
    assert 'Run once with mode="record" to buy it' in message


async def test_record_writes_the_file_anew(path: Path, service: Service) -> None:
    for prompt in "ab":
        with recorded_calls(path, mode="record") as calls:
            await calls.wrap(service.ask)(prompt)
    found = json.loads(path.read_text())
    assert [call["arguments"]["prompt"] for call in found["calls"]] == ["b"]


async def test_the_file_is_readable_and_does_not_depend_on_the_order(
    tmp_path: Path,
) -> None:
    for name, order in (("one", "abü"), ("two", "üba")):
        with recorded_calls(tmp_path / name, mode="record") as calls:

            async def ask(prompt: str) -> Answer:
                return Answer(text=prompt.upper())

            wrapped = calls.wrap(ask)
            for prompt in order:
                await wrapped(prompt)
    one, two = ((tmp_path / name).read_text("utf-8") for name in ("one", "two"))
    assert one == two
    assert one.startswith('{\n  "calls": [\n    {\n      "answers": [\n')
    assert '"text": "Ü"' in one
    assert one.endswith('"stroma_calls": 1\n}\n')


async def test_secrets_are_not_written_and_do_not_matter(path: Path, service: Service) -> None:
    with recorded_calls(path) as calls:
        await calls.wrap(service.ask)("a", api_key="sk-123")
        with pytest.raises(TimeoutError, match="hunter2"):
            await calls.wrap(service.fail)("a", password="hunter2")
    text = path.read_text()
    assert "sk-123" not in text
    assert "hunter2" not in text
    with recorded_calls(path, mode="replay") as calls:
        await calls.wrap(service.ask)("a", api_key="sk-456")
        with pytest.raises(RecordedError, match=r"too long for \[redacted\]"):
            await calls.wrap(service.fail)("a", password="another")


async def test_fields_are_redacted_by_name_at_any_depth(path: Path) -> None:
    class Request(BaseModel):
        who: str
        card: str
        key: SecretStr

    async def pay(request: Request, headers: dict[str, str], client: object) -> int:
        return 1

    headers = {"X-Api-Key": "k-1", "Accept": "all"}
    given = Request(who="me", card="4111", key=SecretStr("s-1"))
    with recorded_calls(path, redact=["card", "client"]) as calls:
        await calls.wrap(pay)(given, headers, object())
    (call,) = json.loads(path.read_text())["calls"]
    assert call["arguments"] == {
        "client": "[redacted]",
        "headers": {"Accept": "all", "X-Api-Key": "[redacted]"},
        "request": {"card": "[redacted]", "key": "[redacted]", "who": "me"},
    }


async def test_secrets_of_pydantic_are_not_told_by_exceptions_either(path: Path) -> None:
    async def sign_in(who: SecretStr) -> int:
        raise ValueError(f"{who.get_secret_value()} is not known")

    with recorded_calls(path) as calls, pytest.raises(ValueError, match="s-1 is not known"):
        await calls.wrap(sign_in)(SecretStr("s-1"))
    assert "s-1" not in path.read_text()


async def test_a_function_may_redact(path: Path, service: Service) -> None:
    def hide(function: str, arguments: Any) -> dict[str, object]:
        assert function == "ask"
        return {"prompt": arguments["prompt"].split()[0]}

    with recorded_calls(path, redact=hide) as calls:
        await calls.wrap(service.ask)("Dear Ms Miller")
    with recorded_calls(path, mode="replay", redact=hide) as calls:
        assert (await calls.wrap(service.ask)("Dear Mr Smith")).text.startswith("Dear Ms Miller")


async def test_an_exception_is_recorded_and_raised_again(path: Path, service: Service) -> None:
    with recorded_calls(path, mode="record") as calls:
        with pytest.raises(TimeoutError) as original:
            await calls.wrap(service.fail)("a")
        assert type(original.value) is TimeoutError
    with recorded_calls(path, mode="replay") as calls, pytest.raises(RecordedError) as caught:
        await calls.wrap(service.fail)("a")
    assert (caught.value.name, caught.value.message) == ("TimeoutError", "a took too long for ")
    assert isinstance(caught.value, TimeoutError)
    assert service.calls == 1


async def test_a_replayed_run_is_retried_as_the_recorded_one_was(path: Path) -> None:
    calls_made = 0

    async def ask(prompt: str) -> Answer:
        nonlocal calls_made
        calls_made += 1
        if calls_made == 1:
            raise ConnectionResetError("gone")
        return Answer(text="yes")

    traces = []
    for mode in ("record", "replay"):
        with recorded_calls(path, mode=mode) as calls:

            @node
            async def answer(state: Answer, ctx: dict[str, Any]) -> Answer:
                return await ctx["ask"](state.text)

            runner = StromaRunner.quick(
                store=AsyncInMemoryStore(), clock=FakeClock(auto_advance=True), random=lambda: 0.0
            )
            runner.with_context({"ask": calls.wrap(ask)})
            result = await runner.run([answer], Answer(text="?"))
            assert (result.status, result.final_state) == (
                RunStatus.COMPLETED,
                Answer(text="yes"),
            )
            traces.append([event.kind for event in result.trace])
    assert traces == [["failed", "succeeded"]] * 2
    assert calls_made == 2


async def test_an_unknown_call_is_not_retried(path: Path, service: Service) -> None:
    with recorded_calls(path, mode="record") as calls:
        await calls.wrap(service.ask)("a")
    with recorded_calls(path, mode="replay") as calls:
        wrapped = calls.wrap(service.ask)

        @node
        async def answer(state: Answer) -> Answer:
            return await wrapped(state.text)

        result = await StromaRunner.quick(store=AsyncInMemoryStore()).run(
            [answer], Answer(text="b")
        )
    assert result.status is RunStatus.FAILED
    assert len(result.trace.failures()) == 1
    assert isinstance(result.error, UnknownCall)


async def test_values_of_many_kinds_are_arguments(path: Path) -> None:
    @dataclasses.dataclass
    class Point:
        x: float
        name: str

    async def ask(*args: object, **kwargs: object) -> tuple[Answer, int, str]:
        return Answer(text="a"), 3, "gpt-4o"

    values = (
        Point(1.5, "p"),
        {"b", "a"},
        dt.date(2026, 1, 2),
        b"\xff",
        Path("x"),
        (1, None),
        {2: 3},
    )
    with recorded_calls(path) as calls:
        bought = await calls.wrap(ask)(*values, answer=Answer(text="q"))
    with recorded_calls(path, mode="replay") as calls:
        assert await calls.wrap(ask)(*values, answer=Answer(text="q")) == bought
    arguments = json.loads(path.read_text())["calls"][0]["arguments"]
    assert arguments["args"] == [
        {"name": "p", "x": 1.5},
        ["a", "b"],
        "2026-01-02",
        "_w==",
        "x",
        [1, None],
        {"2": 3},
    ]


def test_sets_are_written_in_one_order_in_every_process(tmp_path: Path) -> None:
    program = """
import sys
from stroma.testing import recorded_calls
def ask(words: object) -> int: return 1
with recorded_calls(sys.argv[1], mode="record") as calls:
    calls.wrap(ask)({"a", "b", "c", "d", "e", "f"})
"""
    written = []
    for seed in ("1", "2", "3"):
        target = tmp_path / seed
        environment = {"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)}
        subprocess.run([sys.executable, "-c", program, target], check=True, env=environment)
        written.append(target.read_text())
    assert len(set(written)) == 1


class Client:
    pass


def _circle() -> list[object]:
    found: list[object] = []
    found.append(found)
    return found


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (Client(), "words is of Client, which has no JSON form; *|words is of Client"),
        ({"a": [Client()]}, r"words\.a\[0\] is of Client"),
        (iter("ab"), "which has no JSON form that leaves it as it is"),
        (float("nan"), "words is nan, which JSON does not have"),
        (_circle(), "an argument contains itself"),
    ],
)
def test_an_argument_without_json_is_named(path: Path, value: Any, message: str) -> None:
    def ask(words: object) -> int:
        raise AssertionError("it was called")

    with recorded_calls(path) as calls, pytest.raises(ConfigError, match=message) as caught:
        calls.wrap(ask)(value)
    assert "a call of ask cannot be recorded" in str(caught.value)
    assert "left out with redact=" in str(caught.value)


async def test_an_answer_that_would_come_back_otherwise_is_refused(path: Path) -> None:
    class Hidden(BaseModel):
        key: SecretStr

    class More(Answer):
        more: int = 1

    async def secret() -> Hidden:
        return Hidden(key=SecretStr("s"))

    async def subclass() -> Answer:
        return More(text="a")

    async def bare():  # type: ignore[no-untyped-def]
        return Answer(text="a")

    def endless() -> float:
        return float("inf")

    with recorded_calls(path) as calls:
        for function in (secret, subclass):
            with pytest.raises(
                ConfigError, match=f"{function.__name__} was called, and its answer"
            ):
                await calls.wrap(function)()
        with pytest.raises(ConfigError, match=r"say what it is with wrap\(…, returns=Model\)"):
            await calls.wrap(bare)()
        with pytest.raises(ConfigError, match="endless was called"):
            calls.wrap(endless)()
        assert await calls.wrap(bare, returns=Answer)() == Answer(text="a")


async def test_an_annotated_awaitable_is_awaited(path: Path, service: Service) -> None:
    def ask(prompt: str) -> Awaitable[Answer]:
        return service.ask(prompt)

    for mode in ("record", "replay"):
        with recorded_calls(path, mode=mode) as calls:
            assert (await calls.wrap(ask)("a")).text == "a small 1"


async def test_a_type_that_changed_is_said(path: Path) -> None:
    async def ask() -> Answer:
        return Answer(text="a")

    class Other(BaseModel):
        words: int

    with recorded_calls(path) as calls:
        await calls.wrap(ask)()
    with (
        recorded_calls(path, mode="replay") as calls,
        pytest.raises(ConfigError, match=r"does not fit its type any more.*words.*record it again"),
    ):
        await calls.wrap(ask, returns=Other)()


def test_no_stored_name_is_imported(path: Path) -> None:
    path.parent.mkdir()
    raised = {"class": "os.system", "message": "boom", "is_a": "builtins.SystemExit"}
    call = {"function": "ask", "arguments": {}, "answers": [{"raised": raised}]}
    path.write_text(json.dumps({"stroma_calls": 1, "calls": [call]}))

    def ask() -> int:
        return 1

    with recorded_calls(path, mode="replay") as calls, pytest.raises(RecordedError) as caught:
        calls.wrap(ask)()
    assert type(caught.value) is RecordedError


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"stroma_calls": 1}', '{"stroma_calls": 1, "calls": [{}]}', "[1, 2]"]
)
def test_a_file_of_something_else_is_said(path: Path, text: str) -> None:
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(ConfigError, match="holds no recorded calls"), recorded_calls(path):
        pass
    assert path.read_text() == text


def test_a_newer_format_is_said(path: Path) -> None:
    path.parent.mkdir()
    path.write_text('{"stroma_calls": 2, "calls": []}')
    with (
        pytest.raises(ConfigError, match="in format 2, and this version reads 1"),
        recorded_calls(path),
    ):
        pass


def test_replay_needs_the_file(path: Path) -> None:
    with (
        pytest.raises(ConfigError, match='run once with mode="record"'),
        recorded_calls(path, mode="replay"),
    ):
        pass


async def test_each_answer_is_on_disk_before_the_caller_has_it(
    path: Path, service: Service
) -> None:
    with recorded_calls(path) as calls:
        ask = calls.wrap(service.ask)
        for number in range(1, 4):
            await ask("a")
            (call,) = json.loads(path.read_text())["calls"]
            assert len(call["answers"]) == number
    assert [each.name for each in path.parent.iterdir()] == ["calls.json"]


async def test_calls_side_by_side_and_in_threads_are_all_recorded(
    path: Path, service: Service
) -> None:
    with recorded_calls(path) as calls:
        ask, count = calls.wrap(service.ask), calls.wrap(service.count)
        asked = (ask(f"{n}") for n in range(20))
        counted = (asyncio.to_thread(count, [f"{n}"]) for n in range(20))
        await asyncio.gather(*asked, *counted)
    assert len(json.loads(path.read_text())["calls"]) == 40


async def test_a_cancelled_call_is_not_recorded(path: Path) -> None:
    async def ask() -> int:
        await asyncio.sleep(60)
        return 1

    with recorded_calls(path) as calls:
        task = asyncio.create_task(calls.wrap(ask)())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert not path.exists()


@pytest.fixture
def calls(path: Path) -> Iterator[RecordedCalls]:
    with recorded_calls(path) as made:
        yield made


def test_names_are_needed_and_taken_once(calls: RecordedCalls, service: Service) -> None:
    def ask(prompt: str) -> int:
        return 1

    calls.wrap(service.ask)
    calls.wrap(service.ask)
    with pytest.raises(ConfigError, match="two functions are called 'ask'"):
        calls.wrap(ask)
    calls.wrap(ask, name="another")
    with pytest.raises(ConfigError, match=r"give wrap\(…, name=…\)"):
        calls.wrap(lambda: 1)
    with pytest.raises(ConfigError, match=r"wrap\(\) takes a function, not int"):
        calls.wrap(3)  # type: ignore[arg-type]


def test_an_annotation_that_is_not_there_is_said(calls: RecordedCalls) -> None:
    def ask() -> Missing:  # type: ignore[name-defined]  # noqa: F821
        return 1

    with pytest.raises(ConfigError, match=r"cannot be resolved.*give wrap\(…, returns=…\)"):
        calls.wrap(ask)
    assert calls.wrap(ask, returns=int)() == 1


def test_calls_outside_of_the_block_are_refused(path: Path, service: Service) -> None:
    with recorded_calls(path) as calls:
        count = calls.wrap(service.count)
    with pytest.raises(ConfigError, match="count was called outside of `with recorded_calls"):
        count([])
    assert service.calls == 0


def test_wrong_options_are_said(path: Path) -> None:
    with pytest.raises(ConfigError, match="mode must be one of record, replay, auto, not 'once'"):
        recorded_calls(path, mode="once")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"redact must be a list of names or a function"):
        recorded_calls(path, redact="card")
