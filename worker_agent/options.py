"""Reads the command line and the environment into the daemon's settings."""

import argparse
import json
import os
import platform
import socket
import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NoReturn

from worker_agent import __version__
from worker_agent.capacity import cpu_cores, memory_gb
from worker_agent.child_process import ResourceLimits
from worker_agent.connections.clients import check_address
from worker_agent.connections.trust import Trust, read_trust
from worker_agent.daemon import DaemonSettings, usable_key
from worker_agent.gpus import GpuKeeper, NoGpus, keep_gpus
from worker_agent.handler_options import add_handler_options, arguments_from_variables, read_rules
from worker_agent.handlers import Handler, collect_handlers, parse_handler
from worker_agent.llm.settings import read_settings
from worker_agent.probing import Probe, UnusableHandler, probe
from worker_agent.protections import as_json, as_text, determine
from worker_agent.slots import MAX_SLOTS, Slot, divide
from worker_agent.storable_text import storable_message
from worker_agent.wire import AGENT_TYPES, JsonObject

_MAX_SECONDS_LEFT = 366 * 86_400
_EPILOG = """\
environment:
  CONVENER_URL           address of the control plane, when --url is not given: https://host:8765, unix:/path, or
                         http:// on this machine; or several with commas, such as a relay's and then its own
  CONVENER_CA_FILE, CONVENER_TLS_PIN, CONVENER_ALLOW_PLAIN_HTTP
                         --ca-file, --pin (several with commas) and --allow-plain-http
  CONVENER_PROXY         proxy on the way to the control plane; HTTPS_PROXY and others are ignored
  CONVENER_KEY           the pool key (or --key-file); never an argument, because arguments can be read by everybody
  CONVENER_LLM_URL       an OpenAI-compatible gateway, such as http://127.0.0.1:44497/v1; handlers reach it by
                         `task.llm`, or by any OpenAI client, since OPENAI_BASE_URL and OPENAI_API_KEY are set for them
  CONVENER_LLM_MODELS    models to ask, the first choice first, separated by commas
  CONVENER_LLM_KEY       the gateway's key; handlers never see it. CONVENER_LLM_KEY_FILE or _KEY_COMMAND: where it
                         is read anew when it is refused
  CONVENER_GPU_LOCKS     directory of the locks by which the workers of a host keep their GPUs apart, which containers
                         have to share (default: /run/lock, or /tmp where that cannot be written)
  CONVENER_LOG_LEVEL, CONVENER_LOG_JSON, CONVENER_LOG_FILE
                         --log-level, --json-logs (true), --log-file

exit codes:
  0  drained or stopped       3  the key was refused
  1  crashed (a bug)          4  another worker has taken this place
  2  wrong usage

examples:
  convener-worker --url http://127.0.0.1:8765 --handlers my_agents
  convener-worker --url http://127.0.0.1:8765 --handler generation=my_agents:generate --capabilities generation
  convener-worker --url https://lab:8765 --ca-file ca.pem --key-file pool.key --handlers my_agents
  convener-worker --url http://127.0.0.1:8770,https://lab:8765 --handlers my_agents
                         through the relay of this host, and without it when it is away
  convener-worker --handlers my_agents --slots 4 --gpus all --name lab1
                         four workers with a quarter of this machine each, and with GPUs of their own
  convener-worker --handler ranking=command:'./rank --fast' --memory-gb 4 --cpu 2 --labels site=lab1
"""


def read_options(arguments: Sequence[str], environment: Mapping[str, str]) -> tuple[DaemonSettings, argparse.Namespace]:
    """Parse both; raises SystemExit(2) with a message when they are invalid, SystemExit(0) for --help and --version."""
    parser, options = _parse(arguments, environment)
    try:
        if options.check_isolation:
            protections = determine(probe(read_rules(options, environment)))
            answer = as_json(protections) if options.output == "json" else as_text(protections)
        elif options.check_handlers:
            handlers, _ = _handlers(options, _capabilities(options.capabilities), environment)
            answer = f"the handlers load, and serve {', '.join(sorted(handlers))}"
        else:
            return _settings(options, {**environment, **_handed_over(options.secrets_fd)}), options
    except (UnusableHandler, ValueError, OSError) as error:
        parser.error(str(error))
    print(answer)
    raise SystemExit(0)


