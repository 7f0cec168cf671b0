"""Address, models and time limits of the language model's gateway, from the environment."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

PREFIX = "CONVENER_LLM_"
KEY_VARIABLE = f"{PREFIX}KEY"
# What the gateway for handlers is made of; a worker without a language model needs neither.
_SERVER_PACKAGES = ("starlette", "uvicorn")
_MAX_SECONDS = 86_400
_MAX_NAME_LENGTH = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewaySettings:
    """Gateway of the language model; `models` is the chain, the default first, then its fallbacks."""

    base_url: str
    key: str = field(default="", repr=False)
    # Where the key is read anew when it is refused, or about to expire; a command wins over a file.
    key_file: Path | None = None
    key_command: str | None = None
    models: tuple[str, ...]
    connect_seconds: float = 5.0
    # A reasoning model may think for minutes before its first token.
    first_token_seconds: float = 120.0
    between_tokens_seconds: float = 30.0
    total_seconds: float = 300.0
    # Per model of the chain; waiting for the model's limits is no attempt.
    attempts: int = 4


def read_settings(environment: Mapping[str, str]) -> GatewaySettings | None:
    """Read the settings; None when no language model is named. Raises ValueError that names the variable."""
    url = environment.get(f"{PREFIX}URL", "").strip().rstrip("/")
    if not url:
        return None
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{PREFIX}URL must be an http or https address such as http://127.0.0.1:44497/v1, not {url!r}")
    if parts.username or parts.password:
        raise ValueError(f"{PREFIX}URL must not hold a password; put the key into {KEY_VARIABLE}")
    if missing := [name for name in _SERVER_PACKAGES if find_spec(name) is None]:
        raise ValueError(f"{PREFIX}URL needs {' and '.join(missing)}: install 'convener-worker[llm]'")
    models = tuple(name for word in environment.get(f"{PREFIX}MODELS", "").split(",") if (name := word.strip()))
    if not models:
        raise ValueError(f"{PREFIX}MODELS is not set: name the models to ask, the first choice first")
    if odd := [name for name in models if len(name) > _MAX_NAME_LENGTH or not name.isprintable()]:
        raise ValueError(f"{PREFIX}MODELS names {odd[0][:_MAX_NAME_LENGTH]!r}: use at most 200 printable characters")
    defaults = GatewaySettings(base_url=url, key=environment.get(KEY_VARIABLE, "").strip(), models=models)
    key_file = environment.get(f"{KEY_VARIABLE}_FILE", "").strip()
    return replace(
        defaults,
        key_file=Path(key_file) if key_file else None,
        key_command=environment.get(f"{KEY_VARIABLE}_COMMAND", "").strip() or None,
        connect_seconds=_number(environment, "connect_seconds", defaults.connect_seconds),
        first_token_seconds=_number(environment, "first_token_seconds", defaults.first_token_seconds),
        between_tokens_seconds=_number(environment, "between_tokens_seconds", defaults.between_tokens_seconds),
        total_seconds=_number(environment, "total_seconds", defaults.total_seconds),
        attempts=max(1, round(_number(environment, "attempts", defaults.attempts))),
    )


def _number(environment: Mapping[str, str], name: str, default: float) -> float:
    variable = PREFIX + name.upper()
    try:
        value = float(environment.get(variable, default))
    except ValueError:
        raise ValueError(f"{variable} must be a number, not {environment[variable]!r}") from None
    if not 0 < value <= _MAX_SECONDS:
        raise ValueError(f"{variable} must be above 0 and at most {_MAX_SECONDS}")
    return value
