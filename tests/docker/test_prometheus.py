"""Prometheus scrapes what the API serves, at an address that it can reach."""

from typing import Any

from ruamel.yaml import YAML

from app.settings import Settings
from tests.docker.composition import DIRECTORY, services
from tests.docker.prometheus import promtool

CONFIGURATION = DIRECTORY / "prometheus.yml"


def test_promtool_accepts_the_configuration() -> None:
    # Not whether the file with the key is there, which is made where Prometheus runs.
    promtool("check", "config", "--syntax-only", CONFIGURATION)


def test_the_only_job_scrapes_the_api() -> None:
    document: dict[str, Any] = YAML(typ="safe", pure=True).load(CONFIGURATION)
    (job,) = document["scrape_configs"]
    (group,) = job["static_configs"]
    assert group["targets"] == [f"api:{Settings().port}"]
    assert job.get("metrics_path", "/metrics") == "/metrics"
    assert job["authorization"] == {"credentials_file": "/keys-monitor/monitor.key"}


def test_it_is_mounted_where_the_image_looks_and_reaches_the_api() -> None:
    prometheus, api = services()["prometheus"], services()["api"]
    assert "./prometheus.yml:/etc/prometheus/prometheus.yml:ro" in prometheus["volumes"]
    assert [volume for volume in prometheus["volumes"] if "keys" in volume] == ["keys-monitor:/keys-monitor:ro"]
    assert set(prometheus["networks"]) & set(api["networks"])
