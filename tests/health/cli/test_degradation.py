"""`convener degradation` against the real service."""

from app.kernel.access import Role
from tests.support.command_line import CommandLine, Service


async def test_get_set_and_auto(convener: CommandLine) -> None:
    try:
        done = await convener("degradation", "set", "3", "--minutes", "5", "--reason", "an upgrade")
        assert done.code == 0
        assert "3: agents are asked to work in smaller batches" in done.out
        done = await convener("degradation", "get")
        assert "an upgrade" in done.out
        assert "0 to 3" in done.out
        state = (await convener("degradation", "get", "-o", "json")).json
        assert (state["step"], state["advice"]["batch_factor"], state["moves"][0]["move"]) == (3, 0.5, "held")
        await convener("degradation", "set", "0", "--minutes", "5")
    finally:
        done = await convener("degradation", "auto", "-o", "json")
    assert (done.json["step"], done.json["hold"]) == (0, None)


async def test_plain_errors(convener: CommandLine, live_service: Service) -> None:
    for arguments in (["5"], ["none"], ["2", "--minutes", "0"], []):
        assert (await convener("degradation", "set", *arguments)).code == 2
    assert (await convener("degradation", "set", "1", CONVENER_KEY=live_service.keys[Role.READER])).code == 4
