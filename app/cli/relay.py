"""`convener relay`: speaks for the workers of a host, or of compute nodes that cannot call out."""

import os
from typing import Annotated

import typer

from app.logs import start_logging
from app.settings import take_settings
from app.settings_sources import SettingsError
from app.terminal import output
from app.terminal.connection import settings_failure
from app.terminal.failures import ExitCode, Failure
from worker_agent.connections.trust import read_trust

EPILOG = output.examples(
    "convener relay --url https://lab:8765 --ca-file ca.pem",
    "convener relay --url https://lab:8765 --pin sha256:... --listen unix:/run/user/1000/relay.sock",
    "convener-worker --url http://127.0.0.1:8770,https://lab:8765 --handlers my_agents",
)


def relay(
    url: Annotated[str, typer.Option(envvar="CONVENER_URL", help="address of the control plane")],
    listen: Annotated[
        str, typer.Option(metavar="ADDRESS", help="HOST:PORT or unix:/path for the workers; port 0 takes any free one")
    ] = "127.0.0.1:8770",
    ca_file: Annotated[str | None, typer.Option(help="authorities that vouch for the control plane")] = None,
    pin: Annotated[str | None, typer.Option(help="sha256: digest of its public key, instead of an authority")] = None,
    allow_plain_http: Annotated[
        bool, typer.Option("--allow-plain-http", help="HTTP to another machine: the network itself is protected")
    ] = False,
    listen_beyond: Annotated[
        bool,
        typer.Option("--listen-beyond-this-machine", help="also where workers' keys cross the network in clear"),
    ] = False,
) -> None:
    """Speak for the workers of this host to the control plane, until SIGTERM or Ctrl-C.

    Workers connect to it as to the control plane, each with its own key. Their frequent calls (leases, starts,
    progress, results, failures, heartbeats) go on together, many in one request; all others pass through. It keeps
    nothing: after kill -9, workers go on with another relay, or with the further addresses in their own --url. A
    control plane that has no exchange yet gets every call by itself.
    """
    # Imported here, since the relay brings a whole web server.
    from app.relay.server import UnusableAddress, read_listen, serve

    chosen = {"CONVENER_CA_FILE": ca_file, "CONVENER_TLS_PIN": pin}
    chosen["CONVENER_ALLOW_PLAIN_HTTP"] = "true" if allow_plain_http else None
    environment = {**os.environ, **{name: value for name, value in chosen.items() if value is not None}}
    try:
        start_logging(take_settings())
        place = read_listen(listen)
        if not (place.is_local or listen_beyond):
            raise UnusableAddress(
                f"other machines reach {listen}, and workers' keys would cross the network in clear: listen on "
                "127.0.0.1 or a unix socket, or add --listen-beyond-this-machine where the network is protected"
            )
        serve(url, read_trust(environment), place)
    except SettingsError as error:
        raise settings_failure(error) from None
    except UnusableAddress as error:
        raise Failure(str(error), ExitCode.USAGE, hint="look at --listen") from None
    except ValueError as error:
        raise Failure(str(error), ExitCode.USAGE, hint="look at --url, CONVENER_URL and the variables of TLS") from None
