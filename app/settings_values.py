"""Kinds of values of the settings, each with what makes a value one of them."""

import ipaddress
import json
import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator

from app.kernel.agents import AgentType

_MAX_NAME_LENGTH = 200
_HOST_NAME = re.compile(
    r"([a-z0-9_]([-a-z0-9_]{0,61}[a-z0-9_])?\.)*[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?\.?", re.IGNORECASE
)


def _split(value: object) -> object:
    return value.split(",") if isinstance(value, str) else value


def _split_names(value: object) -> object:
    # As workers read the same variable: with blanks around names, or empty.
    return tuple(name for word in value.split(",") if (name := word.strip())) if isinstance(value, str) else value


def _are_names(names: tuple[str, ...]) -> tuple[str, ...]:
    if any(not 0 < len(name) <= _MAX_NAME_LENGTH or not name.isprintable() for name in names):
        raise ValueError(f"must be names of at most {_MAX_NAME_LENGTH} printable characters")
    return names


def _counts_are_whole(quotas: tuple[float, ...]) -> tuple[float, ...]:
    if any(quota > 1 and quota % 1 for quota in quotas):
        raise ValueError("above 1 a quota is a number of tasks, and whole")
    return quotas


def _is_address(host: str) -> str:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        # What ends with a number is an address that somebody mistyped, and 0 would be all of this machine's.
        if not _HOST_NAME.fullmatch(host) or host.rstrip(".").rpartition(".")[2].isdecimal():
            raise ValueError("must be an address or a name of this machine, such as 127.0.0.1 or ::1") from None
    return host


def _are_networks(proxies: str) -> str:
    try:
        # Whatever is none of these the server takes for a name, by which nobody connects.
        [ipaddress.ip_network(proxy.strip()) for proxy in proxies.split(",") if proxies not in ("", "*")]
    except ValueError:
        raise ValueError("must be addresses or networks, such as 10.0.0.7,10.1.0.0/16, or * for all") from None
    return proxies


Names = Annotated[tuple[str, ...], BeforeValidator(_split_names), AfterValidator(_are_names)]
HostNames = Annotated[tuple[str, ...], BeforeValidator(_split)]
HostAddress = Annotated[str, AfterValidator(_is_address)]
Networks = Annotated[str, AfterValidator(_are_networks)]
DeploymentName = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$")]
_Quota = Annotated[float, Field(gt=0, le=100_000_000)]
Quotas = Annotated[tuple[_Quota, _Quota, _Quota, _Quota], BeforeValidator(_split), AfterValidator(_counts_are_whole)]


class KubernetesClass(BaseModel):
    """A Deployment beside the usual one, for tasks of some agent types (all where none is named) and with resources."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    deployment: DeploymentName
    agents: tuple[AgentType, ...] = ()
    cores: float = Field(0, ge=0, le=10_000)
    memory_gb: float = Field(0, ge=0, le=1_000_000)
    gpus: int = Field(0, ge=0, le=1024)
    resources: tuple[tuple[str, int], ...] = ()
    limit: int = Field(100, ge=1, le=100_000)

    @field_validator("resources", mode="before")
    @classmethod
    def _pairs(cls, value: object) -> object:
        return tuple(sorted(value.items())) if isinstance(value, dict) else value


def _parse_json(value: object, things: str = "objects") -> object:
    try:
        return json.loads(value) if isinstance(value, str) and value.strip() else value or ()
    except ValueError:
        raise ValueError(f"must be a JSON list of {things}") from None


KubernetesClasses = Annotated[tuple[KubernetesClass, ...], BeforeValidator(_parse_json)]
# With targets that are commands, which may have any separator in them.
HandlerTargets = Annotated[tuple[str, ...], BeforeValidator(lambda value: _parse_json(value, "texts"))]
