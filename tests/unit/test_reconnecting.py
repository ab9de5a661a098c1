"""How long is waited before the next connection."""

from __future__ import annotations

from itertools import pairwise

import pytest

from fluffle import reconnecting
from fluffle.reconnecting import LONGEST_WAIT_S, wait_before


def test_the_first_loss_in_a_while_costs_no_time() -> None:
    assert wait_before(0) == 0


def test_the_waits_grow_with_jitter_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconnecting, "FIRST_WAIT_S", 0.5)

    waits = [[wait_before(losses) for _ in range(50)] for losses in range(1, 12)]

    assert all(0.25 <= wait <= 0.5 for wait in waits[0])
    assert all(max(earlier) <= 2 * min(later) for earlier, later in pairwise(waits))
    assert all(LONGEST_WAIT_S / 2 <= wait <= LONGEST_WAIT_S for wait in waits[-1])
    assert all(len(set(same)) > 1 for same in waits)
