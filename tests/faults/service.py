"""What `stroma worker` is told to take up in these tests: the workload, on a test's store.

STROMA_FAULTS_JOB='{"store": …, "options": …, "log": …}' stroma worker tests.faults.service:pipeline
"""

from __future__ import annotations

import json
import os

from stroma import NodeHooks, Pipeline
from stroma.result import ExecutionResult
from stroma.testing._processes import kill_this_process
from tests.faults import workload
from tests.faults.sidelog import SideLog
from tests.faults.workload import (
    RESERVING,
    Acknowledgements,
    Provider,
    runner_of,
    say_how_it_ended,
)

JOB = "STROMA_FAULTS_JOB"

_job = json.loads(os.environ[JOB])
_log = SideLog(_job["log"])
workload.employ(Provider(_log, latency_seconds=_job["latency_seconds"]))


class _Ends(NodeHooks):
    def on_run_end(self, result: ExecutionResult) -> None:  # type: ignore[override]
        if _job["is_mute"]:
            kill_this_process()
        say_how_it_ended(_log, result)


pipeline = Pipeline(
    RESERVING.name,
    RESERVING.nodes,
    version=RESERVING.version,
    runner=runner_of(
        _job["store"],
        _log,
        options=_job["options"],
        lease_seconds=_job["lease_seconds"],
        hooks=[Acknowledgements(_log), _Ends()],
    ),
)
