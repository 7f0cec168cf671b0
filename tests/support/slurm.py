"""A Slurm cluster of this machine alone: slurmctld, and a slurmd for each of its nodes, on ports and paths of its own.

Debian's slurm-wlm. Nodes claim four cores each, whatever the machine has; nothing is confined, counted or
authenticated. Jobs of the partition `batch` have their nodes for themselves, those of `shared` take a core of the least
loaded one. Where it is missing a test is skipped, unless it is told that it must not be.
"""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from tests.support.ports import free_port

REQUIRED = "CONVENER_TEST_SLURM"
_START_SECONDS = 20.0
_CONFIGURATION = """\
ClusterName=convener
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
CredType=cred/none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1
SlurmdParameters=config_overrides
ReturnToService=2
SlurmdTimeout=30
KillWait=2
CompleteWait=0
MinJobAge=60
MailProg=/bin/true
MpiDefault=none
StateSaveLocation={place}/state
SlurmdSpoolDir={place}/spool_%n
SlurmctldPidFile={place}/slurmctld.pid
SlurmdPidFile={place}/slurmd_%n.pid
SlurmctldLogFile={place}/slurmctld.log
SlurmdLogFile={place}/slurmd_%n.log
{nodes}
PartitionName=batch Nodes={names} Default=YES MaxTime=INFINITE State=UP OverSubscribe=EXCLUSIVE
PartitionName=shared Nodes={names} MaxTime=INFINITE State=UP LLN=YES
"""


class SlurmCluster:
    """Processes of the cluster; `environment` is for its commands."""

    def __init__(self, place: Path, nodes: Sequence[str]) -> None:
        self.place, self.nodes = place, tuple(nodes)
        host, configuration = socket.gethostname(), place / "slurm.conf"
        lines = [f"NodeName={n} NodeHostname={host} NodeAddr=127.0.0.1 Port={free_port()} CPUs=4" for n in nodes]
        values = {"host": host, "port": free_port(), "place": place, "user": "root"}
        configuration.write_text(
            _CONFIGURATION.format(**values, nodes="\n".join(lines), names=",".join(nodes)), encoding="utf-8"
        )
        (place / "state").mkdir()
        self.environment = {**os.environ, "SLURM_CONF": str(configuration)}
        self._controller: subprocess.Popen[bytes] | None = None
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """Start it, and wait until all of its nodes are idle."""
        self._controller = self._process("slurmctld", "-D")
        for node in self.nodes:
            self.start_node(node)
        self.wait_for_nodes("idle")

    def start_node(self, node: str) -> None:
        """Start the daemon of a node."""
        (self.place / f"spool_{node}").mkdir(exist_ok=True)
        self._daemons[node] = self._process("slurmd", "-D", "-N", node)

    def kill_daemon(self, node: str) -> None:
        """Kill the daemon of a node; what runs there goes on."""
        self._daemons[node].kill()
        self._daemons[node].wait(10)

    def kill_node(self, node: str) -> None:
        """Kill the daemon of a node, and everything that runs there, as when its machine loses power."""
        self.kill_daemon(node)
        for process in self._steps(node):
            _kill_tree(process)

    def declare_down(self, node: str) -> None:
        """Let the controller take a node for down at once, which it does by itself after about half a minute."""
        assert not self.command("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test")
        self.wait_for_nodes("down", [node])

    def wait_for_nodes(self, state: str, nodes: Sequence[str] | None = None) -> None:
        """Wait until these nodes, or all, are in a state."""
        names = ",".join(nodes or self.nodes)
        deadline = time.monotonic() + _START_SECONDS
        # A star marks those that do not answer.
        while {word.rstrip("*") for word in self.command("sinfo", "-h", "-N", "-n", names, "-o", "%T").split()} != {
            state
        }:
            assert time.monotonic() < deadline, self.command("sinfo", "-N") + self.log()
            time.sleep(0.1)

    def command(self, *words: str) -> str:
        """What a command of Slurm prints; errors as well."""
        done = subprocess.run(words, env=self.environment, capture_output=True, text=True, timeout=30)
        return done.stdout + done.stderr

    def log(self) -> str:
        """The end of the controller's log."""
        return (self.place / "slurmctld.log").read_text(errors="replace")[-4000:]

    def stop(self) -> None:
        """End all jobs and daemons."""
        if self._controller is not None and self._controller.poll() is None:
            self.command("scancel", "--full", "--user=root")
        for node in self._daemons:
            self.kill_node(node)
        if self._controller is not None:
            _kill_tree(self._controller.pid)
            self._controller.wait(10)

    def _process(self, *words: str) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            words,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _steps(self, node: str) -> list[int]:
        """The processes that run steps of jobs on a node, which outlive its daemon: they write into its log."""
        log = str(self.place / f"slurmd_{node}.log")
        steps = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                if process.name().startswith("slurmstepd") and any(f.path == log for f in process.open_files()):
                    steps.append(process.pid)
        return steps


def _kill_tree(pid: int) -> None:
    with suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)
        for process in [parent, *parent.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)


@contextmanager
def slurm_cluster() -> Iterator[SlurmCluster]:
    """A running cluster of two nodes."""
    if missing := _missing():
        assert not os.environ.get(REQUIRED), f"{missing}, and these tests must not be skipped"
        pytest.skip(f"{missing} (Debian: apt-get install slurm-wlm)")
    with tempfile.TemporaryDirectory(prefix="slurm-") as place:
        cluster = SlurmCluster(Path(place), ("n1", "n2"))
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()


def _missing() -> str:
    programs = ("slurmctld", "slurmd", "sbatch", "squeue", "scancel", "sinfo", "srun")
    missing = [name for name in programs if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None]
    if missing:
        return f"{', '.join(missing)} missing"
    return "" if os.geteuid() == 0 else "a cluster of Slurm on one machine needs root"
