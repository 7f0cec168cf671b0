"""The manifests of deploy/kubernetes: what Kustomize makes of them is valid, confined, and what the programs expect.

ServiceMonitor and Cluster are resources of operators, whose schemas are not here: of them only names are compared.
"""

import copy
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from ruamel.yaml import YAML

from app.settings import Settings
from app.workers.provisioners.engine import POOL_LABEL, pool_label
from tests.support.documents import ROOT
from tests.support.kubernetes_api import Cluster
from worker_agent.options import read_options

DIRECTORY = ROOT / "deploy/kubernetes"
OVERLAYS = ("development", "production")
Object = dict[str, Any]
_WORKER_LABEL = "convener/worker"
_SCHEMAS = json.loads((Path(__file__).parent / "kubernetes-1.33.json").read_text())
_OF_OPERATORS = {"ServiceMonitor", "Cluster"}


@cache
def rendered(overlay: str) -> list[Object]:
    """The objects of an overlay, as `kubectl apply -k` sends them."""
    return _rendered_from(DIRECTORY / "overlays" / overlay)


def _rendered_from(directory: Path) -> list[Object]:
    if shutil.which("kubectl") is None:
        if os.environ.get("CONVENER_TEST_KUBECTL") == "required":
            pytest.fail("kubectl is required here, and not installed")
        pytest.skip("kubectl is not installed")
    command = ["kubectl", "kustomize", str(directory)]
    return _documents(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def _documents(text: str) -> list[Object]:
    return [document for document in YAML(typ="safe", pure=True).load_all(text) if document]


def _strict() -> Object:
    """The schemas, where a field that they do not name is an error, as for `kubectl apply --validate=strict`."""
    schemas: Object = copy.deepcopy(_SCHEMAS)
    for definition in schemas["$defs"].values():
        if "properties" in definition:
            definition["additionalProperties"] = False
    return schemas


def _errors(document: Object) -> list[str]:
    group, _, version = str(document["apiVersion"]).rpartition("/")
    group = group.split(".")[0] or "core"
    reference = f"#/$defs/io.k8s.api.{group}.{version}.{document['kind']}"
    assert reference.removeprefix("#/$defs/") in _SCHEMAS["$defs"], f"there is no schema of {document['kind']}"
    validator = jsonschema_rs.Draft202012Validator({**_strict(), "$ref": reference})
    return [f"{'.'.join(map(str, error.instance_path))}: {error.message}" for error in validator.iter_errors(document)]


def of_kind(overlay: str, kind: str) -> dict[str, Object]:
    return {each["metadata"]["name"]: each for each in rendered(overlay) if each["kind"] == kind}


def pod_specs(overlay: str) -> Iterator[tuple[str, Object]]:
    for kind in ("Deployment", "Job"):
        for name, document in of_kind(overlay, kind).items():
            yield name, document["spec"]["template"]["spec"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_everything_is_valid_by_the_schemas_of_kubernetes(overlay: str) -> None:
    objects = [document for document in rendered(overlay) if document["kind"] not in _OF_OPERATORS]
    problems = {f"{each['kind']} {each['metadata']['name']}": _errors(each) for each in objects}
    assert {name: errors for name, errors in problems.items() if errors} == {}
    assert len(objects) >= 14


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_upgrade_can_leave_the_workers_for_last(overlay: str) -> None:
    """`kubectl apply -l` goes by the labels of the objects themselves, and not by those of their pods."""
    text = (ROOT / "docs/how-to/kubernetes.md").read_text()
    assert f"overlays/production -l '{_WORKER_LABEL}!=true'" in text
    labelled = {
        each["metadata"]["name"]
        for each in rendered(overlay)
        if each["metadata"].get("labels", {}).get(_WORKER_LABEL) == "true"
    }
    of_workers = {
        name
        for name, each in of_kind(overlay, "Deployment").items()
        if each["spec"]["template"]["metadata"]["labels"].get(_WORKER_LABEL) == "true"
    }
    assert labelled == of_workers == {"convener-workers"}


def test_the_schemas_find_what_is_wrong() -> None:
    service: Object = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "x"}}
    assert _errors({**service, "spec": {"ports": [{"port": "http"}]}})
    assert _errors({**service, "specification": {}})
    assert not _errors({**service, "spec": {"ports": [{"port": 80}]}})


def test_the_example_of_a_database_is_valid_but_for_what_is_its_operators() -> None:
    objects = _documents((DIRECTORY / "examples/cloudnative-pg.yaml").read_text())
    cluster, policy = objects
    assert (cluster["kind"], _errors(policy)) == ("Cluster", [])
    initialized = cluster["spec"]["bootstrap"]["initdb"]
    # The operator serves the primary as NAME-rw.
    url = f"postgresql://{initialized['owner']}@{cluster['metadata']['name']}-rw:5432/{initialized['database']}"
    assert f"CONVENER_DATABASE_URL={url}" in (DIRECTORY / "base/kustomization.yaml").read_text()
    for overlay in OVERLAYS:
        assert _labelled(overlay, "convener/reaches-database") == {
            "convener-api",
            "convener-loops",
            "convener-migration",
        }
        secrets = {volume["secret"]["secretName"] for _, spec in pod_specs(overlay) for volume in _secrets(spec)}
        assert secrets == {initialized["secret"]["name"], "convener-pool"}