def read_slots(arguments: Sequence[str], environment: Mapping[str, str]) -> tuple[Sequence[Slot], argparse.Namespace]:
    """The slots that this host is divided into, none where it is to be one worker; raises SystemExit(2) if invalid."""
    parser, options = _parse(arguments, environment)
    if options.slots == 1 or options.check_isolation or options.check_handlers:
        return (), options
    try:
        if not 1 < options.slots <= MAX_SLOTS:
            raise ValueError(f"--slots must be from 1 to {MAX_SLOTS}")
        return divide(options, _limits(options), _resources(options.resource), environment), options
    except ValueError as error:
        parser.error(str(error))


def _parse(
    arguments: Sequence[str], environment: Mapping[str, str]
) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = _parser()
    words = [*_log_arguments(environment), *arguments_from_variables(environment), *arguments]
    return parser, parser.parse_args(words)


def _log_arguments(environment: Mapping[str, str]) -> list[str]:
    """The variables of the service that are meant for its workers as well."""
    level, file = environment.get("CONVENER_LOG_LEVEL"), environment.get("CONVENER_LOG_FILE")
    is_json = environment.get("CONVENER_LOG_JSON", "").strip().lower() in ("1", "true", "yes", "on", "t", "y")
    arguments = [f"--log-level={level}"] if level else []
    return arguments + ([f"--log-file={file}"] if file else []) + (["--json-logs"] if is_json else [])


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Exit with 2 and the message instead of all options; as JSON where the answer would have been."""
        hint = f"`{self.prog} --help` lists the options"
        text = f"{hint}\n{self.prog}: error: {message}"
        if _asks_for_json(sys.argv):
            text = json.dumps({"error": message, "exit_code": 2, "details": [], "hint": hint})
        self.exit(2, text + "\n")


def _asks_for_json(words: Sequence[str]) -> bool:
    is_pair = any(name in ("-o", "--output") and value == "json" for name, value in pairwise(words))
    return is_pair or not {"-ojson", "--output=json"}.isdisjoint(words)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="convener-worker",
        description="Leases tasks from a Convener control plane and runs each in a process of its own.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=_EPILOG,
    )
    add = parser.add_argument
    add("--url", help="address of the control plane, or several with commas, tried in order (default: $CONVENER_URL)")
    add("--ca-file", metavar="PATH", help="authorities that vouch for the control plane (default: the system's)")
    add("--pin", metavar="sha256:HEX", help="digest of the control plane's public key, instead of an authority")
    add("--allow-plain-http", action="store_true", help="also to another machine: the network itself is protected")
    add("--name", help="unique name; a name that is used again takes over from its former bearer (default: host-pid)")
    add("--capabilities", metavar="TYPE,...", help="agent types to serve (default: all that have a handler)")
    add(
        "--handler",
        action="append",
        default=[],
        metavar="TYPE=TARGET",
        help="module:function or command:'program args'",
    )
    add("--handlers", action="append", default=[], metavar="MODULE", help="a module with HANDLERS = {type: function}")
    add("--memory-gb", type=float, metavar="GIB", help="memory that a handler may use (default: all of this machine)")
    add("--cpu", type=float, metavar="CORES", help="cores that a handler may use (default: all of this machine)")
    add(
        "--gpus",
        type=_gpu_count,
        default=0,
        metavar="COUNT",
        help="GPUs that its task may ask for, kept from all other workers of this host; all: those that are free",
    )
    add(
        "--resource",
        action="append",
        default=[],
        metavar="NAME=COUNT",
        help="what else its task may ask for: an instrument, a licence of this host",
    )
    add(
        "--slots",
        type=int,
        default=1,
        metavar="COUNT",
        help="workers to run, called NAME-0, NAME-1, ...: each has its share of --cpu, --memory-gb, --gpus and "
        "--resource, and its own devices; a log goes to PATH-0, PATH-1, ... (default: 1, which is called NAME)",
    )
    add("--labels", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="labels to register with")
    add("--grace", type=float, default=25.0, metavar="SECONDS", help="for the running task after a stop (default: 25)")
    add(
        "--seconds-left",
        type=float,
        metavar="SECONDS",
        help="until whatever this worker is part of ends, as a job of a cluster at its walltime: it gets no task that "
        "could last longer, and stops before (default: it has no end)",
    )
    add(
        "--key-file",
        type=Path,
        metavar="PATH",
        help="file with the pool key, read anew for each registration (default: $CONVENER_KEY)",
    )
    add(
        "--check-isolation",
        action="store_true",
        help="say what protects the service from handlers",
    )
    add("--check-handlers", action="store_true", help="load the handlers as for tasks, and say what they serve")
    add("-o", "--output", choices=["text", "json"], default="text", help="of --check-isolation")
    add(
        "--secrets-fd",
        type=int,
        metavar="N",
        help="descriptor from which CONVENER_KEY and CONVENER_LLM_KEY are read as one JSON object, so that they are in "
        "no environment",
    )
    add(
        "--launched-as", metavar="MARK", help="mark by which whoever started this worker, and starts the next, knows it"
    )
    add("--log-level", default="info", choices=["debug", "info", "warning", "error"])
    add("--json-logs", action="store_true", help="one JSON object per log line")
    add("--log-file", type=Path, metavar="PATH", help="log there, not to stderr; a full one is kept as PATH.1")
    add("--version", action="version", version=f"convener-worker {__version__}")
    add_handler_options(parser)
    return parser


def _settings(options: argparse.Namespace, environment: Mapping[str, str]) -> DaemonSettings:
    trust = _trust(options, environment)
    url, pool_key = _url(options, environment, trust), _pool_key(options, environment)
    if options.seconds_left is not None and not 0 <= options.seconds_left < _MAX_SECONDS_LEFT:
        raise ValueError(f"--seconds-left must be from 0 to {_MAX_SECONDS_LEFT}")
    limits = _limits(options)
    agent_types, not_ready_reason = _capabilities(options.capabilities), None
    try:
        handlers, outcome = _handlers(options, agent_types, environment)
    except UnusableHandler as error:
        if options.launched_as is None:
            raise
        # Nobody reads what a launched worker prints, so it registers and reports why it cannot work.
        not_ready_reason = storable_message(f"the handlers cannot be used: {error}")
        handlers, outcome = {}, Probe(confinement=read_rules(options, environment), refusals={}, attempts={})
    keeper = GpuKeeper()
    try:
        keeper = keep_gpus(options.gpus, environment)
    except NoGpus as error:
        if options.launched_as is None:
            raise
        not_ready_reason = not_ready_reason or storable_message(str(error))
    capabilities = sorted(handlers, key=AGENT_TYPES.index) or agent_types or list(AGENT_TYPES)
    return DaemonSettings(
        url=url,
        trust=trust,
        pool_key=pool_key,
        key_file=options.key_file,
        profile=_profile(options, limits, capabilities, len(keeper.gpus)),
        gpus=keeper,
        is_launched=options.launched_as is not None,
        handlers=handlers,
        limits=limits,
        not_ready_reason=not_ready_reason,
        confinement=outcome.confinement,
        protections=() if not_ready_reason else determine(outcome),
        grace_seconds=max(0.0, options.grace),
        seconds_left=options.seconds_left,
        language_model=read_settings(environment),
    )


def _trust(options: argparse.Namespace, environment: Mapping[str, str]) -> Trust:
    chosen = {"CONVENER_CA_FILE": options.ca_file, "CONVENER_TLS_PIN": options.pin}
    chosen["CONVENER_ALLOW_PLAIN_HTTP"] = "true" if options.allow_plain_http else None
    return read_trust({**environment, **{name: value for name, value in chosen.items() if value is not None}})


def _url(options: argparse.Namespace, environment: Mapping[str, str], trust: Trust) -> str:
    address = options.url or environment.get("CONVENER_URL")
    if not address:
        raise ValueError("say where the control plane is: give --url, or set CONVENER_URL")
    try:
        return check_address(address, trust)
    except ValueError as error:
        raise ValueError(f"--url (or CONVENER_URL): {error}") from None


def _handed_over(descriptor: int | None) -> dict[str, str]:
    """The secrets that whoever started this worker has written into a pipe. Raises ValueError, OSError."""
    if descriptor is None:
        return {}
    # Closed at once: no handler inherits it.
    with os.fdopen(descriptor, encoding="utf-8") as pipe:
        secrets = json.loads(pipe.read())
    if not isinstance(secrets, dict) or not all(isinstance(value, str) for value in secrets.values()):
        raise ValueError("--secrets-fd must give a JSON object of texts")
    return secrets


def _pool_key(options: argparse.Namespace, environment: Mapping[str, str]) -> str:
    return usable_key(environment.get("CONVENER_KEY", "") if options.key_file is None else options.key_file.read_text())


def _limits(options: argparse.Namespace) -> ResourceLimits:
    cores = cpu_cores() if options.cpu is None else options.cpu
    memory = memory_gb() if options.memory_gb is None else options.memory_gb
    if not (0 < cores < 10_000 and 0 < memory < 1_000_000):
        raise ValueError("--cpu and --memory-gb must be positive")
    return ResourceLimits(memory_gb=memory, cpu_cores=cores)


def _capabilities(text: str | None) -> list[str] | None:
    if text is None:
        return None
    agent_types = [word.strip() for word in text.split(",") if word.strip()]
    unknown = [word for word in agent_types if word not in AGENT_TYPES]
    if unknown or not agent_types:
        raise ValueError(f"--capabilities {text!r}: choose from {', '.join(AGENT_TYPES)}")
    return agent_types


def _handlers(
    options: argparse.Namespace, agent_types: list[str] | None, environment: Mapping[str, str]
) -> tuple[dict[str, Handler], Probe]:
    explicit = dict(map(parse_handler, options.handler))
    programs = [program for handler in explicit.values() for program in handler.files()]
    handlers, outcome = collect_handlers(explicit, options.handlers, read_rules(options, environment, programs))
    unserved_types = [agent_type for agent_type in agent_types or [] if agent_type not in handlers]
    if unserved_types or not handlers:
        raise UnusableHandler(
            f"no handler for {', '.join(unserved_types) or 'any agent type'}: give --handler or --handlers"
        )
    return {agent_type: handlers[agent_type] for agent_type in agent_types or handlers}, outcome


def _labels(words: Sequence[str]) -> dict[str, str]:
    pairs = [word.partition("=") for word in words]
    if any(not key or not equals for key, equals, _ in pairs):
        raise ValueError("--labels are written KEY=VALUE")
    return {key: value for key, _, value in pairs}


def _profile(options: argparse.Namespace, limits: ResourceLimits, capabilities: list[str], gpus: int) -> JsonObject:
    host = socket.gethostname()
    profile: JsonObject = {
        "name": options.name or f"{host}-{os.getpid()}",
        "host": host,
        "pid": os.getpid(),
        "capabilities": capabilities,
        "labels": {"python": platform.python_version(), **_labels(options.labels)},
        "version": __version__,
        "memory_gb": limits.memory_gb,
        "cpu_cores": limits.cpu_cores,
    }
    # A control plane that knows nothing of these accepts a worker that offers none.
    named = _resources(options.resource)
    return profile | ({"resources": named} if named else {}) | ({"gpus": gpus} if gpus else {})


def _gpu_count(word: str) -> int | None:
    """The number of GPUs; None for all."""
    if word != "all" and not word.isdecimal():
        raise argparse.ArgumentTypeError(f"{word} is neither a number of GPUs nor all")
    return None if word == "all" else int(word)


def _resources(words: Sequence[str]) -> dict[str, int]:
    pairs = [word.partition("=") for word in words]
    if any(not name or not (count or "1").isdecimal() for name, _, count in pairs):
        raise ValueError("--resource is written NAME, or NAME=COUNT with a whole number")
    amounts = {name: int(count or 1) for name, _, count in pairs}
    # A slot whose share is none offers none.
    return {name: amount for name, amount in amounts.items() if amount}
