"""Advice for workers and the Supervisor while resources are short, sent along with other answers."""

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
    advice = services[CurrentStep].advice
    return json.dumps(advice) if advice else None


def model(services: Services) -> AdviceOut | None:
    """The advice as part of a body, None when everything runs as usual."""
    advice = services[CurrentStep].advice
    return AdviceOut(**advice) if advice else None


def add_header(response: Response, services: Services) -> None:
    """Add the advice, if there is any, to the headers of an answer to a submit."""
    advice = services[CurrentStep].advice
    if advice is not None:
        fields = (f"{name.replace('_', '-')}={_header_value(value)}" for name, value in advice.items())
        response.headers[HEADER] = "; ".join(fields)


def _header_value(value: Any) -> str:
    return "any" if value is None else f"{value:g}"
