"""The engines that the settings name: the usual Deployment, and one for each class of workers."""

import json
from pathlib import Path

from app.background import engines_for
from app.db.database import Database
from app.kernel.agents import AgentType
from app.kernel.resources import Resources
from app.settings import Settings
from app.workers.rules.classes import WorkerClass
from app.workers.service import engine_pool
from app.workers.service.engine_pool import EnginePolicy
from tests.support.kubernetes_api import NAMESPACE, Cluster
from tests.support.sql import fetch

_CLASSES = [
    {"deployment": "gpus", "agents": ["generation"], "cores": 2, "gpus": 1, "resources": {"scope": 1}, "limit": 7},
    {"deployment": "large", "memory_gb": 64},
]


def _settings(place: Path, url: str) -> Settings:
    document = {
        "current-context": "lab",
        "contexts": [{"name": "lab", "context": {"cluster": "c", "user": "u", "namespace": NAMESPACE}}],
        "clusters": [{"name": "c", "cluster": {"server": url}}],
        "users": [{"name": "u", "user": {"token": "first"}}],
    }
    (place / "kubeconfig").write_text(json.dumps(document))
    return Settings.from_environment(
        {
            "CONVENER_PROVISIONER": "kubernetes",
            "CONVENER_KUBECONFIG": str(place / "kubeconfig"),
            "CONVENER_KUBERNETES_CLASSES": json.dumps(_CLASSES),
            "CONVENER_POOL_LIMIT": "40",
        }
    )


async def test_each_class_is_a_pool_of_its_own(database: Database, cluster: Cluster, tmp_path: Path) -> None:
    engines = engines_for(_settings(tmp_path, cluster.url), database)
    assert [(engine.name, engine.max_size) for engine in engines] == [
        ("convener-workers", 40),
        ("gpus", 7),
        ("large", 100),
    ]
    gpu = Resources(cores=2, gpus=1, named=frozenset([("scope", 1)]))
    assert [engine.serves for engine in engines] == [
        None,
        WorkerClass(agents=frozenset([AgentType.GENERATION]), offer=gpu),
        WorkerClass(offer=Resources(memory_gb=64)),
    ]
    for engine in engines:
        await engine_pool.keep(database, engine, EnginePolicy(usual_size=0))
        await engine.close()
    # A Deployment that is not there yet keeps nobody else from anything, and is named.
    rows = await fetch(database, "SELECT host, serves IS NOT NULL AS is_class, member_waits::text AS waits FROM hosts")
    assert {row["host"]: row["is_class"] for row in rows} == {"convener-workers": False, "gpus": True, "large": True}
    assert "there is no Deployment gpus" in next(row["waits"] for row in rows if row["host"] == "gpus")
