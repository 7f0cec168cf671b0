"""Tables of workers, replacements, hosts, keys, processes of the API, and the turns of background duties."""

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Float,
    Identity,
    Index,
    Integer,
    LargeBinary,
    Table,
    Text,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, UUID

from app.db.columns import metadata, moment, one_of
from app.kernel.access import Role
from app.kernel.states import LIVE_STATES, WorkerState

# Of a worker that is not over yet; with an alias, as `w.{LIVE}`.
LIVE = "state IN ({})".format(", ".join(f"'{state}'" for state in WorkerState if state in LIVE_STATES))

workers = Table(
    "workers",
    metadata,
    Column("id", UUID, primary_key=True),
    Column("name", Text, nullable=False),
    Column("incarnation", Integer, nullable=False),
    Column("state", Text, nullable=False),
    Column("provisioner", Text, comment="null for a worker that somebody else started"),
    Column("slot", Integer),
    Column("host", Text),
    Column("pid", Integer),
    Column("registered_by", Text, comment="id of the key that was shown"),
    Column("request_id", UUID, comment="of its registration, which is repeated where the answer was lost"),
    Column("lost_after_seconds", Float, comment="of silence, as it was told when it registered"),
    Column("handle", JSONB, comment="what the provisioner needs to find the process again"),
    Column("capabilities", ARRAY(Text), nullable=False),
    Column("labels", JSONB, nullable=False),
    Column("version", Text),
    Column("memory_gb", Float),
    Column("cpu_cores", Float),
    Column("gpus", Integer, comment="that it offers to a task"),
    Column("resources", JSONB, comment="others that it offers, by name"),
    Column("directive", Text),
    Column("directive_reason", Text),
    Column("cpu_percent", Float),
    Column("memory_mb", Float),
    Column("recent_errors", JSONB),
    Column("not_ready_reason", Text, comment="why its last report has not passed, while it is starting"),
    moment("ends_at", comment="whatever it is part of ends then, as a job at its walltime; null: no end is known"),
    Column("assigned_agent", Text, comment="what it is to prefer"),
    Column("assigned_memory_gb", Float),
    Column("assigned_cpu_cores", Float),
    Column("assigned_compute_seconds", Float),
    Column("ended_reason", Text),
    moment("requested_at", nullable=False, server_default=func.now()),
    moment("launched_at"),
    moment("started_at"),
    moment("registered_at"),
    moment("first_beat_at"),
    moment("last_seen_at"),
    moment("ended_at"),
    one_of("state", WorkerState),
    # Heartbeats touch no indexed column, so with room on the page they are cheap heap-only updates.
    postgresql_with={"fillfactor": "50", "autovacuum_vacuum_scale_factor": "0", "autovacuum_vacuum_threshold": "500"},
)
Index("workers_ended", workers.c.ended_at, postgresql_where=text("ended_at IS NOT NULL"))
Index("workers_incarnation", workers.c.name, workers.c.incarnation, unique=True)
Index("workers_live_name", workers.c.name, unique=True, postgresql_where=text(LIVE))
# Recent deaths are counted every two seconds, however many ended workers are stored.
Index("workers_died", workers.c.ended_at, postgresql_where=text("state IN ('lost', 'failed')"))

replacements = Table(
    "replacements",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("lost_worker_id", UUID, nullable=False, unique=True),
    Column("worker_id", UUID, unique=True),
    Column("slot", Integer, nullable=False),
    Column("worker_name", Text, nullable=False),
    Column("cause", Text, nullable=False),
    moment("detected_at", nullable=False, server_default=func.now()),
    moment("requested_at"),
    moment("started_at"),
    moment("registered_at"),
    moment("first_lease_at"),
    moment("closed_at"),
    Column("closed_reason", Text, comment="why there will be none"),
)
Index("replacements_open", replacements.c.slot, postgresql_where=text("worker_id IS NULL AND closed_at IS NULL"))

# Machines on which a provisioner starts workers, and pools whose members an engine starts; each is reported regularly,
# with the number that it is to keep.
hosts = Table(
    "hosts",
    metadata,
    Column("provisioner", Text, primary_key=True),
    Column("host", Text, primary_key=True),
    Column("size", Integer, nullable=False, comment="workers that it is to keep running"),
    Column("usual_size", Integer, nullable=False, comment="its setting: where it starts, or stays"),
    Column("extra", Integer, nullable=False, server_default="0", comment="workers that people started beyond that"),
    Column("memory_gb", Float, nullable=False),
    Column("memory_used_gb", Float, nullable=False),
    Column("cpu_cores", Float, nullable=False),
    Column("cpu_share", Float, comment="of all its cores, null until measured"),
    Column("max_size", Integer, comment="members that its engine may keep; null: a machine, which is measured"),
    Column("block_size", Integer, nullable=False, server_default="1", comment="members that come and go together"),
    Column("member_waits", JSONB, comment="why members of an engine do not come"),
    Column("awaited", JSONB, comment="members of an engine that have not registered, by name: when they were made"),
    Column("dismissed", ARRAY(Text), nullable=False, server_default="{}", comment="members that its engine removes"),
    Column("serves", JSONB, comment="agent types and offer of a class of workers; null: the usual pool"),
    moment("scaling_until", comment="until when a process that asks its engine for another size is left alone"),
    moment("seen_at", nullable=False),
)

keys = Table(
    "keys",
    metadata,
    Column("id", Text, primary_key=True),
    Column("role", Text, nullable=False),
    Column("label", Text, nullable=False),
    Column("secret_hash", LargeBinary, nullable=False),
    Column("worker_id", UUID),
    Column("withheld", ARRAY(Text), nullable=False, server_default="{}", comment="scopes of the role that it lacks"),
    Column("namespace", Text, server_default="default", comment="null: of the whole service"),
    Column("launches", UUID, comment="the requested worker that this key registers, once"),
    Column("uses_left", Integer, comment="workers that it may still register; null: any number"),
    Column("former_hash", LargeBinary, comment="of the secret before the last rotation"),
    moment("created_at", nullable=False, server_default=func.now()),
    moment("revoked_at"),
    moment("expires_at"),
    moment("rotated_at"),
    moment("former_expires_at"),
    moment("last_used_at", comment="right within a minute or so"),
    one_of("role", Role),
    CheckConstraint("(role = 'worker') = (worker_id IS NOT NULL)", name="worker"),
    CheckConstraint("uses_left >= 0", name="uses_left"),
    Index("keys_worker", "worker_id"),
    # Tells whether there is any namespace but `default`, at each look at a key.
    Index("keys_namespace", "namespace", postgresql_where=text("namespace <> 'default'")),
    Index("keys_changed", text("greatest(revoked_at, rotated_at)")),
)

api_processes = Table(
    "api_processes",
    metadata,
    Column("id", UUID, primary_key=True),
    moment("began_at", nullable=False),
    moment("present_since", nullable=False, comment="without an absence"),
    moment("seen_at", nullable=False),
    Column("backend", Integer, nullable=False, comment="pid of its last session at the server"),
    postgresql_with={"fillfactor": "50"},
)

# A background duty is leased like a task: whoever locks its row does the turn.
loop_ticks = Table(
    "loop_ticks",
    metadata,
    Column("duty", Text, primary_key=True),
    moment("last_run_at"),
    Column("held_back", Boolean, nullable=False, server_default=text("false")),
    Column("runs", BigInteger, nullable=False, server_default="0"),
    Column("result", JSONB),
    Column("every_seconds", Float, comment="between two turns; null when the duty has no fixed pace"),
)
