"""Prometheus scrapes what the API serves, at an address that it can reach."""

import shutil
import subprocess
from typing import Any

import pytest
from ruamel.yaml import YAML

from app.settings import Settings
from tests.docker.composition import DIRECTORY, services

CONFIGURATION = DIRECTORY / "prometheus.yml"


def test_promtool_accepts_the_configuration() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed")
    verdict = subprocess.run([promtool, "check", "config", CONFIGURATION], capture_output=True, text=True)
    assert verdict.returncode == 0, verdict.stdout + verdict.stderr


def test_the_only_job_scrapes_the_api() -> None:
    document: dict[str, Any] = YAML(typ="safe", pure=True).load(CONFIGURATION)
    (job,) = document["scrape_configs"]
    (group,) = job["static_configs"]
    assert group["targets"] == [f"api:{Settings().port}"]
    assert job.get("metrics_path", "/metrics") == "/metrics"


def test_it_is_mounted_where_the_image_looks_and_reaches_the_api() -> None:
    prometheus, api = services()["prometheus"], services()["api"]
    assert "./prometheus.yml:/etc/prometheus/prometheus.yml:ro" in prometheus["volumes"]
    assert set(prometheus["networks"]) & set(api["networks"])
