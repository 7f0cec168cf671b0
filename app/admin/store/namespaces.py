"""Namespaces of the service: whether there are several, and what the configuration says of each."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.admin.rules.config import NamespaceConfig, section


@dataclass(frozen=True, slots=True, kw_only=True)
class Namespaces:
    """`is_divided`: some key belongs to another namespace than `default`; what is not configured is as by default."""

    is_divided: bool = False
    configured: Mapping[str, NamespaceConfig] = field(default_factory=dict)

    def config(self, namespace: str) -> NamespaceConfig:
        """The configuration of a namespace."""
        return self.configured.get(namespace, NamespaceConfig())


_READ = text("""
SELECT EXISTS (SELECT FROM keys WHERE namespace <> 'default') AS is_divided,
       (SELECT document -> 'namespaces' FROM config_versions ORDER BY version DESC LIMIT 1) AS configured
""")


async def read(connection: AsyncConnection) -> Namespaces:
    """Read them by one statement."""
    row = (await connection.execute(_READ)).one()
    configured = {name: section(NamespaceConfig, fields) for name, fields in (row.configured or {}).items()}
    return Namespaces(is_divided=row.is_divided, configured=configured)
