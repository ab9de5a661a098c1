"""What unit tests share."""

import pytest

from fluffle import reconnecting


@pytest.fixture(autouse=True)
def _no_waits_between_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fake broker needs no rest between connections that are lost one after the other."""
    monkeypatch.setattr(reconnecting, "FIRST_WAIT_S", 0.0)
