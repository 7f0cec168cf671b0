"""A worker that is part of something that ends: it says so, and stops before."""

import time

from tests.worker_agent.conftest import StartWorker
from tests.worker_agent.fake_control_plane import FakeControlPlane
from worker_agent.lifetime import Lifetime


def test_a_little_is_kept_for_the_last_report() -> None:
    assert 54 < Lifetime(60).seconds_left <= 55
    assert Lifetime(2).seconds_left == 0


def test_a_worker_tells_how_long_it_has_and_stops_in_order_before(
    plane: FakeControlPlane, url: str, start_worker: StartWorker
) -> None:
    worker = start_worker(url, "--seconds-left", "8", "--grace", "1")
    (registration,) = plane.wait_for("register", 1)
    # Its seconds count from when it has started, which may take long where the machine is busy.
    began_at = time.monotonic()
    assert 0 < registration.body["seconds_left"] <= 3
    plane.wait_for("goodbye", 1)
    assert worker.exit_code() == 0
    assert time.monotonic() - began_at < 8


def test_a_worker_without_an_end_names_none(plane: FakeControlPlane, url: str, start_worker: StartWorker) -> None:
    start_worker(url)
    assert "seconds_left" not in plane.wait_for("register", 1)[0].body
