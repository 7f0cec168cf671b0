"""`convener key create --namespace`, and what such a key and `convener --namespace` show."""

from app.kernel.access import Role
from tests.support.command_line import CommandLine, Service


async def test_a_supervisor_of_a_namespace_sees_its_own(convener: CommandLine, live_service: Service) -> None:
    admin = {"CONVENER_KEY": live_service.keys[Role.ADMIN]}
    create = ("key", "create", "supervisor", "--label", "lab a", "--namespace", "lab-a", "-o", "json")
    made = (await convener(*create, **admin)).json
    assert made["namespace"] == "lab-a"
    listed = (await convener("key", "ls", **admin)).out
    assert "lab-a" in next(line for line in listed.splitlines() if made["id"] in line)
    ours = {"CONVENER_KEY": made["key"]}
    await convener("tasks", "submit", "--agent", "ranking", "--goal", "theirs")
    submitted = await convener("tasks", "submit", "--agent", "ranking", "--goal", "ours", "-o", "json", **ours)
    assert submitted.code == 0, submitted.err
    items = (await convener("tasks", "ls", "-o", "json", **ours)).json["items"]
    assert [(item["namespace"], item["goal_id"]) for item in items] == [("lab-a", "ours")]
    assert (await convener("workers", "ls", **ours)).code == 4
    everything = (await convener("tasks", "ls")).out
    assert "@lab-a/ours" in everything
    assert "theirs" in everything
    only = (await convener("--namespace", "lab-a", "tasks", "ls", CONVENER_NAMESPACE=None)).out
    assert "theirs" not in only
    board = (await convener("queues", "namespaces")).out
    assert "lab-a" in board
    assert "default" in board


async def test_namespaces_that_no_key_can_have(convener: CommandLine, live_service: Service) -> None:
    admin = {"CONVENER_KEY": live_service.keys[Role.ADMIN]}
    for role, *options in (
        ("operator", "--namespace", "lab-a"),
        ("supervisor", "--namespace", "Lab A"),
        ("supervisor", "--all-namespaces"),
        ("reader", "--namespace", "lab-a", "--all-namespaces"),
    ):
        assert (await convener("key", "create", role, "--label", "x", *options, **admin)).code == 2, options
    made = await convener("key", "create", "reader", "--label", "x", "--all-namespaces", "-o", "json", **admin)
    assert made.json["namespace"] is None


async def test_goals_of_equal_names_are_told_apart(convener: CommandLine, live_service: Service) -> None:
    for namespace in ("lab-a", "lab-b"):
        made = await convener("--namespace", namespace, "goals", "create", "--id", "g1", "--objective", namespace)
        assert made.code == 0, made.err
        shown = (await convener("--namespace", namespace, "goals", "get", "g1")).out
        assert f"@{namespace}/g1" in shown
    listed = (await convener("goals", "ls", CONVENER_NAMESPACE=None)).out
    assert "@lab-a/g1" in listed
    assert "@lab-b/g1" in listed
