"""A cluster, and a Deployment in it as the pool knows it."""

import asyncio
from collections.abc import AsyncIterator

import pytest_asyncio

from app.workers.provisioners.kubernetes.access import ClusterAccess
from app.workers.provisioners.kubernetes.deployment import KubernetesDeployment
from tests.support.kubernetes_api import DEPLOYMENT, NAMESPACE, Cluster


@pytest_asyncio.fixture
async def cluster() -> AsyncIterator[Cluster]:
    cluster = Cluster()
    await cluster.start()
    yield cluster
    await cluster.close()


@pytest_asyncio.fixture
async def engine(cluster: Cluster) -> AsyncIterator[KubernetesDeployment]:
    engine = deployment(cluster)
    yield engine
    await engine.close()


@pytest_asyncio.fixture
async def follower(engine: KubernetesDeployment) -> AsyncIterator[asyncio.Task[None]]:
    """The task by which the engine follows its pods, until the end of the test."""
    task = asyncio.create_task(engine.run())
    yield task
    task.cancel()
    await asyncio.wait([task])


def deployment(cluster: Cluster) -> KubernetesDeployment:
    access = ClusterAccess(server=cluster.url, namespace=NAMESPACE, trust=True, token=lambda: "first")
    return KubernetesDeployment(access, DEPLOYMENT, namespace=None, max_size=300)
