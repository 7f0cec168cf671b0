"""The alert rules for Prometheus: well-formed, on metrics that there are, with the thresholds of the service."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer.main
from prometheus_client import CollectorRegistry
from ruamel.yaml import YAML
from typer._click.exceptions import UsageError

from app.cli import commands
from app.health.api.prometheus import MetricsPage
from app.health.rules.alerts import AlertPolicy
from app.health.rules.finding import AlertRule
from app.health.rules.snapshot import FOR_ALERTS, FOR_REPORT
from tests.docker.composition import DIRECTORY, services
from tests.docker.prometheus import promtool

RULES = DIRECTORY / "alerts.yml"
POLICY = FOR_ALERTS


def rules() -> dict[str, dict[str, Any]]:
    document: dict[str, Any] = YAML(typ="safe", pure=True).load(RULES)
    return {rule["alert"]: rule for group in document["groups"] for rule in group["rules"]}


def seconds(span: str) -> int:
    return int(span[:-1]) * {"s": 1, "m": 60}[span[-1]]


def served_metrics() -> set[str]:
    """Names of the metrics that the API serves."""
    registry = CollectorRegistry()
    MetricsPage(registry)
    return {name for family in registry.collect() for name in (family.name, f"{family.name}_total")}


def parse_command(words: list[str]) -> None:
    """Parse a command line as the program does, and run nothing. Raises UsageError."""
    command: Any = typer.main.get_command(commands.build())
    context = command.make_context("convener", words)
    while hasattr(command, "resolve_command"):
        name, command, words = command.resolve_command(context, [*context._protected_args, *context.args])
        context = command.make_context(name, words, parent=context)


def test_promtool_accepts_the_rules() -> None:
    promtool("check", "rules", "--lint=all", "--lint-fatal", RULES)


def test_the_rules_fire_when_they_should_and_only_then() -> None:
    promtool("test", "rules", Path(__file__).with_name("alerts_test.yml"))


def test_every_metric_is_one_that_the_api_serves() -> None:
    used = {name for rule in rules().values() for name in re.findall(r"convener_[a-z_]+", rule["expr"])}
    assert used
    assert used <= served_metrics()


@pytest.mark.parametrize(
    ("alert", "threshold"),
    [
        ("ConvenerOldestTask", POLICY.oldest_task.degraded),
        ("ConvenerOldestTaskCritical", POLICY.oldest_task.critical),
        ("ConvenerQueueGrowth", POLICY.growth_per_minute),
        ("ConvenerQueueFilling", POLICY.pressure.degraded),
        ("ConvenerHostPressure", 100 * POLICY.pressure.degraded),
        ("ConvenerPermitPressure", 100 * POLICY.pressure.degraded),
        ("ConvenerConnections", 100 * POLICY.pressure.degraded),
        ("ConvenerOldSnapshot", POLICY.snapshot_seconds.degraded),
        ("ConvenerOldTransaction", POLICY.snapshot_transactions),
        ("ConvenerDeadRows", POLICY.dead_rows),
        ("ConvenerRefusedRequests", POLICY.refusals.degraded),
        ("ConvenerLoopsSilent", FOR_REPORT.loops_silent_seconds),
    ],
)
def test_thresholds_are_those_of_the_service(alert: str, threshold: float) -> None:
    assert float(rules()[alert]["expr"].rpartition(">")[2]) == threshold


@pytest.mark.parametrize(
    ("alert", "rule"),
    [
        ("ConvenerHostPressure", AlertRule.RESOURCE_PRESSURE),
        ("ConvenerPermitPressure", AlertRule.RESOURCE_PRESSURE),
        ("ConvenerQueueFilling", AlertRule.RESOURCE_PRESSURE),
        ("ConvenerQueueGrowth", AlertRule.QUEUE_GROWTH),
        ("ConvenerPoolBelowMinimum", AlertRule.POOL_BELOW_MINIMUM),
        ("ConvenerWorkerStarvation", AlertRule.WORKER_STARVATION),
        ("ConvenerOldSnapshot", AlertRule.DATABASE_TROUBLE),
    ],
)
def test_hysteresis_is_that_of_the_service(alert: str, rule: AlertRule) -> None:
    assert seconds(rules()[alert]["for"]) == AlertPolicy().of(rule).opens_after


def test_every_rule_says_what_is_wrong_and_what_to_do() -> None:
    for name, rule in rules().items():
        assert set(rule["annotations"]) == {"summary", "action", "runbook"}, name
        assert rule["labels"]["severity"] in ("warning", "critical"), name


# A value of each label that a runbook names.
_LABELS = {"agent": "meta_review", "model": "lab/gpt 4.1", "subject": "host:lab-7"}


@pytest.mark.parametrize("alert", rules())
def test_the_runbook_is_a_command_that_the_command_line_takes(alert: str) -> None:
    runbook = re.sub(
        r"{{ \$labels\.(\w+) }}", lambda match: _LABELS[match[1]], rules()[alert]["annotations"]["runbook"]
    )
    program, *words = shlex.split(runbook)
    assert program == "convener"
    parse_command(words)


@pytest.mark.parametrize(
    "line", ["nothing", "queues", "queues nothing", "workers ls --nothing", "tasks ls --state dead", "llm models get"]
)
def test_what_the_command_line_does_not_take_is_found(line: str) -> None:
    with pytest.raises(UsageError):
        parse_command(line.split())


def test_they_are_mounted_beside_the_configuration_that_names_them() -> None:
    document: dict[str, Any] = YAML(typ="safe", pure=True).load(DIRECTORY / "prometheus.yml")
    assert document["rule_files"] == [RULES.name]
    assert f"./{RULES.name}:/etc/prometheus/{RULES.name}:ro" in services()["prometheus"]["volumes"]
