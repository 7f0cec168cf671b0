"""Conditional requests on resources with versions; the ETag is the version in quotation marks."""

import re
from typing import Annotated

from fastapi import Header
from fastapi.exceptions import RequestValidationError

from app.kernel.errors import PreconditionRequired

IfMatch = Annotated[str | None, Header(max_length=200, description='the version that this builds on, like `"7"`')]
IfNoneMatch = Annotated[str | None, Header(max_length=2000, description="versions that you know")]


def etag(version: int) -> str:
    """The ETag of a version."""
    return f'"{version}"'


def expected_version(if_match: str | None) -> int:
    """The version that a change builds on. Raises PreconditionRequired, RequestValidationError."""
    if if_match is None:
        raise PreconditionRequired('send `If-Match: "<version>"`, the ETag of what you have read')
    # No list, no `*`, and no weak ETag, because If-Match compares strongly (RFC 9110, 13.1.1).
    match = re.fullmatch(r'\s*"(\d{1,18})"\s*', if_match)
    if match is None:
        message = 'must be one version in quotation marks, like "7"'
        raise RequestValidationError([{"type": "condition", "loc": ("header", "if-match"), "msg": message}])
    return int(match[1])


def is_known(version: int, if_none_match: str | None) -> bool:
    """Whether the caller knows this version already."""
    # If-None-Match compares weakly (RFC 9110, 13.1.2), so a proxy may have put W/ before it.
    etags = [item.strip().removeprefix("W/") for item in (if_none_match or "").split(",")]
    return "*" in etags or etag(version) in etags
