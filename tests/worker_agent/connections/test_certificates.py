"""The parts of a certificate are those that a library of cryptography reads, and nothing malformed gets through."""

import hashlib
import ssl
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from tests.support.tls import issue
from worker_agent.connections.certificates import expiry, public_key_digest, read_certificate


@pytest.mark.parametrize("year", [2030, 2049, 2050, 2199])
def test_key_and_expiry_are_read(tmp_path: Path, year: int) -> None:
    files = issue(tmp_path, not_after=datetime(year, 3, 4, 5, 6, 7, tzinfo=UTC))
    der = read_certificate(files.certificate)
    reference = x509.load_der_x509_certificate(der)
    spki = reference.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert public_key_digest(der) == hashlib.sha256(spki).hexdigest()
    assert expiry(der) == reference.not_valid_after_utc == datetime(year, 3, 4, 5, 6, 7, tzinfo=UTC)


def test_a_file_without_a_certificate(tmp_path: Path) -> None:
    file = tmp_path / "x.pem"
    file.write_bytes(b"\xff" + ssl.PEM_FOOTER.encode() + ssl.PEM_HEADER.encode())
    with pytest.raises(ValueError, match="no certificate"):
        read_certificate(file)


@pytest.fixture(scope="module")
def der(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return read_certificate(issue(tmp_path_factory.mktemp("tls")).certificate)


def test_every_cut_is_refused(der: bytes) -> None:
    for length in range(len(der)):
        with pytest.raises(ValueError, match=r"."):
            public_key_digest(der[:length])


@given(place=st.integers(0, 400), byte=st.integers(0, 255))
def test_a_changed_byte_is_read_otherwise_or_refused_as_a_value(der: bytes, place: int, byte: int) -> None:
    changed = der[:place] + bytes([byte]) + der[place + 1 :]
    for read in (public_key_digest, expiry):
        try:
            read(changed)
        except ValueError:
            continue


@pytest.mark.parametrize(
    "element",
    [
        b"",
        b"\x30",
        b"\x30\x80\x00\x00",
        b"\x30\x81\x05abcde",
        b"\x30\x85\x00\x00\x00\x00\x01a",
        b"\x30\x01",
        b"\x02\x01a",
    ],
)
def test_lengths_that_others_might_read_otherwise_are_refused(element: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        public_key_digest(element)
