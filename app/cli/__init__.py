"""The command line `convener`."""


def main() -> None:
    """Run the command line; ends with one of the exit codes that `convener --help` lists."""
    try:
        from app.secrecy import close_process

        close_process()  # commands hold keys
        # Imported here, so that a part of this package can be imported without all of it.
        from app.cli.commands import build

        build()()
    except SystemExit as end:
        # Typer and Rich make an exit with 1 of it, by which scripts know a refusal.
        if isinstance(end.__context__, BrokenPipeError):
            from worker_agent.broken_pipes import end_by_broken_pipe

            end_by_broken_pipe()
        raise
    except KeyboardInterrupt:  # before a command could take it
        raise SystemExit(130) from None
    except Exception as error:
        # Pydantic makes an error of its own of a Ctrl-C that comes while it builds what checks the settings.
        if type(error).__name__ == "SchemaError" and "KeyboardInterrupt" in str(error):
            raise SystemExit(130) from None
        raise
