"""The run that is under way, for log records outside of its nodes."""

from __future__ import annotations

from contextvars import ContextVar

RUN_ID: ContextVar[str] = ContextVar("stroma_otel_run_id", default="")
