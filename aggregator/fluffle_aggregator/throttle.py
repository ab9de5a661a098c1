"""How often a worker repeats among the last updates, so that fast workers can be made to count less. Pure.

Source of the idea: THROTTLE (a preprint of 2026), where the c-th repeat of a worker weighs 1 / q ** c in a
round that ends when every worker has sent an update. No public text of it was found to compare this with. A
worker that left would never let such a round end, so a window that slides takes its place: the last n - 1
updates, of the n workers in the record's window. Workers that take turns never repeat in it, nor does a lone
worker, and a worker that left is forgotten.
"""

from collections.abc import Sequence


def repeats(worker: str, window: Sequence[tuple[str, float]]) -> int:
    """Return how many of the last n - 1 applied updates are the worker's, if this is its next update.

    `window` has the last updates as (worker, weight), oldest first; a weight of 0 stands for a refused one. n
    is the number of workers in it, this one included.
    """
    senders = [sender for sender, weight in window if weight]
    others = len({*senders} - {worker})
    return senders[len(senders) - others :].count(worker)
