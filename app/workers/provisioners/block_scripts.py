"""Scripts of jobs: what a batch scheduler runs on the first node of a block, which starts a pilot on each.

A site that needs more (modules, a container, another launcher) has a file of its own, CONVENER_BLOCK_TEMPLATE: a Jinja
template with `command` (quoted for the shell, as are its words), `name`, `nodes`, `slots` and `walltime_seconds`.
"""

# A node that fails takes its own pilot along and no other.
SLURM = """\
#!/bin/bash
srun --nodes={{ nodes }} --ntasks={{ nodes }} --ntasks-per-node=1 --no-kill --kill-on-bad-exit=0 --wait=0 {{ command }}
"""

# Tasks of pbsdsh begin with hardly any environment. Without a variable for the end of the job the pilot is told the
# walltime, and less than that, as it begins a little after the job.
PBS = """\
#!/bin/bash
environment=$(declare -px $(compgen -e | grep -v -e '^PBS_' -e '^HOSTNAME$' -e '^TMPDIR$'))
command=$(cat <<'END'
exec {{ command.replace(' -- ', ' --seconds ' ~ [walltime_seconds - 30, 30] | max ~ ' -- ', 1) }}
END
)
pbsdsh -- /bin/bash -c "$environment
$command"
"""

TEMPLATES = {"slurm": SLURM, "pbs": PBS}


class UnusableTemplate(Exception):
    """The script cannot be made from the template; the message says why."""


def filled(template: str, **values: object) -> str:
    """The script of a job. Raises UnusableTemplate."""
    # Imported here, as few control planes have blocks, and all would start later for it.
    from jinja2 import Environment, StrictUndefined, TemplateError

    try:
        return Environment(undefined=StrictUndefined, autoescape=False).from_string(template).render(values)  # noqa: S701
    except TemplateError as error:
        raise UnusableTemplate(str(error)) from None
