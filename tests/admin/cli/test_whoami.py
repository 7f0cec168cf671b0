"""`convener whoami`: which key is in use, and where."""

from tests.support.command_line import CommandLine, Service


async def test_it_shows_key_role_and_service(convener: CommandLine, live_service: Service) -> None:
    answer = (await convener("whoami", "-o", "json")).json
    assert (answer["role"], answer["url"]) == ("operator", live_service.url)
    shown = (await convener("whoami")).out
    assert all(
        words in shown for words in (live_service.url, answer["id"], "operator", "of the whole service", "never")
    )


async def test_a_wrong_key_is_refused(convener: CommandLine) -> None:
    refused = await convener("whoami", CONVENER_KEY="cvn_000000000000_x")
    assert (refused.code, refused.out) == (4, "")
