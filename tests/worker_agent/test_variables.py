"""All variables of Convener have names that are listed, and others are told of with the nearest one."""

import re
from pathlib import Path

import pytest

from app.settings import Settings
from app.settings_sources import SECRETS
from worker_agent.variables import NAMES, is_link, unknown_variables

ROOT = Path(__file__).parents[2]
# Former ones, one of haproxy's own, and examples of what is none.
_NONE = {"CONVENER_BIND", "CONVENER_POOL_KEY", "CONVENER_POOL_KEY_FILE", "CONVENER_PORTT", "CONVENER_SERVICE_HOST"}


def test_every_setting_is_listed() -> None:
    assert {f"CONVENER_{name.upper()}" for name in Settings.model_fields} <= NAMES
    assert {f"CONVENER_{name.upper()}_FILE" for name in SECRETS} <= NAMES


def test_every_name_in_programs_and_documents_is_listed() -> None:
    files = [path for folder in ("app", "worker_agent", "examples") for path in (ROOT / folder).rglob("*.py")]
    files += [*ROOT.glob("docs/**/*.md"), *ROOT.glob("*.md"), *(ROOT / "docker").iterdir()]
    texts = {path: path.read_text() for path in files if path.is_file()}
    names = {name for text in texts.values() for name in re.findall(r"CONVENER_(?!TEST_)[A-Z_]*[A-Z]\b(?!_)", text)}
    assert not [name for name in names - NAMES - _NONE if not any(other.startswith(f"{name}_") for other in NAMES)]


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("CONVENER_PORTT", "CONVENER_PORT"),
        ("CONVENER_LLM_MODLES", "CONVENER_LLM_MODELS"),
        ("CONVENER_POOLSIZE", "CONVENER_POOL_SIZE"),
        ("CONVENER_PORT_FILE", None),
        ("CONVENER_XYZZY", None),
        ("CONVENER_", None),
    ],
)
def test_a_name_that_is_none_is_told_of(name: str, near: str | None) -> None:
    ((stranger, sentence),) = unknown_variables({name: "9", "PATH": "/bin", "CONVENER_PORT": "9"}).items()
    assert stranger == name
    assert sentence.startswith(f"{name} is ignored")
    assert near is None or sentence.endswith(f"did you mean {near}?")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CONVENER_SERVICE_HOST", "10.0.0.1"),
        ("CONVENER_API_SERVICE_PORT", "8765"),
        ("CONVENER_API_SERVICE_PORT_HTTP", "8765"),
        ("CONVENER_API_PORT", "tcp://10.0.0.1:8765"),
        ("CONVENER_API_PORT_8765_TCP", "tcp://10.0.0.1:8765"),
        ("CONVENER_API_PORT_8765_TCP_ADDR", "10.0.0.1"),
        ("CONVENER_PORT", "tcp://10.0.0.1:8765"),
    ],
)
def test_what_a_container_platform_sets_is_no_mistake(name: str, value: str) -> None:
    assert is_link(name, value)
    assert unknown_variables({name: value}) == {}


def test_the_address_of_a_service_is_no_port() -> None:
    """Kubernetes sets it in every container beside a service of the name convener."""
    assert Settings.from_environment({"CONVENER_PORT": "tcp://10.0.0.1:8765"}).port == 8765
    assert not is_link("CONVENER_PORT", "9000")
