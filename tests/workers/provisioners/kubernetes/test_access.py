"""Credentials for an API server: the service account of a pod, and every kind of user in a kubeconfig."""

import json
import ssl
import stat
from pathlib import Path
from typing import Any

import pytest
import trustme

from app.workers.provisioners.kubernetes.access import AccessRefused, from_kubeconfig, in_cluster


def _account(path: Path) -> Path:
    (path / "ca.crt").write_bytes(trustme.CA().cert_pem.bytes())
    (path / "namespace").write_text("lab\n")
    (path / "token").write_text("first")
    return path


def test_a_pod_uses_its_service_account_and_reads_its_token_anew(tmp_path: Path) -> None:
    environment = {"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "6443"}
    access = in_cluster(environment, _account(tmp_path))
    assert (access.server, access.namespace, access.token()) == ("https://[fd00::1]:6443", "lab", "first")
    assert isinstance(access.trust, ssl.SSLContext)
    (tmp_path / "token").write_text("second\n")
    assert access.token() == "second"


def test_outside_of_a_cluster_a_kubeconfig_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(AccessRefused, match="CONVENER_KUBECONFIG"):
        in_cluster({}, tmp_path)
    with pytest.raises(AccessRefused, match="automountServiceAccountToken"):
        in_cluster({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, tmp_path)


def _kubeconfig(path: Path, user: dict[str, Any], **cluster: Any) -> Path:
    document = {
        "current-context": "lab",
        "contexts": [{"name": "lab", "context": {"cluster": "c", "user": "u", "namespace": "science"}}],
        "clusters": [{"name": "c", "cluster": {"server": "https://k8s.example:6443/", **cluster}}],
        "users": [{"name": "u", "user": user}],
    }
    file = path / "kubeconfig"
    file.write_text(json.dumps(document))  # JSON is YAML
    return file


def test_a_kubeconfig_with_a_token_and_one_with_a_file_of_it(tmp_path: Path) -> None:
    access = from_kubeconfig(_kubeconfig(tmp_path, {"token": "t"}))
    assert (access.server, access.namespace, access.token()) == ("https://k8s.example:6443", "science", "t")
    (tmp_path / "token").write_text("from the file")
    assert from_kubeconfig(_kubeconfig(tmp_path, {"tokenFile": "token"})).token() == "from the file"


def test_a_certificate_of_a_client_is_used_and_its_key_not_left_behind(tmp_path: Path) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("me@example")
    (tmp_path / "key.pem").write_bytes(issued.private_key_pem.bytes())
    (tmp_path / "cert.pem").write_bytes(issued.cert_chain_pems[0].bytes())
    (tmp_path / "ca.pem").write_bytes(authority.cert_pem.bytes())
    user = {"client-certificate": "cert.pem", "client-key": "key.pem"}
    access = from_kubeconfig(_kubeconfig(tmp_path, user, **{"certificate-authority": "ca.pem"}))
    assert isinstance(access.trust, ssl.SSLContext)
    assert access.token() is None


def test_a_command_is_asked_for_a_token_once_and_after_a_refusal(tmp_path: Path) -> None:
    command = tmp_path / "login"
    command.write_text(
        "#!/bin/sh\necho x >> $COUNT\n"
        'echo \'{"status": {"token": "from-the-command", "expirationTimestamp": "2999-01-01T00:00:00Z"}}\'\n'
    )
    command.chmod(stat.S_IRWXU)
    count = tmp_path / "count"
    specification = {
        "apiVersion": "client.authentication.k8s.io/v1",
        "command": str(command),
        "env": [{"name": "COUNT", "value": str(count)}],
    }
    access = from_kubeconfig(_kubeconfig(tmp_path, {"exec": specification}))
    assert [access.token(), access.token()] == 2 * ["from-the-command"]
    assert count.read_text() == "x\n"
    access.renew()
    access.token()
    assert count.read_text() == "x\nx\n"


def test_a_command_that_fails_tells_nothing_of_what_it_said(tmp_path: Path) -> None:
    specification = {"apiVersion": "client.authentication.k8s.io/v1", "command": "/bin/echo", "args": ["s3cret"]}
    access = from_kubeconfig(_kubeconfig(tmp_path, {"exec": specification}))
    with pytest.raises(AccessRefused) as error:
        access.token()
    assert "s3cret" not in str(error.value)


@pytest.mark.parametrize("text", ["", "a: [", "current-context: other", "contexts: 3"])
def test_a_kubeconfig_that_is_none_is_named(tmp_path: Path, text: str) -> None:
    file = tmp_path / "kubeconfig"
    file.write_text(text)
    with pytest.raises(AccessRefused, match="cannot be used"):
        from_kubeconfig(file)
    with pytest.raises(AccessRefused, match="No such file"):
        from_kubeconfig(tmp_path / "missing")


def test_a_server_that_is_not_to_be_trusted_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AccessRefused, match="insecure-skip-tls-verify"):
        from_kubeconfig(_kubeconfig(tmp_path, {"token": "t"}, **{"insecure-skip-tls-verify": True}))
