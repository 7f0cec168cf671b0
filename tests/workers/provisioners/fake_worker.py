"""A stand-in for the worker daemon: a package that `python -m worker_agent` finds first, and what it is told to do."""

from pathlib import Path

_PROGRAM = """
import os, signal, subprocess, sys, time

how = os.environ["FAKE_WORKER"]
fd = [word.partition("=")[2] for word in sys.argv if word.startswith("--secrets-fd=")]
if fd:
    with os.fdopen(int(fd[0])) as pipe, open(os.environ["FAKE_SECRETS"], "w") as file:
        file.write(pipe.read())
sys.stdout.write(f"hello {[word for word in sys.argv[1:] if 'secrets-fd' not in word]}\\n")
sys.stdout.flush()
if how == "exit":
    print("No module named 'nowhere', verysecret of the model, cvn_id_hidden", file=sys.stderr, flush=True)
    sys.exit(7)
if how == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if how == "parent":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    # A process group of its own, as a task has one, that ignores a polite request.
    ignore = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    child = subprocess.Popen([sys.executable, "-c", ignore], process_group=0)
    with open(os.environ["FAKE_CHILDREN"], "w") as file:
        file.write(str(child.pid))
with open(os.environ["FAKE_READY"], "a") as file:
    file.write(f"{os.getpid()}\\n")
time.sleep(600)
"""


def install(directory: Path) -> dict[str, str]:
    """Write the package; returns the environment in which it is found."""
    package = directory / "stand_in" / "worker_agent"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(_PROGRAM)
    return {
        "PYTHONPATH": str(package.parent),
        "PYTHONSAFEPATH": "1",
        "FAKE_READY": str(directory / "ready"),
        "FAKE_SECRETS": str(directory / "secrets"),
        "FAKE_CHILDREN": str(directory / "children"),
        "FAKE_WORKER": "obey",
    }
