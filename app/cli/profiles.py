"""`convener profiles`: address, key and trust of several control planes."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from app.secrecy import write_private
from app.terminal import output, profiles
from app.terminal.connection import read_key
from app.terminal.failures import ExitCode, Failure
from app.terminal.output import Format, Output
from app.terminal.profiles import Profile
from worker_agent.connections.clients import check_address
from worker_agent.connections.trust import read_trust

app = typer.Typer(help="Keep address, key and trust of several control planes, for --profile.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(metavar="NAME", autocompletion=profiles.names, help="of the profile")]
_KEY = ".key"


@app.command(
    epilog=output.examples(
        "convener profiles add lab --url https://lab.example.org:8765 --pin sha256:... < lab.key",
        "convener profiles add home --url http://127.0.0.1:8765 --key-file ~/operator.key",
    )
)
def add(
    name: Name,
    address: Annotated[str, typer.Option("--url", help="address of the service")],
    key_file: Annotated[
        Path | None, typer.Option(help="file of the key; without, the key is asked for, or read from stdin, and kept")
    ] = None,
    ca_file: Annotated[Path | None, typer.Option(help="authorities that vouch for the service")] = None,
    pin: Annotated[str | None, typer.Option(help="sha256: digest of the service's public key")] = None,
    namespace: Annotated[str | None, typer.Option(help="only of this namespace, and into it")] = None,
    allow_plain_http: Annotated[
        bool, typer.Option("--allow-plain-http", help="also to another machine: the network itself is protected")
    ] = False,
    fmt: Output = Format.TABLE,
) -> None:
    """Make a profile, or replace it. `convener --profile NAME ...` uses it, and CONVENER_PROFILE."""
    kept = profiles.path_of(name, _KEY)
    draft = Profile(
        url=address,
        key_file=str((key_file or kept).expanduser().absolute()),
        ca_file=None if ca_file is None else str(ca_file.expanduser().absolute()),
        pin=pin,
        namespace=namespace,
        allow_plain_http=allow_plain_http,
    )
    try:
        # As every command will.
        check_address(address, read_trust({name: value for name, value in draft.variables().items() if value}))
    except ValueError as error:
        raise Failure(str(error), ExitCode.USAGE, hint="look at --url, --ca-file and --pin") from None
    if key_file is None:
        key = (typer.prompt("key", hide_input=True, err=True) if sys.stdin.isatty() else sys.stdin.read()).strip()
        if not key.startswith("cvn_") or not key.isprintable():
            raise Failure("that is no key", ExitCode.USAGE, hint="a key looks like cvn_<id>_<secret>")
        profiles.directory().mkdir(parents=True, exist_ok=True, mode=0o700)
        write_private(kept, f"{key}\n")
    else:
        read_key(key_file.expanduser())
    profiles.write(name, draft)
    sentence = f"`convener --profile {name} whoami` tries it; CONVENER_PROFILE={name} makes it the usual one"
    output.present({"name": name, **asdict(draft)}, fmt, lambda: Text(output.plain(sentence)))


@app.command(epilog=output.examples("convener profiles ls", "convener profiles ls -o json | jq -r '.items[].name'"))
def ls(fmt: Output = Format.TABLE) -> None:
    """List the profiles of this user."""
    items = [{"name": name, **asdict(profiles.read(name))} for name in profiles.names()]
    table = output.table("NAME", "URL", "KEY FILE", "NAMESPACE", flexible="KEY FILE")
    for item in items:
        table.add_row(*(output.cell(item[field]) for field in ("name", "url", "key_file", "namespace")))
    nothing = Text("there are none: `convener profiles add NAME --url URL` makes one")
    output.present({"items": items}, fmt, lambda: table if items else nothing)


@app.command(epilog=output.examples("convener profiles rm lab"))
def rm(name: Name, fmt: Output = Format.TABLE) -> None:
    """Forget a profile, and the key that was kept with it; the key itself stays good."""
    path = profiles.path_of(name)
    if not path.exists():
        raise Failure(f"there is no profile {name}", ExitCode.NOT_FOUND, hint="`convener profiles ls` lists them")
    path.unlink()
    profiles.path_of(name, _KEY).unlink(missing_ok=True)
    output.present({"name": name}, fmt, lambda: Text(output.plain(f"forgot {name}")))
