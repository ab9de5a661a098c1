"""What must be true of a real federation, and where tests find it."""

import json
from pathlib import Path

from brokers import all_versions

from fluffle.record import ModelVersion
from harness.federation import DEADLINE_S, HEARTBEAT_S, ROOT, Federation, Part, applied_ids, wait_until

__all__ = [
    "DEADLINE_S",
    "HEARTBEAT_S",
    "ROOT",
    "TESTS",
    "Federation",
    "Part",
    "applied_ids",
    "assert_every_confirmed_update_counts_once",
    "assert_refused",
    "end_and_balance",
    "wait_until",
]

TESTS = Path(__file__).parent


def assert_every_confirmed_update_counts_once(federation: Federation, final: ModelVersion) -> None:
    """Hold the ledger of the workers' logs against what the final version says."""
    applied = applied_ids(final)
    queued = federation.waiting_in(federation.topology.updates.name)
    rejected = federation.waiting_in(federation.topology.rejected.name)
    confirmed = federation.confirmed()

    assert confirmed, "no update was confirmed at all"
    assert confirmed <= applied | queued | rejected
    # Each fold counts one more update for its worker; a set holds each id once: equal only if none is twice.
    assert final.updates == len(applied)


def assert_refused(part: Part, *words: str) -> None:
    """The process ends with 2, and its last line is one sentence with these words in it."""
    code = part.wait_for_exit()
    log = part.log.read_text()
    last = json.loads(log.strip().splitlines()[-1])
    assert code == 2, log
    assert "Traceback" not in log
    assert last["level"] == "error"
    for word in words:
        assert word in last["event"]


def end_and_balance(federation: Federation, *, workers: list[Part], aggregators: list[Part]) -> ModelVersion:
    """Ask the workers to stop, let the aggregators fold what waits, end them, and balance the ledger."""
    for part in workers:
        part.ask_to_stop()
    codes = {part.name: part.wait_for_exit() for part in workers}
    with federation.connect() as broker:
        queue = federation.topology.updates.name
        wait_until(lambda: broker.state(queue).messages == 0, f"an aggregator to take all from {queue}")
    for part in aggregators:
        part.ask_to_stop()
    codes |= {part.name: part.wait_for_exit() for part in aggregators}
    with federation.connect() as broker:
        history = list(all_versions(broker, federation.topology))
    folded = [one.id for version in history for one in version.folded]

    assert codes == dict.fromkeys(codes, 0)
    assert len(folded) == len(set(folded)) == history[-1].updates
    assert_every_confirmed_update_counts_once(federation, history[-1])
    return history[-1]
