"""How many rounds the workers of tests/tasks/gated_task.py and gated_sum_task.py may finish."""

from harness.federation import Federation


def allow(federation: Federation, rounds: int) -> None:
    """Let each process with a gated task finish so many rounds in its life."""
    draft = federation.folder / "rounds.part"
    draft.write_text(str(rounds))
    draft.replace(federation.folder / "rounds")
