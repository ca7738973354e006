"""What finds the facts of a passage in digest.py: rules, or a model behind an endpoint."""

from __future__ import annotations

import json
import os
import re
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from email.message import Message
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from typing import IO, Any, TypeAlias
from urllib.parse import urlsplit

from pydantic import BaseModel, ValidationError

import stroma
from stroma import FailureClass, FailureVerdict, NodeContext

LOCAL = "local"
"""What the local extractor calls its model."""


class WrongUse(Exception):
    """The command cannot work as it was given."""


class Facts(BaseModel):
    """What is kept of a passage."""

    summary: str
    keywords: list[str]
    figures: list[str]


Answer: TypeAlias = tuple[Facts, int, int, str]
"""Facts, input tokens, output tokens, model: what a node returns to have its spend counted."""
Extractor: TypeAlias = Callable[[str], Answer]


def choose_extractor(model: str | None, delay_ms: float) -> Extractor:
    """Return the endpoint's model if one is named: nothing is ever bought by accident."""
    if model is None:
        return LocalExtractor(delay_ms)
    base_url, key = os.environ.get("OPENAI_BASE_URL", ""), os.environ.get("OPENAI_API_KEY", "")
    if not (base_url or key):
        raise WrongUse("--model needs OPENAI_BASE_URL or OPENAI_API_KEY in the environment")
    return EndpointExtractor(base_url or "https://api.openai.com/v1", key, model)


class LocalExtractor:
    """Finds facts by rules. Each word that it reads or writes counts as a token, and is free."""

    def __init__(self, delay_ms: float) -> None:
        self._delay_seconds = delay_ms / 1000

    def __str__(self) -> str:
        return "the local extractor (each word is a token, and costs nothing)"

    def __call__(self, text: str) -> Answer:
        """Return the facts of a passage."""
        time.sleep(self._delay_seconds)
        text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
        lines = (" ".join(each.split()) for each in re.split(r"(?<=[.!?])\s|\n\s*\n", text))
        sentences = [each for each in lines if re.fullmatch(r"\w\S* .* .*[.!?]", each)]
        words = Counter(re.findall(r"[a-z]{6,}", text.casefold()))
        facts = Facts(
            summary=next(iter(sentences), ""),
            keywords=sorted(words, key=lambda word: (-words[word], word))[:5],
            figures=[each for each in sentences if re.search(r"\b\d", each)][:3],
        )
        written = " ".join([facts.summary, *facts.keywords, *facts.figures])
        return facts, len(text.split()), len(written.split()), LOCAL


# -- an OpenAI-compatible endpoint -------------------------------------------------------------

PROMPT = (
    "Extract facts from the passage. Answer with one JSON object and nothing else: "
    '{"summary": "one sentence", "keywords": ["up to five words"], '
    '"figures": ["up to three sentences that state a number"]}'
)


class EndpointError(Exception):
    """The endpoint gave no answer; status 0 is no HTTP response at all."""

    def __init__(self, message: str, status: int, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after_seconds = retry_after_seconds


class BadAnswer(Exception):
    """The model's answer, which is paid for, is not what was asked for."""


def classify(exc: Exception, context: NodeContext) -> FailureVerdict | None:
    """Tell Stroma what may pass: overload and lost connections, not a wrong key or request."""
    if isinstance(exc, BadAnswer):
        return FailureVerdict(FailureClass.RECOVERABLE, "bad_answer")
    if not isinstance(exc, EndpointError):
        return None
    may_pass = exc.status in (0, 408, 409, 429) or exc.status >= 500
    found = FailureClass.RECOVERABLE if may_pass else FailureClass.TERMINAL
    return FailureVerdict(found, f"http_{exc.status}", exc.retry_after_seconds)


class EndpointExtractor:
    """Asks a model. Tokens are those that the endpoint reports."""

    def __init__(self, base_url: str, key: str, model: str) -> None:
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise WrongUse("OPENAI_BASE_URL must be an http or https URL")
        if not key.isprintable() or not key.isascii():
            raise WrongUse("OPENAI_API_KEY has characters that no header can carry")
        self._host = parts.hostname
        self._url = base_url.rstrip("/") + "/chat/completions"
        self._key = key
        self._model = model
        self._opener = urllib.request.build_opener(_NoRedirects)

    def __str__(self) -> str:
        return f"{self._model} at {self._host}"

    def __call__(self, text: str) -> Answer:
        """Return the facts of a passage, and count a useless answer, too.

        Raises:
            EndpointError: there is no answer.
            BadAnswer: it is not the JSON that was asked for.
        """
        answer = self._post(text)
        usage = answer.get("usage") or {}
        read, written = int(usage.get("prompt_tokens", 0)), int(usage.get("completion_tokens", 0))
        try:
            content = answer["choices"][0]["message"]["content"]
            facts = Facts.model_validate_json(content[content.find("{") : content.rfind("}") + 1])
        except (LookupError, TypeError, AttributeError, ValidationError):
            stroma.report_usage(input_tokens=read, output_tokens=written, model=self._model)
            raise BadAnswer("the answer is not the JSON that was asked for") from None
        return facts, read, written, self._model

    def _post(self, text: str) -> dict[str, Any]:
        messages = [{"role": "system", "content": PROMPT}, {"role": "user", "content": text}]
        body = json.dumps({"model": self._model, "messages": messages}).encode()
        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(self._url, body, headers)
        try:
            with self._opener.open(request, timeout=120) as response:
                answer = json.load(response)
        except urllib.error.HTTPError as exc:
            raise self._refused(exc) from None
        except (OSError, HTTPException, ValueError) as exc:
            reason = self._without_key(str(getattr(exc, "reason", exc)) or type(exc).__name__)
            raise EndpointError(f"no answer from {self._host}: {reason}", 0) from None
        if not isinstance(answer, dict):
            raise EndpointError(f"{self._host} answered JSON that is no object", 0)
        return answer

    def _refused(self, exc: urllib.error.HTTPError) -> EndpointError:
        with exc:
            detail = " ".join(self._without_key(exc.read(2000).decode(errors="replace")).split())
        message = f"{self._host} answered {exc.code} {exc.reason}: {detail[:200]}"
        return EndpointError(message, exc.code, retry_after_seconds(exc.headers))

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect would take the key to another address."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: Any,
        newurl: str,
    ) -> None:
        """Follow nothing: the 3xx becomes an error."""


def retry_after_seconds(headers: Message) -> float | None:
    """Return the wait that a Retry-After header asks for, in seconds or by a date."""
    value = headers.get("Retry-After", "")
    if value.isdecimal():
        return float(value)
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None
