"""A task that asks for what nobody has says so at once."""

from app.db.database import Database
from tests.support.service import Service
from tests.support.sql import execute

_CLASS = """
INSERT INTO hosts (provisioner, host, size, usual_size, memory_gb, memory_used_gb, cpu_cores, max_size, serves, seen_at)
VALUES ('kubernetes', 'gpus', 0, 0, 0, 0, 0, 5, '{"agents": ["generation"], "offer": {"gpus": 1}}', now())
"""


async def _why(service: Service, task: str) -> tuple[str, str]:
    cause = (await service.get(f"/tasks/{task}/why"))["cause"]
    return cause["code"], cause["text"]


async def test_what_nobody_offers_is_said_with_the_most_that_there_is(service: Service) -> None:
    await service.worker()
    await service.worker(gpus=1)
    two = await service.submitted(resources={"gpus": 2, "cores": 1})
    text = "nobody who serves generation offers 2 GPUs: the most that one of them offers is 1 GPU"
    assert await _why(service, two) == ("unoffered", text)
    laser = await service.submitted(resources={"named": {"laser": 1}})
    text = "nobody who serves generation offers 1 of laser: the most that one of them offers is 0 of laser"
    assert await _why(service, laser) == ("unoffered", text)


async def test_what_nobody_offers_at_once(service: Service) -> None:
    await service.worker(gpus=2)
    await service.worker(memory_gb=256)
    task = await service.submitted(resources={"gpus": 2, "memory_gb": 128})
    text = "nobody who serves generation offers all of 2 GPUs and 128 GB of memory at once"
    assert await _why(service, task) == ("unoffered", text)
    mends = (await service.get(f"/tasks/{task}/why"))["cause"]["mends"]
    assert mends[0]["command"] == "convener worker --handlers MODULE --gpus 2 --memory-gb 128"


async def test_those_that_offer_it_are_busy(service: Service) -> None:
    await service.worker()
    gpu = await service.worker(gpus=1)
    await service.submitted(resources={"gpus": 1})
    await gpu.lease()
    task = await service.submitted(resources={"gpus": 1})
    code, text = await _why(service, task)
    assert (code, text) == (
        "busy",
        "the one worker that serves generation with 1 GPU is busy; no task of its type is before it",
    )
    other = await service.submitted(resources={"gpus": 1})
    assert (await _why(service, other))[1].endswith("1 task of its type is before it")


async def test_a_class_that_offers_it_and_has_no_worker_yet_is_named(service: Service, database: Database) -> None:
    await service.worker()
    await execute(database, _CLASS)
    code, text = await _why(service, await service.submitted(resources={"gpus": 1}))
    assert (code, text) == (
        "workers_starting",
        "no worker of gpus is there yet, which serves generation with 1 GPU: the loops start some",
    )
    assert (await _why(service, await service.submitted(resources={"gpus": 2})))[0] == "unoffered"
