"""Networks between workers and their server that lose replies, break and fall silent."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import pytest

from stroma.testing import TcpProxy
from stroma.testing._kills import sampled
from tests.faults.oracle import Excuses, check
from tests.faults.places import SERVERS, Place
from tests.faults.size import Size
from tests.faults.worker import Worker, work

pytestmark = [pytest.mark.server, pytest.mark.slow, pytest.mark.timeout(7200)]


@pytest.mark.parametrize("place", SERVERS, indirect=True)
def test_a_lost_reply_at_any_request(place: Place, size: Size) -> None:
    """The server did it, and the worker does not hear: the same is sent again, the node is not."""
    runs = 0
    with place.behind_a_proxy() as proxy:

        def one_run() -> int:
            """Bring a run to its end, without renewals, which are as many as it takes long."""
            nonlocal runs
            before, runs = proxy.round_trips, runs + 1
            work(place.job_at(proxy.host, proxy.port, f"run {runs}", lease_seconds=60.0))
            return proxy.round_trips - before

        one_run()  # which creates what there has to be
        numbers = sampled(one_run(), size.lost_replies)
        for number in numbers:
            lost = proxy.dropped
            while proxy.dropped == lost:
                assert number >= 0, "no reply was there to be lost"
                proxy.drop_reply(number + 1)
                one_run()
                proxy.heal()
                number -= 1  # noqa: PLW2901 - runs differ by the commits that share a request

    bill = check(place.open, place.lines, at_least=8 * len(numbers))
    assert bill.runs == runs
    assert bill.in_doubt == []


def _half_open(proxy: TcpProxy, chance: random.Random) -> None:
    proxy.pause()
    time.sleep(chance.choice([0.05, 1.5]))  # within what clients wait, or for longer
    proxy.resume()


def _down(proxy: TcpProxy, chance: random.Random) -> None:
    proxy.refuse()
    proxy.reset()
    time.sleep(chance.uniform(0.05, 0.3))
    proxy.heal()


FAULTS: tuple[Callable[[TcpProxy, random.Random], object], ...] = (
    lambda proxy, chance: proxy.reset(),
    lambda proxy, chance: proxy.half_close(),
    lambda proxy, chance: proxy.drop_reply(chance.randint(1, 3)),
    lambda proxy, chance: proxy.cut_reply(chance.randint(0, 20)),
    lambda proxy, chance: proxy.delay(chance.uniform(0.0, 0.05)),
    _half_open,
    _down,
)


@pytest.mark.parametrize("place", SERVERS, indirect=True)
def test_a_network_that_fails_at_random(place: Place, size: Size, seed: int) -> None:
    """Resets, half-open connections, cut replies and refusals while a worker is at work."""
    chance = random.Random(seed)
    faults, batch = 0, 0
    with place.behind_a_proxy() as proxy:
        while faults < size.network_faults:
            runs = [f"run {batch}.{number}" for number in range(3)]
            job = place.job_at(
                proxy.host, proxy.port, *runs, latency_seconds=0.02, lease_seconds=8.0, seed=seed
            )
            worker = Worker(job)
            while not worker.is_over_within(chance.uniform(0.02, 0.2)):
                if faults < size.network_faults:
                    chance.choice(FAULTS)(proxy, chance)
                    faults += 1
                else:
                    proxy.heal()
            worker.wait()
            batch += 1

    excuses = Excuses(is_unsaved_known=True)
    bill = check(place.open, place.lines, excuses=excuses, at_least=4 * 3 * batch)
    assert bill.runs == 3 * batch
