"""The few parts of an X.509 certificate that clients pin and servers watch, read from its DER form."""

import hashlib
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

_INTEGER, _SEQUENCE, _VERSION = 0x02, 0x30, 0xA0
_UTC_TIME, _GENERALIZED_TIME = 0x17, 0x18
# serialNumber, signature, issuer, validity, subject, subjectPublicKeyInfo (RFC 5280, section 4.1).
_FIELDS = [_INTEGER, *[_SEQUENCE] * 5]
_VALIDITY, _PUBLIC_KEY = 3, 5


def public_key_digest(certificate: bytes) -> str:
    """SHA-256 of the public key with its algorithm (SPKI), in hexadecimal. Raises ValueError for what is no DER."""
    return hashlib.sha256(_fields(certificate)[_PUBLIC_KEY][1]).hexdigest()


def expiry(certificate: bytes) -> datetime:
    """The end of its validity. Raises ValueError for what is no DER."""
    _, (tag, _, text) = _elements(_fields(certificate)[_VALIDITY][2])
    if tag not in (_UTC_TIME, _GENERALIZED_TIME):
        raise ValueError("the certificate names no end of its validity")
    # UTCTime has two digits for a year up to 2049.
    century = ("20" if text < b"50" else "19") if tag == _UTC_TIME else ""
    return datetime.strptime(century + text.decode(), "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)


def read_certificate(file: Path) -> bytes:
    """The first certificate of a PEM file, in DER. Raises OSError, and ValueError when there is none."""
    text = file.read_text(encoding="ascii", errors="replace")
    begin, end = text.find(ssl.PEM_HEADER), text.find(ssl.PEM_FOOTER)
    if not 0 <= begin < end:
        raise ValueError(f"{file} holds no certificate in PEM form")
    return ssl.PEM_cert_to_DER_cert(text[begin : end + len(ssl.PEM_FOOTER)])


def _fields(certificate: bytes) -> list[tuple[int, bytes, bytes]]:
    """The fields of the certificate without the version, each as tag, whole element and content."""
    # Strict, because a certificate that this reads otherwise than OpenSSL could show one key and use another.
    outer = list(_elements(certificate))
    if [tag for tag, _, _ in outer] != [_SEQUENCE]:
        raise ValueError("not a certificate in DER form")
    tag, _, content = next(_elements(outer[0][2]), (0, b"", b""))
    fields = list(_elements(content)) if tag == _SEQUENCE else []
    fields = fields[1:] if fields and fields[0][0] == _VERSION else fields
    if [tag for tag, _, _ in fields[: len(_FIELDS)]] != _FIELDS:
        raise ValueError("not a certificate of X.509")
    return fields


def _elements(data: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Tag, whole element and content of each element in a row. Raises ValueError for a length that is no DER."""
    while data:
        header, length = 2, data[1] if len(data) > 1 else 0x80
        if length & 0x80:
            header += length & 0x7F
            length = int.from_bytes(data[2:header], "big")
            if header == 2 or header > 6 or length < 0x80 or data[2:3] == b"\0":
                raise ValueError("an element has no definite, shortest length")
        if header + length > len(data):
            raise ValueError("an element is cut off")
        yield data[0], data[: header + length], data[header : header + length]
        data = data[header + length :]
