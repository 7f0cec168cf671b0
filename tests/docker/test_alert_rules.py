"""The alert rules for Prometheus: well-formed, on metrics that there are, with the thresholds of the service."""

import re
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from ruamel.yaml import YAML

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


def test_promtool_accepts_the_rules() -> None:
    promtool("check", "rules", "--lint=all", "--lint-fatal", RULES)


def test_the_rules_fire_when_they_should_and_only_then() -> None:
    promtool("test", "rules", Path(__file__).with_name("alerts_test.yml"))


def test_every_metric_is_one_that_the_api_serves() -> None:
    registry = CollectorRegistry()
    MetricsPage(registry)
    served = {name for family in registry.collect() for name in (family.name, f"{family.name}_total")}
    used = {name for rule in rules().values() for name in re.findall(r"convener_[a-z_]+", rule["expr"])}
    assert used
    assert used <= served


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
        assert set(rule["annotations"]) == {"summary", "action"}, name
        assert rule["labels"]["severity"] in ("warning", "critical"), name


def test_they_are_mounted_beside_the_configuration_that_names_them() -> None:
    document: dict[str, Any] = YAML(typ="safe", pure=True).load(DIRECTORY / "prometheus.yml")
    assert document["rule_files"] == [RULES.name]
    assert f"./{RULES.name}:/etc/prometheus/{RULES.name}:ro" in services()["prometheus"]["volumes"]
