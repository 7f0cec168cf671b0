"""Resource classes of tasks that a checkpoint brings back, which itself may know none."""

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.kernel.lanes import SPAN
from app.kernel.resources import MAX_CLASSES

# Of live tasks only, whose checkpoint may be of an earlier version; without its class nobody looks for a task. Restores
# of former versions forgot the classes, so that numbers were given twice: one request keeps such a number, and the
# others get new ones, with the tags of these.
_FORGET_CLASSES = text("DELETE FROM resource_classes")
_RESTORE_CLASSES = text("""
INSERT INTO resource_classes (id, request)
SELECT DISTINCT resource_class, resources FROM tasks WHERE resource_class IS NOT NULL ORDER BY 1
ON CONFLICT DO NOTHING
""")
_ADD_CLASSES = text("""
INSERT INTO resource_classes (id, request)
SELECT free.id, lacking.request
FROM (
    SELECT resources AS request, row_number() OVER (ORDER BY min(seq)) AS place FROM tasks
    WHERE resource_class IS NOT NULL AND resources NOT IN (SELECT request FROM resource_classes) GROUP BY resources
) lacking
JOIN (
    SELECT id, row_number() OVER (ORDER BY id) AS place FROM generate_series(1, :most) AS each (id)
    WHERE id NOT IN (SELECT id FROM resource_classes)
) free USING (place)
""")
_MOVE_TO_CLASSES = text(f"""
UPDATE tasks t SET tag = t.tag + (t.resource_class - c.id) * {SPAN:.0f}::float8, resource_class = c.id
FROM resource_classes c WHERE c.request = t.resources AND c.id <> t.resource_class
""")
_FORGET_OTHER_LANES = text("DELETE FROM resource_lanes WHERE resource_class NOT IN (SELECT id FROM resource_classes)")


async def restore(connection: AsyncConnection) -> None:
    """Make the classes that the restored tasks ask for, each with a number of its own."""
    for statement in (_FORGET_CLASSES, _RESTORE_CLASSES):
        await connection.execute(statement)
    await connection.execute(_ADD_CLASSES, {"most": MAX_CLASSES})
    for statement in (_MOVE_TO_CLASSES, _FORGET_OTHER_LANES):
        await connection.execute(statement)
