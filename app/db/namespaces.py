"""SQL conditions on the namespace of rows, which the stored name of their goal tells."""

from app.kernel.namespaces import DEFAULT


def _is_named(name: str) -> str:
    return f"{name} LIKE '@%/%'"


def _namespace_of(name: str) -> str:
    return f"substr(split_part({name}, '/', 1), 2)"


def within(name: str = "goal_id") -> str:
    """Condition for rows of the namespace `:namespace`, all where it is null; for few rows, as no index serves it."""
    return f"""(CAST(:namespace AS text) IS NULL OR CAST(:namespace AS text) =
    CASE WHEN {_is_named(name)} THEN {_namespace_of(name)} ELSE '{DEFAULT}' END)"""


WITHIN = within()


def condition(namespace: str) -> str:
    """Condition for rows of one namespace, with the parameter `:namespace`.

    Its expressions are those of the indexes `tasks_namespace` and `task_history_namespace`, in which `default` is not.
    """
    if namespace == DEFAULT:
        # The parameter is named only because it is always given.
        return f"({_is_named('goal_id')}) IS NOT TRUE AND CAST(:namespace AS text) = '{DEFAULT}'"
    return f"{_is_named('goal_id')} AND {_namespace_of('goal_id')} = :namespace"
