"""The commands of tasks."""

from app.queue.cli import tasks
from app.scaling.cli import export_trace

app = tasks.app
# A trace is made of tasks and read by the simulation, so the command stands with the tasks.
app.command("export-trace", epilog=export_trace.EPILOG)(export_trace.export_trace)