def _labelled(overlay: str, label: str) -> set[str]:
    return {
        name
        for kind in ("Deployment", "Job")
        for name, document in of_kind(overlay, kind).items()
        if document["spec"]["template"]["metadata"]["labels"].get(label) == "true"
    }


def _secrets(spec: Mapping[str, Any]) -> list[Object]:
    return [volume for volume in spec["volumes"] if "secret" in volume]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_pod_is_confined_and_has_its_secrets_as_files(overlay: str) -> None:
    for name, spec in pod_specs(overlay):
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is (name == "convener-loops")
        assert spec["enableServiceLinks"] is False
        for container in spec["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert "memory" in container["resources"]["limits"]
            assert set(container["resources"]["requests"]) == {"cpu", "memory"}
            assert "secretKeyRef" not in json.dumps(container)
            assert all("secretRef" not in source for source in container.get("envFrom", ()))
            mounted = {mount["name"] for mount in container["volumeMounts"]}
            assert mounted == {volume["name"] for volume in spec["volumes"]}
        # What the user of the image may read, and nobody else.
        assert all(volume["secret"]["defaultMode"] == 0o440 for volume in _secrets(spec))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_loops_may_do_what_the_contract_needs_and_no_more(overlay: str) -> None:
    """The server of the contract tests allows just this, and refuses the rest by 403."""
    (role,) = of_kind(overlay, "Role").values()
    allowed = {
        (verb, resource.rpartition("/")[2])
        for rule in role["rules"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    assert allowed == Cluster().allowed
    scale, _ = role["rules"]
    assert (scale["resources"], scale["resourceNames"]) == (["deployments/scale"], ["convener-workers"])
    (binding,) = of_kind(overlay, "RoleBinding").values()
    assert binding["subjects"][0]["name"] == "convener-loops"
    assert of_kind(overlay, "ClusterRole") == {}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_workers_enrol_in_the_pool_that_the_loops_keep(overlay: str) -> None:
    loops = of_kind(overlay, "Deployment")["convener-loops"]["spec"]["template"]["spec"]["containers"][0]
    settings = Settings.from_environment({each["name"]: each["value"] for each in loops["env"]})
    assert settings.provisioner == "kubernetes"
    deployment = of_kind(overlay, "Deployment")[settings.kubernetes_deployment]
    # Whoever applies it again must not set the size that the loops have set.
    assert "replicas" not in deployment["spec"]
    spec = deployment["spec"]["template"]["spec"]
    (worker,) = spec["containers"]
    variables = {each["name"]: each.get("value", "value") for each in worker["env"]}
    words = [re.sub(r"\$\((\w+)\)", lambda match: variables[match[1]], word) for word in worker["args"]]
    assert f"{POOL_LABEL}={pool_label('kubernetes', settings.kubernetes_deployment)}" in words
    grace = float(words[words.index("--grace") + 1])
    assert grace + 10 <= spec["terminationGracePeriodSeconds"]
    # A pod that is not ready goes before any other, so that its readiness must depend on nothing.
    assert not {"readinessProbe", "livenessProbe", "startupProbe"} & worker.keys()
    assert "kill -TERM 1" in worker["lifecycle"]["preStop"]["exec"]["command"][-1]


def test_an_update_that_ends_at_once_replaces_nothing(tmp_path: Path) -> None:
    """Without a probe a pod is ready while its process runs, however shortly: a broken image replaced them all."""
    deployments = [each for each in _with_gpus(tmp_path) if each["kind"] == "Deployment"]
    assert len(deployments) == 4
    for each in deployments:
        (container,) = each["spec"]["template"]["spec"]["containers"]
        assert "readinessProbe" in container or each["spec"]["minReadySeconds"] >= 20


def test_an_update_of_workers_with_gpus_needs_no_further_one(tmp_path: Path) -> None:
    """It waited without end for a GPU that its own pods had, and no pool shrinks during an update."""
    (workers,) = (each for each in _with_gpus(tmp_path) if each["metadata"]["name"] == "convener-workers-gpu")
    assert workers["spec"]["strategy"]["rollingUpdate"]["maxSurge"] == 0


def test_the_command_line_of_workers_is_one(tmp_path: Path) -> None:
    spec = of_kind("production", "Deployment")["convener-workers"]["spec"]["template"]["spec"]
    words = [
        word.replace("$(HANDLERS)", "examples.echo").replace("$(POD_NAME)", "pod")
        for word in spec["containers"][0]["args"]
    ]
    key = tmp_path / "key"
    key.write_text("ck_abc_def")
    words[words.index("--key-file") + 1] = str(key)
    settings, _ = read_options(words, {"CONVENER_URL": "http://convener-api:8765", "CONVENER_ALLOW_PLAIN_HTTP": "true"})
    assert settings.profile["name"] == "pod"
    assert settings.profile["labels"][POOL_LABEL] == "kubernetes/convener-workers"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_names_lead_somewhere(overlay: str) -> None:
    accounts, maps = of_kind(overlay, "ServiceAccount"), of_kind(overlay, "ConfigMap")
    for _, spec in pod_specs(overlay):
        assert spec["serviceAccountName"] in accounts
        for container in spec["containers"]:
            assert all(source["configMapRef"]["name"] in maps for source in container.get("envFrom", ()))
    (settings,) = maps.values()
    names = {name.removeprefix("CONVENER_").lower() for name in settings["data"]}
    assert names - {"database_password_file"} <= set(Settings.model_fields)
    labels = [each["spec"]["template"]["metadata"]["labels"] for each in of_kind(overlay, "Deployment").values()]
    selectors = [each["spec"]["selector"] for each in of_kind(overlay, "Service").values()]
    policies = of_kind(overlay, "NetworkPolicy").values()
    selectors += [each["spec"]["podSelector"]["matchLabels"] for each in policies]
    assert all(any(selector.items() <= each.items() for each in labels) for selector in selectors)


def test_production_has_two_of_each_and_is_watched() -> None:
    deployments = of_kind("production", "Deployment")
    assert {name: each["spec"].get("replicas") for name, each in deployments.items()} == {
        "convener-api": 2,
        "convener-loops": 2,
        "convener-workers": None,
    }
    assert of_kind("production", "PodDisruptionBudget")["convener-api"]["spec"]["minAvailable"] == 1
    spread = deployments["convener-api"]["spec"]["template"]["spec"]["topologySpreadConstraints"]
    assert {each["topologyKey"] for each in spread} == {"kubernetes.io/hostname", "topology.kubernetes.io/zone"}
    (monitor,) = of_kind("production", "ServiceMonitor").values()
    (service,) = of_kind("production", "Service").values()
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert monitor["spec"]["endpoints"][0]["port"] == service["spec"]["ports"][0]["name"]
    # Rules and the dashboard select by the job's name, which is that of the Service where no label says another.
    job = service["metadata"]["labels"].get(monitor["spec"].get("jobLabel"), service["metadata"]["name"])
    assert f'up{{job="{job}"}}' in (ROOT / "docker/alerts.yml").read_text()
    assert of_kind("development", "PodDisruptionBudget") == {}


def _with_gpus(place: Path) -> list[Object]:
    """The objects of production with the component for workers with GPUs."""
    tree = place / "kubernetes"
    shutil.copytree(DIRECTORY, tree)
    file = tree / "overlays/production/kustomization.yaml"
    file.write_text(file.read_text() + "components: [../../components/gpu-workers]\n")
    return _rendered_from(file.parent)


def test_a_component_adds_a_class_of_workers_that_the_loops_keep(tmp_path: Path) -> None:
    objects = _with_gpus(tmp_path)
    assert {each["metadata"]["name"]: _errors(each) for each in objects if each["kind"] == "Deployment"} == {
        "convener-api": [],
        "convener-loops": [],
        "convener-workers": [],
        "convener-workers-gpu": [],
    }
    deployments = {
        each["metadata"]["name"]: each["spec"]["template"] for each in objects if "template" in each.get("spec", {})
    }
    environment = {
        each["name"]: each["value"] for each in deployments["convener-loops"]["spec"]["containers"][0]["env"]
    }
    settings = Settings.from_environment(environment)
    (worker_class,) = settings.kubernetes_classes
    (role,) = (each for each in objects if each["kind"] == "Role")
    names = [settings.kubernetes_deployment, worker_class.deployment]
    assert role["rules"][0]["resourceNames"] == names
    # What the class offers to decisions its workers offer to tasks.
    usual, own = (deployments[name] for name in names)
    (worker,) = own["spec"]["containers"]
    words, variables = worker["args"], {each["name"]: each.get("value") for each in worker["env"]}
    offered = {word: words[words.index(word) + 1] for word in ("--gpus", "--cpu", "--memory-gb")}
    assert offered == {"--gpus": f"{worker_class.gpus}", "--cpu": f"{worker_class.cores:g}", "--memory-gb": "16"}
    assert variables["AGENTS"] == ",".join(worker_class.agents)
    assert f"{POOL_LABEL}={pool_label('kubernetes', worker_class.deployment)}" in words
    assert worker["resources"]["limits"]["nvidia.com/gpu"] == "1"
    # But for that they are as confined as the others.
    assert own["spec"]["securityContext"] == usual["spec"]["securityContext"]
    assert own["metadata"]["labels"][_WORKER_LABEL] == "true"
    (deployment,) = (each for each in objects if each["metadata"]["name"] == worker_class.deployment)
    assert deployment["metadata"]["labels"][_WORKER_LABEL] == "true"
