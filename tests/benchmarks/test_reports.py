"""The table and the chart of a run, and the raw client that its load comes from."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks import chart, report, throughput
from benchmarks.chart import Curve, Level
from benchmarks.figures import Figure, Section
from benchmarks.machine import Machine
from benchmarks.raw_client import Cycle, Window

_MACHINE = Machine(cores=2, load=0.1, python="3.11.2")
_SVG = "{http://www.w3.org/2000/svg}"


def test_a_figure_is_the_median_of_its_rounds_and_is_held_against_its_target() -> None:
    figure = Figure.of("cycles", [3.0, 1.0, 2.0], "/s", target=2.5)
    assert (figure.value, figure.least, figure.greatest, figure.is_met) == (2.0, 1.0, 3.0, False)
    missing = Figure(name="peer", value=None, note="cannot be installed here")
    text = report.table(_MACHINE, [Section(title="all", figures=[figure, missing])])
    assert "(1.00 to 3.00)" in text
    assert ">= 2.5: missed" in text
    assert "peer    cannot be installed here" in text
    document = json.loads(report.as_json(_MACHINE, [Section(title="all", figures=[figure])]))
    assert document["sections"][0]["figures"][0]["met"] is False


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [([1, 8, 128, 1000], [128, 1000]), ([512, 64, 1000], [64, 1000]), ([1000, 512], [512, 1000]), ([64], [64])],
)
def test_any_numbers_of_workers_are_set_against_the_yardsticks(sizes: list[int], expected: list[int]) -> None:
    assert throughput.compared_sizes(sizes) == expected


@pytest.mark.parametrize("sizes", [[1, 8, 1000], [64]])
def test_the_chart_has_every_curve_and_level_with_its_ratio(sizes: list[int]) -> None:
    items: list[Curve | Level] = [
        Curve(name="plain <HTTP>", points={size: 100.0 * size for size in sizes}),
        Level(name="pgbench", value=50.0),
    ]
    root = ElementTree.fromstring(chart.draw(items, unit=50.0, unit_name="pgbench"))
    texts = [text.text for text in root.iter(f"{_SVG}text")]
    best = 100.0 * max(sizes)
    assert f"plain <HTTP>: {best:,.0f} ({best / 50:.2f})" in texts
    assert "pgbench: 50 (1.00)" in texts
    assert len(list(root.iter(f"{_SVG}circle"))) == len(sizes)


async def test_the_raw_client_reads_answers_that_come_in_pieces() -> None:
    """It completes what it leased, takes what follows, and stops after the last when the measurement is over."""
    requests: list[bytes] = []
    served = asyncio.Event()
    window = Window(is_open=True)
    task = "11111111-1111-4111-8111-%012d"
    bodies = [
        b'{"task_id":"%b","token":7,"payload":{"task_id":"no"}}' % (task % 1).encode(),
        b'{"task_id":"%b","state":"completed","lease":{"task_id":"%b","token":12,"x":1}}'
        % ((task % 1).encode(), (task % 2).encode()),
        b'{"task_id":"%b","state":"completed","lease":null}' % (task % 2).encode(),
    ]

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for body in bodies:
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r")[0])
            requests.append(head.split(b" ")[1] + b" " + await reader.readexactly(length))
            if len(requests) == len(bodies) - 1:
                window.is_over = True
            answer = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
            for piece in (answer[:20], answer[20:60], answer[60:]):
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0.01)
        writer.close()
        await writer.wait_closed()
        served.set()

    async with await asyncio.start_server(serve, "127.0.0.1") as server:
        port = server.sockets[0].getsockname()[1]
        client = Cycle("key", window)
        await asyncio.get_running_loop().create_connection(lambda: client, "127.0.0.1", port)
        client.begin()
        async with asyncio.timeout(30):
            await client.end
            await served.wait()
    assert [request.split(b" ")[0].decode() for request in requests] == [
        "/lease",
        f"/leases/{task % 1}/complete",
        f"/leases/{task % 2}/complete",
    ]
    assert b'"token":7,' in requests[1]
    assert b'"next":' in requests[1]
    assert b'"token":12,' in requests[2]
    assert b'"next":' not in requests[2]
    assert window.completed_count == 2
    assert [leased.decode() for leased in window.leased_tasks] == [task % 1, task % 2]
    assert len(window.latencies) == 2


@pytest.mark.slow
def test_a_short_run_breaks_no_invariant(tmp_path: Path) -> None:
    drawing = tmp_path / "chart.svg"
    options = ["--only", "batches", "cycles", "--workers", "4", "32"]
    options += ["--rounds", "1", "--seconds", "0.5", "--tasks", "20000"]
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks", *options, "--chart", str(drawing), "-o", "json"],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=Path(__file__).parents[2],
        check=False,
    )
    assert run.returncode == 0, run.stderr
    sections = {section["title"]: section["figures"] for section in json.loads(run.stdout)["sections"]}
    batches = sections["CPU of PostgreSQL, one connection leases and completes"]
    assert all(figure["value"] > 0 for figure in batches)
    broken = sections["invariants, broken"]
    assert {figure["name"]: figure["value"] for figure in broken} == {figure["name"]: 0 for figure in broken}
    assert ElementTree.parse(drawing).getroot().tag == f"{_SVG}svg"
