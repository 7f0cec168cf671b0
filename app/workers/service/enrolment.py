"""Keys with which workers of a block register: for a short time, and so many of them."""

from app.admin.service.access import create_key
from app.admin.store.keys import NewKey
from app.db.database import Database
from app.kernel.access import Role
from app.workers.provisioners.blocks import KEY_SECONDS


async def make_block_key(database: Database, token: str, uses: int) -> str:
    """Make a key that registers so many workers of a block, for a while; return its text."""
    key = NewKey(role=Role.POOL, label=f"block {token}", uses_left=uses, expires_in_seconds=KEY_SECONDS)
    async with database.transaction() as connection:
        return (await create_key(connection, key)).text
