"""The text of a key, and the digest that is stored of it."""

import hashlib
import hmac

_PREFIX = "cvn"


def write_key(key_id: str, secret: str) -> str:
    """The text that the holder keeps: `cvn_<id>_<secret>`."""
    return f"{_PREFIX}_{key_id}_{secret}"


def read_key(text: str) -> tuple[str, str] | None:
    """Split a key into its id and secret; None when it is not of the form."""
    parts = text.split("_", 2)  # the secret is URL-safe base64 and may hold underscores itself
    if len(parts) != 3 or parts[0] != _PREFIX or not parts[1] or not parts[2]:
        return None
    return parts[1], parts[2]


def digest(secret: str) -> bytes:
    """SHA-256 of the secret; secrets are 256 random bits, so no slow hash is needed."""
    return hashlib.sha256(secret.encode()).digest()


def matches(secret: str, stored_digest: bytes) -> bool:
    """Whether the secret belongs to the stored digest; takes the same time for every wrong guess."""
    return hmac.compare_digest(digest(secret), stored_digest)
