"""Settings of the processes, read once by the entry points and passed on as values.

They come from environment variables, and from a TOML file if `CONVENER_SETTINGS_FILE` names one; a secret also from a
file of its own. No file is looked for elsewhere, because a process must not depend on the directory in which it happens
to be started.
"""

import ipaddress
import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from app.kernel.database_urls import check_database_url, with_password
from app.kernel.endpoints import Endpoint, endpoint
from app.kernel.modes import Mode
from app.secrecy import close_process, take_over, wipe
from app.settings_sources import (
    SECRET_VARIABLES,
    SETTINGS_FILE,
    SettingsError,
    hide_secret_files,
    problem,
    read_file,
    read_secrets,
    variable_of,
)
from app.settings_values import (
    DeploymentName,
    HandlerTargets,
    HostAddress,
    HostNames,
    KubernetesClass,
    KubernetesClasses,
    Names,
    Networks,
    Quotas,
)
from worker_agent.variables import default_state_directory, is_link

# So long ago the year had four digits, by which partitions are compared.
MAX_DAYS = 365_000


class Settings(BaseModel):
    """Settings of the processes; each field is read from `CONVENER_<FIELD>`, else from the file under its own name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    database_password: str | None = Field(
        None, repr=False, description="password for both addresses, apart from them so that it may hold any character"
    )
    database_url: str | None = Field(
        None, validate_default=True, repr=False, description="PostgreSQL 15 or newer; the bundled one when absent"
    )
    database_direct_url: str | None = Field(
        None,
        repr=False,
        description="PostgreSQL itself, where `database_url` leads to a connection pooler such as pgbouncer",
    )
    mode: Mode | None = Field(
        None, description="the mode of a new database; `production`, or `development` under `convener up` and `demo`"
    )
    state_directory: Path = Field(
        default_factory=default_state_directory,
        validate_default=True,
        description="database, keys and logs of this machine; `~/.local/state/convener`",
    )
    postgres_bin: Path | None = Field(None, description="directory with the PostgreSQL programs")
    host: HostAddress = Field("127.0.0.1", description="address that the API listens on")
    port: int = Field(8765, ge=0, le=65535, description="port that the API listens on")
    socket: Path | None = Field(None, description="unix socket that the API listens on as well; `up` makes one")
    tls_certificate: Path | None = Field(None, description="PEM file with the API's certificate and its chain")
    tls_key: Path | None = Field(None, validate_default=True, description="PEM file with the key of the certificate")
    allow_plain_http: bool = Field(
        False, description="HTTP beyond this machine is meant: a proxy or the network itself protects it"
    )
    pool_size: int = Field(
        3, ge=0, le=1000, description="workers of this host at the start; all that it has in development; 0: none"
    )
    llm_key: str | None = Field(
        None, repr=False, description="key of the language model, which the workers of the pool get and handlers do not"
    )
    llm_key_file: Path | None = Field(None, description="file of that key, which workers read anew when it is refused")
    llm_key_command: str | None = Field(None, description="command that prints that key, run anew when it is refused")
    worker_handlers: str | None = Field(None, description="module whose HANDLERS the workers of the pool run")
    worker_handler: HandlerTargets = Field(
        (),
        description="further handlers of theirs: a JSON list, or one in the file, of `TYPE=module:function` and "
        "`TYPE=command:program with arguments`",
    )
    provisioner: Literal["local", "kubernetes", "slurm", "pbs"] = Field(
        "local",
        description="`local`: workers are processes of this host; `kubernetes`: pods of a Deployment; `slurm`, `pbs`: "
        "of jobs of a cluster",
    )
    pool_limit: int = Field(
        1000, ge=1, le=100_000, description="workers that the engine of a pool may have, which has no host to measure"
    )
    kubeconfig: Path | None = Field(
        None,
        description="kubeconfig whose current context has the Deployment of workers; the service account without one",
    )
    kubernetes_deployment: DeploymentName = Field("convener-workers", description="Deployment of the workers")
    kubernetes_classes: KubernetesClasses = Field(
        (),
        max_length=50,
        description="further Deployments, each for the tasks that belong to it: JSON, or tables in the file, of "
        "`deployment`, `agents`, what each worker offers (`cores`, `memory_gb`, `gpus`, `resources`), and `limit`",
    )
    kubernetes_namespace: str | None = Field(
        None,
        pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$",
        description="its namespace; that of the credentials if absent",
    )
    block_slots: int = Field(1, ge=1, le=1024, description="workers on each node of a block")
    block_min_nodes: int = Field(1, ge=1, le=10_000, description="nodes of the smallest block")
    block_max_nodes: int = Field(1, ge=1, le=10_000, description="nodes of the largest block")
    block_walltime_minutes: int = Field(60, ge=1, le=43_200, description="walltime of the job of a block")
    block_lead_minutes: float = Field(
        5, ge=0, le=1440, description="a block is replaced so long before its end, or earlier where jobs have to wait"
    )
    block_options: str = Field(
        "", max_length=4000, description="options of `sbatch` or `qsub`: partition or queue, account, QOS and others"
    )
    block_template: Path | None = Field(
        None, description="Jinja template of the script of a job; one with `srun` or `pbsdsh` when absent"
    )
    block_directory: Path | None = Field(
        None,
        description="directory that nodes share with this host, for keys and logs; by default in the state directory",
    )
    block_url: str | None = Field(None, description="address of the API for nodes; that of this host when absent")
    block_poll_seconds: float = Field(
        10.0, ge=0.2, le=600, description="the list of jobs is asked for no more often than this while nothing changes"
    )
    worker_gpus: int = Field(0, ge=0, le=1024, description="GPUs that each worker of the pool keeps for its tasks")
    host_name: str = Field(
        default_factory=lambda: socket.gethostname().split(".")[0] or "local",
        # It becomes part of paths, of names of workers, which have 200 characters, and of jobs. The pattern has no
        # bound: with one, the letters of all alphabets take up to 9 MiB of each process.
        pattern=r"^\w[\w.-]*$",
        max_length=100,
        description="name of this host in the pool, no other machine's; the first part of the machine's",
    )
    lease_seconds: float = Field(15.0, ge=1, le=3600, description="a lease without a heartbeat returns after this long")
    acknowledge_within_seconds: float = Field(
        5.0, ge=0.5, le=600, description="a lease that nobody acknowledges returns after this long"
    )
    heartbeat_interval_seconds: float | None = Field(
        None, ge=0.1, le=10, description="what workers are told to keep to; as the mode says when absent"
    )
    lost_after_seconds: float | None = Field(
        None, ge=0.3, le=3600, description="silence after which a worker is lost; as the mode says when absent"
    )
    max_payload_bytes: int = Field(1 << 20, ge=1024, le=10 << 20, description="of one payload, result or checkpoint")
    max_body_bytes: int = Field(
        12 << 20,
        ge=4096,
        le=12 << 20,
        description="of a task, batch, result or entry; other bodies may have 64 KiB to 1 MiB",
    )
    max_bodies_bytes: int = Field(
        256 << 20, ge=48 << 20, le=16 << 30, description="of all bodies under way; a caller may have a quarter of it"
    )
    max_queue_size: int = Field(
        10_000, ge=1, le=100_000_000, description="tasks that may wait before submits are refused"
    )
    queue_quotas: Quotas = Field(
        (0.5, 0.8, 0.95, 1.0),
        description="what low, medium, high and critical tasks, each with those below, may take up of the queue: "
        "a share up to 1, or a number of tasks",
    )
    duplicate_window_seconds: float = Field(
        0, ge=0, le=86_400, description="a task with the agent type and payload of one so recent is that one; 0: never"
    )
    queue_displaces: bool = Field(False, description="when full, move the least urgent to the dead letters instead")
    permit_seconds: float = Field(
        120, ge=1, le=3600, description="a permit for a language-model call that nobody renews is free after this long"
    )
    llm_models: Names = Field(
        (), description="language models that the API lists at its start, separated by commas; more by command"
    )
    permits_per_worker: int = Field(
        8, ge=1, le=1000, description="calls of language models that one worker may have under way at once"
    )
    stop_grace_seconds: float = Field(30.0, ge=0, le=3600, description="a stopping worker may finish its task")
    webhook_hosts: HostNames = Field((), description="hosts that the webhook may go to, separated by commas")
    webhook_secret: str = Field("", repr=False, description="key of the signature of what the webhook sends")
    webhook_url: str | None = Field(
        None, validate_default=True, repr=False, description="https address that hears of alerts; off without one"
    )
    history_days: int = Field(30, ge=1, le=MAX_DAYS, description="how long finished tasks are kept")
    events_days: int = Field(7, ge=1, le=MAX_DAYS, description="how long events are kept")
    log_level: Literal["debug", "info", "warning", "error"] | None = Field(
        None, description="`debug`, `info`, `warning` or `error`; as the mode says when absent"
    )
    log_json: bool = Field(False, description="each line of the log is a JSON object")
    log_file: Path | None = Field(None, description="the log goes there instead of stderr, and a full file to PATH.1")
    liveness_file: Path | None = Field(
        None, description="file that the loops touch every second while their duties keep pace, for health checks"
    )
    trusted_proxies: Networks = Field(
        "", description="addresses or networks of proxies, with commas between, whose X-Forwarded-For names the client"
    )
    drain_seconds: float = Field(
        0.0,
        ge=0,
        le=300,
        description="after SIGTERM the API is not ready and serves on for so long, until load balancers have seen it",
    )
    metrics_open: bool = Field(False, description="scrapers of GET /metrics need no key")

    @field_validator("*", mode="before")
    @classmethod
    def _is_no_blank_path(cls, value: object, info: ValidationInfo) -> object:
        # It would be wherever the process happens to be started, or a file there whose name nobody sees.
        is_path = cls.model_fields[str(info.field_name)].annotation in (Path, Path | None)
        if is_path and isinstance(value, str) and not value.strip():
            raise ValueError("must be a path, such as /run/convener/api.sock")
        return value

    @field_validator("kubernetes_classes", mode="after")
    @classmethod
    def _are_different(cls, classes: tuple[KubernetesClass, ...], info: ValidationInfo) -> tuple[KubernetesClass, ...]:
        names = [each.deployment for each in classes] + [str(info.data.get("kubernetes_deployment"))]
        if len(set(names)) < len(names):
            raise ValueError("each must have a deployment of its own, which is not kubernetes_deployment")
        return classes

    @field_validator("state_directory", mode="before")
    @classmethod
    def _is_named(cls, directory: object) -> object:
        # An empty path would be wherever the process happens to be started.
        return directory or default_state_directory()

    @field_validator("state_directory", mode="after")
    @classmethod
    def _is_absolute(cls, directory: Path) -> Path:
        # Others read it elsewhere: in the paths of logs, and as the owner of workers.
        return Path(os.path.realpath(directory))

    @field_validator("tls_key", mode="after")
    @classmethod
    def _completes_the_certificate(cls, key: Path | None, info: ValidationInfo) -> Path | None:
        if (key is None) != (info.data.get("tls_certificate") is None):
            raise ValueError("tls_certificate and tls_key are set together or not at all")
        return key

    @field_validator("database_url", "database_direct_url", mode="after")
    @classmethod
    def _is_postgres(cls, url: str | None, info: ValidationInfo) -> str | None:
        password = info.data.get("database_password")
        if url is not None:
            check_database_url(url)
        elif password and info.field_name == "database_url":
            raise ValueError("must be set where database_password is")
        if url is not None and info.field_name == "database_direct_url" and not info.data.get("database_url"):
            raise ValueError("says nothing without database_url")
        return with_password(url, password) if url and password else url

    @field_validator("webhook_url", mode="after")
    @classmethod
    def _is_safe(cls, url: str | None, info: ValidationInfo) -> str | None:
        # Hosts and secret are declared before the URL, because fields are validated in order and it needs both.
        if url is None and (info.data.get("webhook_secret") or info.data.get("webhook_hosts")):
            message = "must be set where webhook_secret or webhook_hosts is; to nothing where there is to be no webhook"
            raise ValueError(message)
        if url:
            endpoint(url, info.data.get("webhook_hosts", ()), info.data.get("webhook_secret", ""))
        return url

    @property
    def session_url(self) -> str | None:
        """The address of the database for whatever needs a session of its own, past any connection pooler."""
        return self.database_direct_url or self.database_url

    @property
    def addresses(self) -> list[str]:
        """Addresses of the API; the first is the one that programs of this machine use."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = f"{'http' if self.tls_certificate is None else 'https'}://{host}:{self.port}"
        return [port] if self.socket is None else [f"unix:{self.socket.absolute()}", port]

    @property
    def is_exposed(self) -> bool:
        """Whether keys cross the network in clear, and nobody has said that something else protects it."""
        try:
            is_loopback = ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            is_loopback = self.host == "localhost"
        return not (is_loopback or self.tls_certificate or self.allow_plain_http)

    @property
    def webhook(self) -> Endpoint | None:
        """The endpoint that receives alerts; None without one."""
        return endpoint(self.webhook_url, self.webhook_hosts, self.webhook_secret) if self.webhook_url else None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> "Settings":
        """Read `CONVENER_*`, and the file of `CONVENER_SETTINGS_FILE`, over which a variable wins.

        `CONVENER_<SECRET>_FILE` names a file that holds nothing but this secret. Raises SettingsError that names the
        variable, or file and key, and says what is wrong.
        """
        source = os.environ if environment is None else environment
        path = Path(source[SETTINGS_FILE]) if source.get(SETTINGS_FILE) else None
        from_file = read_file(path, cls.model_fields) if path is not None else {}
        # Unlike in the file, unknown names are no error: CONVENER_KEY and others are for commands and workers.
        from_variables = {
            name: source[variable]
            for name in cls.model_fields
            # CONVENER_PORT may come from Kubernetes, and be the address of a service named convener.
            if (variable := variable_of(name)) in source and not is_link(variable, source[variable])
        }
        from_variables |= read_secrets(source, from_variables)
        # Merged before validation, so that a variable can also replace a wrong value of the file.
        try:
            return cls.model_validate({**from_file, **from_variables})
        except ValidationError as error:
            problems = [problem(e, from_variables, path) for e in error.errors()]
            raise SettingsError("; ".join(dict.fromkeys(problems))) from None


def load_settings() -> Settings:
    """Settings of the API or the loops; prints a sentence and exits with 2 when they are not enough to run."""
    try:
        settings = take_settings()
        if settings.database_url is None:
            raise SettingsError("CONVENER_DATABASE_URL is not set; give it the URL of your PostgreSQL")
    except SettingsError as error:
        print(f"convener: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    return settings


def take_settings() -> Settings:
    """Settings of a process that stays: it closes itself, and no secret is left in its environment afterwards.

    Raises SettingsError.
    """
    close_process()
    try:
        secrets = take_over(os.environ)
    except (OSError, ValueError) as error:
        raise SettingsError(f"the secrets that were handed over cannot be read ({error})") from None
    settings = Settings.from_environment({**os.environ, **secrets})
    hide_secret_files(os.environ)
    wipe(os.environ, SECRET_VARIABLES)
    return settings


def secret_variables(values: Mapping[str, str | None]) -> dict[str, str]:
    """The variables that stand for these secret settings, those without a value left out."""
    return {variable_of(name): value for name, value in values.items() if value}
