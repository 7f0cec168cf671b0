"""The checks of language models: services that answer nobody, and keys that are about to expire."""

from collections.abc import Iterable, Mapping

from app.health.rules.finding import AlertKey, AlertRule, Symptom
from app.health.rules.snapshot import CheckPolicy, Grade, Observations
from app.health.rules.symptoms import symptom_of
from app.llm.rules.conditions import ServiceState

_DAY = 86_400.0
_SERVICE_STATES = {
    ServiceState.KEY_EXPIRED: (
        "the service of the language model {model} refuses the key",
        "renew it where CONVENER_LLM_KEY_FILE or CONVENER_LLM_KEY_COMMAND takes it from; tasks wait for it unharmed",
    ),
    ServiceState.QUOTA_EXHAUSTED: (
        "the account of the language model {model} has nothing left",
        "raise the quota or pay; tasks that need the model wait unharmed and go on by themselves",
    ),
    ServiceState.MAINTENANCE: (
        "the service of the language model {model} is under maintenance",
        "tasks that need the model wait unharmed and go on by themselves",
    ),
    ServiceState.LOADING: (
        "the language model {model} is being loaded",
        "tasks that need the model wait unharmed and go on by themselves",
    ),
}
_FAILING = (
    "calls of the language model {model} keep failing, so its circuit breaker is open",
    "look at the provider or gateway; other models of the chain and cached answers stand in meanwhile",
)


def breaker_open(observations: Observations, policy: CheckPolicy) -> Iterable[Symptom] | None:
    """A language model fails so often, or so surely, that nobody calls it."""
    if observations.models is None:
        return None
    # Never critical: other models of the chain take over.
    return [
        symptom
        for model, trouble in observations.models.items()
        for message, advice in [_SERVICE_STATES.get(trouble.state, _FAILING)]
        for symptom in symptom_of(
            Grade.DEGRADED if trouble.is_out_of_order else Grade.WELL,
            AlertKey(rule=AlertRule.BREAKER_OPEN, subject=model),
            message=message.format(model=model)
            + (f" until {trouble.until:%Y-%m-%d %H:%M} UTC" if trouble.until else ""),
            advice=advice,
        )
    ]


def goal_budget(observations: Observations, policy: CheckPolicy) -> Iterable[Symptom] | None:
    """The money or the tokens of a research goal are nearly used up, or are."""
    return _budgets(
        AlertRule.GOAL_BUDGET,
        observations.budgets,
        policy,
        owner="the research goal {subject}",
        consequence="its tasks are held, and its calls refused",
        advice="`convener goals extend` raises --money-budget or --token-budget, after which it goes on",
    )


def llm_budget(observations: Observations, policy: CheckPolicy) -> Iterable[Symptom] | None:
    """The money or the tokens of an agent type or a key are nearly used up, or are."""
    return _budgets(
        AlertRule.LLM_BUDGET,
        observations.llm_budgets,
        policy,
        owner="the {subject}",
        consequence="its calls are refused, and tasks that need them wait unharmed",
        advice="`convener llm budgets ls` shows until when; `convener llm budgets set` raises it, and they go on",
    )


def _budgets(
    rule: AlertRule,
    shares: Mapping[str, float] | None,
    policy: CheckPolicy,
    *,
    owner: str,
    consequence: str,
    advice: str,
) -> Iterable[Symptom] | None:
    if shares is None:
        return None
    symptoms: list[Symptom] = []
    for subject, share in shares.items():
        # From the very threshold on: at the whole of it nothing more is spent.
        bounds = policy.goal_budget
        grade = (
            Grade.CRITICAL if share >= bounds.critical else Grade.DEGRADED if share >= bounds.degraded else Grade.WELL
        )
        held = f"; {consequence}" if grade is Grade.CRITICAL else ""
        whose = owner.format(subject=subject)
        symptoms += symptom_of(
            grade,
            AlertKey(rule=rule, subject=subject),
            message=f"{100 * share:.0f} % of the money or tokens of {whose} are used{held}",
            advice=advice,
            facts={"share": share},
        )
    return symptoms


def key_expiring(observations: Observations, policy: CheckPolicy) -> Iterable[Symptom] | None:
    """The key of a language model is about to expire, and everything that needs it will wait."""
    if observations.models is None:
        return None
    symptoms: list[Symptom] = []
    for model, trouble in observations.models.items():
        left = trouble.key_seconds_left
        if left is None or left > policy.key_days * _DAY:
            continue
        whose = f", says {trouble.key_caller}" if trouble.key_caller else ""
        when = "has expired" if left <= 0 else f"expires in {left / 3600:,.1f} h"
        symptoms += symptom_of(
            Grade.CRITICAL if left <= policy.key_hours * 3600 else Grade.DEGRADED,
            AlertKey(rule=AlertRule.KEY_EXPIRING, subject=model),
            message=f"the key of the language model {model} {when}{whose}",
            advice="renew it where CONVENER_LLM_KEY_FILE or CONVENER_LLM_KEY_COMMAND takes it from; it is read anew",
        )
    return symptoms
