"""Options that several commands share, and how their values are read."""

from typing import Annotated

import typer

from app.domain.agents import AgentType, agent_type


def _agent(value: str | None) -> str | None:
    try:
        return agent_type(value).value if value is not None else None
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


AgentOption = Annotated[
    str | None,
    typer.Option(
        "--agent",
        metavar="AGENT",
        callback=_agent,
        autocompletion=lambda: [agent.value for agent in AgentType],
        help=", ".join(AgentType),
    ),
]
Reason = Annotated[str, typer.Option(help="why; it is kept, and shown to whoever asks")]
