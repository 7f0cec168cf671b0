"""The names of all variables of Convener, by which a program tells of one that is misspelt."""

import difflib
import errno
import os
import re
from collections.abc import Mapping
from pathlib import Path

_PREFIX = "CONVENER_"
# Settings of the API and the loops, of which the first line are those that may stand in files of their own.
_SETTINGS = """
    DATABASE_DIRECT_URL DATABASE_PASSWORD DATABASE_URL LLM_KEY WEBHOOK_SECRET WEBHOOK_URL
    ACKNOWLEDGE_WITHIN_SECONDS ALLOW_PLAIN_HTTP DRAIN_SECONDS DUPLICATE_WINDOW_SECONDS EVENTS_DAYS
    HEARTBEAT_INTERVAL_SECONDS
    BLOCK_DIRECTORY BLOCK_LEAD_MINUTES BLOCK_MAX_NODES BLOCK_MIN_NODES BLOCK_OPTIONS BLOCK_POLL_SECONDS BLOCK_SLOTS
    BLOCK_TEMPLATE BLOCK_URL BLOCK_WALLTIME_MINUTES KUBECONFIG KUBERNETES_CLASSES KUBERNETES_DEPLOYMENT
    KUBERNETES_NAMESPACE POOL_LIMIT PROVISIONER
    HISTORY_DAYS HOST HOST_NAME LEASE_SECONDS LIVENESS_FILE LLM_KEY_COMMAND LLM_MODELS LOG_FILE LOG_JSON LOG_LEVEL
    LOST_AFTER_SECONDS MAX_BODIES_BYTES MAX_BODY_BYTES MAX_PAYLOAD_BYTES MAX_QUEUE_SIZE METRICS_OPEN MODE
    PERMITS_PER_WORKER PERMIT_SECONDS POOL_SIZE PORT POSTGRES_BIN QUEUE_DISPLACES QUEUE_QUOTAS SOCKET STATE_DIRECTORY
    STOP_GRACE_SECONDS TLS_CERTIFICATE TLS_KEY TRUSTED_PROXIES WEBHOOK_HOSTS WORKER_GPUS
    WORKER_HANDLER WORKER_HANDLERS
"""
_FILES = """
    DATABASE_DIRECT_URL_FILE DATABASE_PASSWORD_FILE DATABASE_URL_FILE LLM_KEY_FILE WEBHOOK_SECRET_FILE WEBHOOK_URL_FILE
    SETTINGS_FILE
"""
# Of workers and commands, and of what handlers get.
_OTHERS = """
    CA_FILE KEY KEY_FILE NAMESPACE PROFILE PROXY TLS_PIN URL OWNER SECRETS_FD
    GPU_LOCKS HANDLER_HIDE HANDLER_MAX_FILE_GB HANDLER_MAX_PROCESSES HANDLER_PASS_ENV HANDLER_READABLE HANDLER_USER
    HANDLER_WRITABLE
    LLM_ATTEMPTS LLM_BETWEEN_TOKENS_SECONDS LLM_CONNECT_SECONDS LLM_FIRST_TOKEN_SECONDS LLM_MODEL LLM_TOTAL_SECONDS
    LLM_URL LOCAL_MODEL_PORT PROGRESS_FD SCHEMA_CASES TASK_ATTEMPT TASK_ID
"""
NAMES = frozenset(_PREFIX + word for word in (_SETTINGS + _FILES + _OTHERS).split())
STATE_DIRECTORY = f"{_PREFIX}STATE_DIRECTORY"
PROFILE = f"{_PREFIX}PROFILE"
KEY_FILE = f"{_PREFIX}KEY_FILE"
# Those that a command reads which only calls the service may stand alone; with others all settings are checked.
OTHER_SETTINGS = frozenset(_PREFIX + word for word in (_SETTINGS + _FILES).split()) - {STATE_DIRECTORY}
# Kubernetes, and links of Docker, put these into every container for each service whose name begins with convener.
_LINK_NAME = re.compile(
    r"CONVENER_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)
_LINK = re.compile(r"(tcp|udp|sctp)://.*:\d+")
_TESTS = f"{_PREFIX}TEST_"


def default_state_directory() -> Path:
    """The directory of `convener up` where no variable names one. Raises FileNotFoundError for who has no home."""
    try:
        return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "convener"
    except RuntimeError:
        sentence = f"this user has no home directory, so set {STATE_DIRECTORY}"
        raise FileNotFoundError(errno.ENOENT, sentence, "~") from None


def is_link(name: str, value: str) -> bool:
    """Whether a container platform has set the variable, for a service that is named like Convener."""
    return _LINK_NAME.fullmatch(name) is not None or (name.endswith("_PORT") and _LINK.fullmatch(value) is not None)


def unknown_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """A sentence for each variable that begins like ours and is none, by name."""
    strangers = sorted(
        name
        for name, value in environment.items()
        if name.startswith(_PREFIX) and name not in NAMES and not name.startswith(_TESTS) and not is_link(name, value)
    )
    return {name: f"{name} is ignored, as there is no such variable{_suggestion(name)}" for name in strangers}


def _suggestion(name: str) -> str:
    near = difflib.get_close_matches(name.removeprefix(_PREFIX), [n.removeprefix(_PREFIX) for n in NAMES], n=1)
    return f"; did you mean {_PREFIX}{near[0]}?" if near else ""
