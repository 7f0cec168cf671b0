"""Traces of a process as the standard variables (OTEL_...) ask for them; the work never waits for their collector."""

import logging
import os
import re
from collections.abc import Mapping
from urllib.parse import unquote

from worker_agent.tracing.spans import Tracing

log = logging.getLogger(__name__)
_HEADERS = ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "OTEL_EXPORTER_OTLP_HEADERS")
_SHORTEST_SECRET = 4
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


def start_tracing(service: str, environment: Mapping[str, str] = os.environ) -> Tracing | None:
    """Tracing of this process under the name of a service, unless the variables give another.

    None where they ask for none, and where they cannot be followed, which is logged once: work goes on without traces.
    """
    if not _is_wanted(environment):
        return None
    try:
        # Imported only here: the packages of OpenTelemetry take a tenth of a second, and need not be there.
        from worker_agent.tracing.pipeline import open_pipeline

        return open_pipeline(service, environment)
    except ImportError as error:
        log.warning("no traces: OTEL_ variables ask for them, but %s: install 'convener[otel]'", error)
    except Exception as error:
        log.warning("no traces: the OTEL_ variables cannot be followed: %s", without_headers(str(error), environment))
    return None


def without_headers(message: str, environment: Mapping[str, str]) -> str:
    """The message, unless it holds a word of the headers for the collector, in which a key may stand."""
    for variable in _HEADERS:
        text = environment.get(variable, "")
        words = re.split(r"[\s,=]+", f"{text} {unquote(text)}")
        if any(word in message for word in words if len(word) >= _SHORTEST_SECRET):
            return f"{variable} cannot be used, or the answer repeats it: write NAME=VALUE, with commas between"
    return message


def _is_wanted(environment: Mapping[str, str]) -> bool:
    exporter = environment.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    if exporter == "none" or environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    return bool(exporter) or any(environment.get(name, "").strip() for name in _ENDPOINTS)
