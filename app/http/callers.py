"""Interfaces to features that know the callers: who they are, and who is to hear of their calls."""

from app.kernel.access import Principal
from app.kernel.ids import WorkerId


class Authenticator:
    """Recognises keys; `app.admin` implements it."""

    async def recognise(self, text: str) -> Principal:
        """The holder of the key. Raises Unauthenticated."""
        raise NotImplementedError

    def remembered(self, text: str) -> Principal | None:
        """The holder of the key as far as that can be told without a look-up."""
        raise NotImplementedError

    async def gather(self, authorization: str, seconds: float) -> None:
        """Wait for the next multiple of `seconds`, unless the key is remembered; all who wait are looked up at once."""
        raise NotImplementedError


class CallListener:
    """Learns which workers call; `app.workers` implements it."""

    def note(self, worker_id: WorkerId) -> None:
        """Take note of a call with the key of this worker."""
        raise NotImplementedError


class ReadLog:
    """Records who reads what, where the mode wants that; `app.admin` implements it."""

    async def note(self, principal: Principal, action: str, address: str) -> None:
        """Record that the caller has read what is at this address."""
        raise NotImplementedError


def key_text(authorization: str | None) -> str | None:
    """The key in the header `Authorization`; None where there is none."""
    scheme, _, key = (authorization or "").partition(" ")
    return key.strip() or None if scheme.lower() == "bearer" else None
