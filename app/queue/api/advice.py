"""What is asked of those who work and those who submit while resources are short, as part of other answers."""

import json
from typing import Any

from pydantic import BaseModel, Field
from starlette.responses import Response

from app.http.services import Services
from app.queue.service.degradation import CurrentStep

HEADER = "Convener-Degradation"
DOCUMENTED = {
    HEADER: {
        "description": "only while resources are short: `step=2; max-depth=2; batch-factor=1`; see `GET /degradation`",
        "schema": {"type": "string"},
    }
}


class AdviceOut(BaseModel):
    """A step of degradation, and what handlers are asked to keep to meanwhile."""

    step: int = Field(description="1 to 4; `GET /degradation` says what each means")
    max_depth: int | None = Field(description="levels to go down at most; null: as ever")
    batch_factor: float = Field(description="times the usual size of a batch")


def text(services: Services) -> str | None:
    """The advice as JSON text, None when everything runs as usual."""
    told = services[CurrentStep].told
    return json.dumps(told) if told else None


def model(services: Services) -> AdviceOut | None:
    """The advice as part of a body, None when everything runs as usual."""
    told = services[CurrentStep].told
    return AdviceOut(**told) if told else None


def note(response: Response, services: Services) -> None:
    """Tell whoever submits, where there is anything to tell."""
    told = services[CurrentStep].told
    if told is not None:
        response.headers[HEADER] = "; ".join(f"{_dashed(name)}={_word(value)}" for name, value in told.items())


def _dashed(name: str) -> str:
    return name.replace("_", "-")


def _word(value: Any) -> str:
    return "any" if value is None else f"{value:g}"
