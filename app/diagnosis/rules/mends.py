"""Ways to change what a task waits for: commands as the command line takes them, and calls over HTTP."""

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import quote
from uuid import UUID

from app.kernel.agents import AgentType
from app.kernel.lanes import Priority
from app.kernel.namespaces import DEFAULT, split_name
from app.kernel.resources import Resources
from app.kernel.sessions import session_end
from app.llm.rules.spending import BudgetOwner, BudgetScope
from app.queue.rules.holds import Hold

# Of a job, until its workers have registered, and for what they keep for their last report.
_START_SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Mend:
    """A way to change it: what it does, and the command or the call that does it; neither for what people do."""

    text: str
    command: str | None = None
    call: str | None = None


START_LOOPS = Mend(text="start the background loops", command="convener loops")
LIST_WORKERS = Mend(text="see the workers and their last errors", command="convener workers ls", call="GET /workers")
START_WORKER = Mend(text="start another worker", command="convener workers start 1", call="POST /workers/start")
DEGRADATION = (
    Mend(text="see why, and until when", command="convener degradation get", call="GET /degradation"),
    Mend(
        text="run everything as usual for 30 minutes",
        command="convener degradation set 0 --minutes 30",
        call="PUT /degradation",
    ),
)


def shown_goal(goal_id: str | None) -> str:
    """The goal as it is shown to people."""
    return split_name(goal_id)[1] or "without a name"


def ask_why(task_id: UUID) -> Mend:
    """See why another task waits."""
    return Mend(text="see what that one waits for", command=f"convener why {task_id}", call=f"GET /tasks/{task_id}/why")


def logs(task_id: UUID) -> Mend:
    """See what its attempts have written."""
    command, call = f"convener tasks logs {task_id}", f"GET /tasks/{task_id}/logs"
    return Mend(text="see what its attempts have written", command=command, call=call)


def requeue(task_id: UUID) -> Mend:
    """Give a failed task another chance."""
    command, call = f"convener dead-letters requeue {task_id}", f"POST /dead-letters/{task_id}/requeue"
    return Mend(text="give it another chance once that is mended", command=command, call=call)


def raise_priority(task_id: UUID, priority: Priority) -> Sequence[Mend]:
    """Let it go before others, unless it does so already."""
    if priority is Priority.CRITICAL:
        return ()
    command, call = f"convener tasks change {task_id} --priority critical", f"PATCH /tasks/{task_id}"
    return (Mend(text="let it go before tasks of lower priority", command=command, call=call),)


def resume_queue(agent: AgentType) -> Mend:
    """End the pause of an agent type."""
    command, call = f"convener queues resume {agent}", f"POST /queues/{agent}/resume"
    return Mend(text="end the pause", command=command, call=call)


def revive_host(host: str) -> Sequence[Mend]:
    """Bring the workers of a host back that has gone silent."""
    text = f"look whether {host} is there, and start the loops of {host} again, which start its workers"
    return (Mend(text=text, command="convener loops"),)


def serve(agent: AgentType) -> Sequence[Mend]:
    """Bring workers for an agent type."""
    return (
        Mend(text=f"start a worker whose handlers serve {agent}", command="convener worker --handlers MODULE"),
        Mend(text="start the service with these handlers", command="convener up --handlers MODULE"),
    )


def offer(request: Resources) -> Sequence[Mend]:
    """Bring a worker that offers what a task asks for."""
    options = {"gpus": "--gpus", "memory_gb": "--memory-gb", "cores": "--cpu"}
    words = [f"{options[n]} {a:g}" if n in options else f"--resource {n}={a:g}" for n, a in request.amounts().items()]
    command = f"convener worker --handlers MODULE {' '.join(words)}"
    return (
        Mend(text="start a worker that offers it", command=command),
        Mend(text="see what the workers offer", command="convener workers ls", call="GET /workers"),
    )


def fit(needed_seconds: float, *, has_own_timeout: bool, fits_at_start: bool) -> Sequence[Mend]:
    """Let an attempt fit into the time that workers have."""
    command = "convener config set worker_pool.worker_timeout_seconds=SECONDS"
    shorter = Mend(text="let tasks without a timeout of their own take less", command=command, call="PATCH /config")
    if has_own_timeout:
        shorter = Mend(text="submit it anew with a smaller timeout_seconds", call="POST /tasks")
    if fits_at_start:
        return (shorter, START_WORKER)
    minutes = math.ceil((needed_seconds + _START_SECONDS) / 60)
    variable = f"CONVENER_BLOCK_WALLTIME_MINUTES={minutes} or more"
    text = f"give the jobs of workers a longer walltime, {variable}, and start the loops again"
    return (shorter, Mend(text=text, command="convener loops"))


def end_session(pid: int, *, awaits_standby: bool) -> Mend:
    """End what a session of the database holds."""
    return Mend(text=session_end(pid, awaits_standby=awaits_standby))


def of_hold(reason: Hold, goal_id: str | None) -> Sequence[Mend]:
    """Ways to let the tasks of a goal run again."""
    namespace, name = split_name(goal_id)
    if name is None:
        return ()
    program, query = ("convener goals", "") if namespace == DEFAULT else _within(namespace)
    goal, path = _argument(name), f"/goals/{quote(name, safe='')}"
    if reason is Hold.PAUSED:
        return (Mend(text="let it go on", command=f"{program} resume {goal}", call=f"POST {path}/resume{query}"),)
    see = Mend(text="see its limits and why", command=f"{program} get {goal}", call=f"GET {path}{query}")
    if reason is Hold.STOPPED:
        return (see,)
    extend, call = f"{program} extend --compute-budget 2h {goal}", f"POST {path}/extend{query}"
    return (see, Mend(text="raise the limit that it has reached", command=extend, call=call))


def _within(namespace: str) -> tuple[str, str]:
    """The command and the query that name a namespace, as keys of the whole service must."""
    return f"convener --namespace {namespace} goals", f"?namespace={namespace}"


def _argument(name: str) -> str:
    """A name as a shell takes it, and the command line never for an option."""
    return f"-- {shlex.quote(name)}" if name.startswith("-") else shlex.quote(name)


def of_model(name: str, condition: str) -> Sequence[Mend]:
    """Ways to bring a language model back."""
    model = _argument(name)
    ways = {
        "key_expired": "renew the key of the gateway or provider; it is tried every few seconds",
        "quota_exhausted": "add to the account at the provider; it is tried every few seconds",
    }
    see = Mend(text="see how its service stands", command=f"convener llm models get {model}")
    reset = Mend(text="try it again at once", command=f"convener llm reset {model}")
    return (*([Mend(text=ways[condition])] if condition in ways else ()), see, reset)


def of_budget(owner: BudgetOwner) -> Sequence[Mend]:
    """Ways to bring money or tokens for calls."""
    if owner.scope is BudgetScope.GOAL:
        return of_hold(Hold.BUDGET, owner.name)
    see = Mend(text="see the budgets", command="convener llm budgets ls", call="GET /llm/budgets")
    command = f"convener llm budgets set {owner.scope} {_argument(owner.name)} money_budget=10"
    call = f"PUT /llm/budgets/{owner.scope}/{quote(owner.name, safe='')}"
    return (see, Mend(text="set another budget", command=command, call=call))
