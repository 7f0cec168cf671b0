"""Errors of a bundled PostgreSQL; each message says what to do."""


class EmbeddedError(Exception):
    """The bundled PostgreSQL cannot be used."""


class BinariesMissing(EmbeddedError):
    """No usable PostgreSQL was found on this machine."""


class ClusterBusy(EmbeddedError):
    """Another live process holds the directory of the cluster."""


class ClusterUnusable(EmbeddedError):
    """The directory, the account or the version does not allow this cluster to run."""


class StartFailed(EmbeddedError):
    """The server ended before it was ready."""


class DumpFailed(EmbeddedError):
    """A program of PostgreSQL did not succeed."""


class ProgramSilent(DumpFailed):
    """A program of PostgreSQL did not succeed and said nothing, as without room for what it says."""
