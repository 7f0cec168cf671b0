"""Entry point of `convener-worker` and `python -m worker_agent`."""

import signal
import sys

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until it is taken: Ctrl-C within the start ends it without a word

from worker_agent.kernel_calls import PR_SET_DUMPABLE, prctl

if sys.platform == "linux":
    # Before the other imports, which take a while: a key may be in the environment meanwhile.
    prctl(PR_SET_DUMPABLE, 0)

import logging
import os

from worker_agent.actions import Exit, ExitCode
from worker_agent.broken_pipes import ending_with_the_reader
from worker_agent.daemon import Daemon, DaemonSettings
from worker_agent.log_lines import printable, set_up_logging
from worker_agent.options import read_options, read_slots
from worker_agent.slots import run as run_slots
from worker_agent.tracing.exporting import start_tracing
from worker_agent.variables import unknown_variables

_LAST_TRACES_SECONDS = 0.5
_ADVICE = {
    ExitCode.KEY_REFUSED: "The control plane refused the key. Put the key of a pool, as printed when it was created, "
    "into CONVENER_KEY, or make a new one with `convener key create pool`. The key of a launch serves once.",
    ExitCode.SUPERSEDED: "Another worker has taken this one's place: a replacement, or one with the same name. "
    "Give each worker its own --name.",
    ExitCode.USAGE: "The control plane did not accept this registration. Check --url and the options.",
}


def main() -> None:
    """Run the worker; raises SystemExit with one of the documented exit codes."""
    with ending_with_the_reader():
        slots, options = read_slots(sys.argv[1:], os.environ)
    if slots:
        set_up_logging(options.log_level, as_json=options.json_logs, file=None, quiet=())
        raise SystemExit(run_slots(slots, sys.argv[1:], options.grace))
    with ending_with_the_reader():
        settings, options = read_options(sys.argv[1:], os.environ)
    try:
        set_up_logging(options.log_level, as_json=options.json_logs, file=options.log_file, quiet=("httpx", "httpcore"))
    except OSError as error:
        print(f"convener-worker: cannot log to {options.log_file} ({error.strerror})", file=sys.stderr)
        raise SystemExit(ExitCode.USAGE) from None
    for sentence in unknown_variables(os.environ).values():
        logging.getLogger("worker_agent").warning(sentence)
    _log_confinement(settings)
    tracing = start_tracing("convener-worker")
    try:
        outcome = _serve(Daemon(settings, tracing))
    finally:
        if tracing is not None:
            tracing.close_within(_LAST_TRACES_SECONDS)
    # A launched worker leaves its restart to its launcher, as the key of each launch serves once.
    if outcome.restart and not settings.is_launched:
        os.execv(sys.executable, sys.orig_argv)  # noqa: S606 - the very command that started us
    if outcome.code in _ADVICE:
        why = f"\n({printable(outcome.message)})" if outcome.message else ""
        print(f"convener-worker: {_ADVICE[outcome.code]}{why}", file=sys.stderr)
    raise SystemExit(outcome.code)


def _log_confinement(settings: DaemonSettings) -> None:
    log = logging.getLogger("worker_agent")
    user = settings.confinement.user
    fields = {"method": settings.confinement.method.value, "user": os.getuid() if user is None else user[0]}
    log.info("handlers are confined", extra={"fields": fields})
    for protection in settings.protections:
        if not protection.holds:
            fields = {"protection": protection.name, "why": protection.why, "what_to_do": protection.remedy}
            log.warning("a protection from handlers does not hold", extra={"fields": fields})


def _serve(daemon: Daemon) -> Exit:
    try:
        return daemon.run()
    except Exception:
        logging.getLogger("worker_agent").exception("crashed")
        raise SystemExit(ExitCode.CRASHED) from None


if __name__ == "__main__":
    main()
