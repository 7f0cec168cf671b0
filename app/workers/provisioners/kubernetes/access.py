"""Access to an API server: from within the cluster by its service account, from elsewhere by a kubeconfig."""

import base64
import contextlib
import json
import os
import ssl
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_EXEC_SECONDS = 10.0
# Asked again a little before it ends.
_SPARE_SECONDS = 60.0


class AccessRefused(Exception):
    """There are no usable credentials for an API server; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterAccess:
    """Address of an API server, how to trust it, and the namespace that is meant where none is named.

    `token` returns the bearer token to show now, None where a certificate is shown instead; `renew`, called after a
    refusal, makes it look anew.
    """

    server: str
    namespace: str
    trust: ssl.SSLContext | bool
    token: Callable[[], str | None]
    renew: Callable[[], None] = lambda: None


def in_cluster(environment: Mapping[str, str] = os.environ, account: Path = _ACCOUNT) -> ClusterAccess:
    """Access of a pod by its service account. Raises AccessRefused outside of a cluster."""
    host, port = environment.get("KUBERNETES_SERVICE_HOST"), environment.get("KUBERNETES_SERVICE_PORT", "443")
    if not host:
        raise AccessRefused(
            "this is no pod (KUBERNETES_SERVICE_HOST is not set): name a kubeconfig by CONVENER_KUBECONFIG"
        )
    try:
        trust = ssl.create_default_context(cafile=str(account / "ca.crt"))
        namespace = (account / "namespace").read_text().strip()
        (account / "token").read_text()
    except OSError as error:
        raise AccessRefused(
            f"the service account cannot be read ({error}): is automountServiceAccountToken on?"
        ) from None
    return ClusterAccess(
        server=f"https://{f'[{host}]' if ':' in host else host}:{port}",
        namespace=namespace,
        trust=trust,
        # The kubelet replaces it well before it expires, so it is read for each call.
        token=lambda: (account / "token").read_text().strip(),
    )


def from_kubeconfig(path: Path) -> ClusterAccess:
    """Access by the current context of a kubeconfig, which needs the extra `kubernetes`. Raises AccessRefused."""
    try:
        document = _read_yaml(path)
        context = _named(document, "contexts", document["current-context"])["context"]
        cluster = _named(document, "clusters", context["cluster"])["cluster"]
        user = _named(document, "users", context["user"])["user"] if context.get("user") else {}
        server = str(cluster["server"]).rstrip("/")
        trust = _trust(path.parent, cluster, user)
    except (OSError, KeyError, TypeError, ValueError, ssl.SSLError) as error:
        raise AccessRefused(f"the kubeconfig {path} cannot be used: {type(error).__name__}: {error}") from None
    namespace = str(context.get("namespace") or "default")
    if "exec" in user:
        command = _ExecToken(user["exec"], path.parent)
        return ClusterAccess(server=server, namespace=namespace, trust=trust, token=command.token, renew=command.renew)
    if "tokenFile" in user:
        token_file = path.parent / user["tokenFile"]
        return ClusterAccess(
            server=server, namespace=namespace, trust=trust, token=lambda: token_file.read_text().strip()
        )
    token = user.get("token")
    return ClusterAccess(server=server, namespace=namespace, trust=trust, token=lambda: token)


class _ExecToken:
    """Token of a command, as clouds hand them out (`client.authentication.k8s.io`); kept until it expires."""

    def __init__(self, command: Mapping[str, Any], directory: Path) -> None:
        self._words = [str(command["command"]), *map(str, command.get("args") or ())]
        self._variables = {str(entry["name"]): str(entry["value"]) for entry in command.get("env") or ()}
        self._version = str(command["apiVersion"])
        self._directory = directory
        self._token: str | None = None
        self._expires_at: datetime | None = None

    def renew(self) -> None:
        self._token = None

    def token(self) -> str | None:
        if self._token is None or (
            self._expires_at and (self._expires_at - datetime.now(UTC)).total_seconds() < _SPARE_SECONDS
        ):
            self._read()
        return self._token

    def _read(self) -> None:
        information = {"kind": "ExecCredential", "apiVersion": self._version, "spec": {"interactive": False}}
        variables = {**os.environ, **self._variables, "KUBERNETES_EXEC_INFO": json.dumps(information)}
        try:
            answer = subprocess.run(
                self._words,
                env=variables,
                cwd=self._directory,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=True,
                timeout=_EXEC_SECONDS,
            )
            status = json.loads(answer.stdout)["status"]
            self._token = str(status["token"])
        except (OSError, subprocess.SubprocessError, ValueError, KeyError, TypeError) as error:
            # Its output may be a secret, so it is not told.
            raise AccessRefused(f"{self._words[0]} gave no token ({type(error).__name__})") from None
        expires = status.get("expirationTimestamp")
        self._expires_at = datetime.fromisoformat(expires) if expires else None


def _read_yaml(path: Path) -> Any:
    try:
        from ruamel.yaml import YAML
        from ruamel.yaml.error import YAMLError
    except ImportError:
        raise AccessRefused("a kubeconfig needs the extra: pip install 'convener[kubernetes]'") from None
    try:
        return YAML(typ="safe", pure=True).load(path.read_text())
    except YAMLError as error:
        raise ValueError(str(error)) from None


def _named(document: Mapping[str, Any], kind: str, name: str) -> Mapping[str, Any]:
    for entry in document.get(kind) or ():
        if entry.get("name") == name:
            return dict(entry)
    raise KeyError(f"{kind}: {name}")


def _trust(directory: Path, cluster: Mapping[str, Any], user: Mapping[str, Any]) -> ssl.SSLContext | bool:
    if not str(cluster["server"]).startswith("https://"):
        return True
    if cluster.get("insecure-skip-tls-verify"):
        raise ValueError("insecure-skip-tls-verify is set: name a certificate-authority instead")
    data = cluster.get("certificate-authority-data")
    text = base64.b64decode(data).decode() if data else None
    file = cluster.get("certificate-authority")
    context = ssl.create_default_context(cafile=str(directory / file) if file else None, cadata=text)
    with _as_file(directory, user, "client-certificate") as certificate, _as_file(directory, user, "client-key") as key:
        if certificate and key:
            context.load_cert_chain(certificate, key)
    return context


@contextlib.contextmanager
def _as_file(directory: Path, user: Mapping[str, Any], name: str) -> Iterator[Path | None]:
    """The file of a certificate or key; of one that stands in the kubeconfig itself a file that nobody else reads."""
    if data := user.get(f"{name}-data"):
        with tempfile.NamedTemporaryFile() as file:  # 0600; a context of TLS reads from files only
            file.write(base64.b64decode(data))
            file.flush()
            yield Path(file.name)
    else:
        yield directory / user[name] if user.get(name) else None
