"""The description of the API as it is committed; that it is what the service tells has a test of its own.

To build it anew takes seconds, which each process that collects tests would spend.
"""

import json
from pathlib import Path
from typing import Any

DESCRIPTION: dict[str, Any] = json.loads((Path(__file__).parents[2] / "openapi" / "openapi.json").read_text())
