"""All answers to one close record, when some of them must be wrong: what to try to find out which. Pure.

Helpers that answer as they should all answer the same. So without the answers of those that do not, whoever
they are, each group is opened in one way only.
"""

from itertools import combinations
from typing import Final

from fluffle.secure.committee import Committee

# Each is as much work as opening a sum. More helpers than three of seven are not expected to lie.
MOST_TRIED: Final = 64
# Of each group, a digest of the masks that are taken off.
Choice = tuple[bytes, ...]


class Alternatives:
    """The masks that helpers have sent for the groups of a sum; of each helper and group the first ones."""

    def __init__(self, committee: Committee) -> None:
        """Begin without any answer."""
        self._committee = committee
        self._answers: list[dict[str, bytes]] = [{} for _ in committee.groups]
        self._masks: dict[tuple[int, bytes], memoryview] = {}
        self._tried: set[Choice] = set()

    def add(self, group: int, helper: str, digest: bytes, masks: memoryview) -> None:
        """Keep what a helper has answered for a group, whose masks have this digest."""
        if helper not in self._answers[group]:
            self._answers[group][helper] = digest
            self._masks.setdefault((group, digest), masks)

    def masks(self, choice: Choice) -> list[memoryview]:
        """Return the masks of each group."""
        return [self._masks[answer] for answer in enumerate(choice)]

    def next_choice(self) -> Choice | None:
        """Return which masks to try next, None when the answers so far leave nothing to try.

        First as if nobody lied, then as if one helper did, and so on, up to as many as may collude.
        """
        committee = self._committee
        for count in range(committee.colluding + 1):
            for liars in combinations(committee.helpers, count):
                choice = self._without(liars)
                if choice and choice not in self._tried and len(self._tried) < MOST_TRIED:
                    self._tried.add(choice)
                    return choice
        return None

    def _without(self, liars: tuple[str, ...]) -> Choice | None:
        """Return the one way to open each group without these helpers; None if there is none, or another."""
        choice: list[bytes] = []
        for answers in self._answers:
            found = {digest for helper, digest in answers.items() if helper not in liars}
            if len(found) != 1:
                return None
            choice.extend(found)
        return tuple(choice)
