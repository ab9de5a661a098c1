"""Short lives of a federation with secure aggregation: leaders and helpers die, freeze, lie and come late.

More of them, or one again: FLUFFLE_SIMULATION_SEEDS=5000-9999 or =1234 before `pytest tests/simulation`.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from random import Random

import numpy as np
import pytest
from builders import SIZE, an_update
from fake_broker import FakeBroker, FakeServer
from securing import EPOCH, NAMES, PLAN, WORKERS, Helper, a_secure_config, numbers_of
from simulation.aggregators import Aggregator
from simulation.faulty_broker import Aftermath, Heard

from fluffle.framing import record_digest
from fluffle.model import Vector
from fluffle.record import ModelVersion
from fluffle.record_wire import decode_version
from fluffle.secure.closing import CloseRecord, Opening, decode_close, encode_not_opened, opening_pieces
from fluffle.secure.helping import Ledger, Refused, not_opened
from fluffle.secure.modulus import Residues, add_multiple
from fluffle.update import UpdateId
from fluffle.wire import encode_update
from fluffle_aggregator.commit_schedule import CommitSchedule
from fluffle_aggregator.effects import Effect, Now
from fluffle_aggregator.leader import Leader

SEEDS = os.environ.get("FLUFFLE_SIMULATION_SEEDS", "0-149")
AT_ONCE = 75
FAULTS: tuple[Heard, ...] = ("nothing", "all", "late")
MORE_THAN_ANY_TIMEOUT_S = 100.0
REASONS = {
    *("duplicate", "unknown-base", "future-version", "over-share", "not-opened", "unsound-sum"),
    *("too-stale", "second-in-round"),
}


class SecureWorld:
    """A federation in one thread, as a pure function of a seed."""

    def __init__(self, seed: int, *, make_leader: type[Leader] = Leader) -> None:
        chance = self._chance = Random(seed)
        self.log: list[str] = []
        self._buffer_size = chance.choice([3, 3, 4])
        schedule = CommitSchedule(buffer_timeout_s=chance.choice([20.0, 60.0]))
        self._config = a_secure_config(
            buffer_size=self._buffer_size,
            name=chance.choice(["fedbuff", "fedbuff", "fedavg"]),
            schedule=schedule,
        )
        self._topology = self._config.topology
        self._server = FakeServer(longest_wait_s=0)
        self._aftermath = Aftermath()
        self._seconds = 0.0
        with FakeBroker(self._server) as broker:
            broker.declare(self._topology)
        self._aggregators = [
            Aggregator(
                f"a{number}",
                self._server,
                self._aftermath,
                chance,
                make_leader=make_leader,
                clock=lambda: self._seconds,
                now=lambda: chance.uniform(-1e9, 4e9),
            )
            for number in range(chance.randint(1, 3))
        ]
        # In some lives one of the helpers lies, as many as may collude.
        self._liar = chance.choice(NAMES) if chance.random() < 0.3 else ""
        self._helpers = {name: self._helper(name) for name in NAMES}
        self._away: set[str] = set()
        self._sequences = dict.fromkeys(WORKERS, 0)
        self._numbers: dict[UpdateId, Residues] = {}
        self._bodies: dict[UpdateId, bytes] = {}
        self._ids: dict[bytes, UpdateId] = {}
        self._has_come_late = False

    def run(self) -> None:
        """Do so many things at random, and then let the federation come to rest."""
        deeds: dict[Callable[[], str], int] = {
            self._let_an_aggregator_go_on: 40,
            self._let_a_worker_send: 25,
            self._let_a_helper_answer: 25,
            self._let_a_helper_leave_or_return: 3,
            self._let_time_pass: 8,
            self._kill_an_aggregator: 2,
            self._freeze_or_wake_one: 4,
            self._let_something_arrive_late: 5,
            self._restart_the_broker: 1,
        }
        for deed in self._chance.choices(list(deeds), list(deeds.values()), k=self._chance.randint(30, 250)):
            self._do(deed)
        self._come_to_rest()
        self._check()

    def _do(self, deed: Callable[[], str]) -> None:
        self._seconds += 0.01
        if said := deed():
            self.log.append(said)

    def _let_an_aggregator_go_on(self) -> str:
        aggregator = self._chance.choice(self._aggregators)
        if aggregator.is_frozen:
            return ""
        fault = (
            (self._chance.randrange(4), self._chance.choice(FAULTS)) if self._chance.random() < 0.1 else None
        )
        return f"{aggregator.name} {aggregator.turn(self._config, fault)}"

    def _let_a_worker_send(self) -> str:
        versions = [decode_version(each) for each in self._server.bodies(self._topology.models.name)[-3:]]
        if not versions:
            return ""
        worker, base = self._chance.choice(list(WORKERS)), self._chance.choice(versions)
        if self._bodies and self._chance.random() < 0.1:
            again = self._chance.choice(list(self._bodies))
            self._publish(again)
            return f"{again} is sent again"
        self._sequences[worker] += 1
        plain = an_update(worker, self._sequences[worker], base_version=base.version, base_term=base.term)
        seed = len(self._numbers)
        values = [self._chance.uniform(-3, 3) for _ in range(SIZE)]
        self._numbers[plain.id] = numbers_of(values, seed=seed)
        numbers = self._numbers[plain.id]
        if is_nonsense := self._chance.random() < 0.02:
            numbers = np.random.default_rng(seed).integers(2**30, 2**31, SIZE, np.uint32)
        self._bodies[plain.id] = encode_update(EPOCH.masked(plain, numbers))
        self._ids[self._bodies[plain.id]] = plain.id
        self._publish(plain.id)
        return f"{plain.id} is sent{', and is nonsense' if is_nonsense else ''}"

    def _publish(self, update: UpdateId) -> None:
        with FakeBroker(self._server, user=update.worker) as broker:
            broker.publish(self._topology.updates_in.name, "", self._bodies[update], {})

    def _helper(self, name: str) -> Helper:
        if name == self._liar:
            return Helper(name, self._server, self._config, changed=self._lie)
        return Helper(name, self._server, self._config)

    def _lie(self, close: CloseRecord, opening: Opening) -> bytes:
        """Answer as a helper does that wants to stop the federation, or lets it be for once."""
        match self._chance.choice(["wrong masks", "wrong masks", "another record", "nothing"]):
            case "wrong masks":
                masks = memoryview(self._chance.randbytes(len(opening.masks)))
                return bytes(opening_pieces(replace(opening, masks=masks)))
            case "another record":
                ledger = Ledger(close.epoch, close.number + 5, "another")
                refused = Refused("missing-record", "so it says")
                return encode_not_opened(not_opened(close, opening.helper, refused, ledger))
        return bytes(opening_pieces(opening))

    def _let_a_helper_answer(self) -> str:
        name = self._chance.choice(NAMES)
        if name in self._away:
            return ""
        self._helpers[name].answer()
        return f"{name} answers"

    def _let_a_helper_leave_or_return(self) -> str:
        name = self._chance.choice(NAMES)
        if name in self._away:
            self._away.remove(name)
            # It reads all records again, beside its ledger.
            before, after = self._helpers[name], self._helper(name)
            after.ledger, after.opened = before.ledger, before.opened
            self._helpers[name] = after
            return f"{name} is back"
        self._away.add(name)
        return f"{name} leaves"

    def _let_time_pass(self) -> str:
        seconds = self._chance.choice([0.6, 3.0, 25.0, 1300.0])
        self._seconds += seconds
        return f"{seconds} seconds pass"

    def _kill_an_aggregator(self) -> str:
        aggregator = self._chance.choice(self._aggregators)
        aggregator.kill()
        return f"{aggregator.name} is killed"

    def _freeze_or_wake_one(self) -> str:
        aggregator = self._chance.choice(self._aggregators)
        if not aggregator.is_frozen:
            aggregator.freeze()
            return f"{aggregator.name} is frozen"
        if aggregator.broker and self._chance.random() < 0.7:
            aggregator.broker.close()
        return f"{aggregator.name} wakes up and {aggregator.wake()}"

    def _let_something_arrive_late(self) -> str:
        if not self._aftermath.late:
            return ""
        late, self._has_come_late = self._aftermath.late.pop(0), True
        with FakeBroker(self._server) as broker:
            broker.publish(late.exchange, "", late.body, late.headers)
        return f"what was on its way to {late.exchange} arrives late"

    def _restart_the_broker(self) -> str:
        for aggregator in sorted(self._aggregators, key=lambda one: one.leads):
            if aggregator.broker:
                aggregator.broker.close()
        return "the broker restarts"

    def _come_to_rest(self) -> None:
        for each in self._aggregators:
            each.kill()
        while self._aftermath.late:
            self._do(self._let_something_arrive_late)
        for name in list(self._away):
            self._away.remove(name)
        aggregator = self._aggregators[0]
        for turn in range(150):
            self._do(lambda: f"{aggregator.name} {aggregator.turn(self._config)}")
            for helper in self._helpers.values():
                helper.answer()
            self._seconds += MORE_THAN_ANY_TIMEOUT_S if turn % 10 == 9 else 1.0
        self._unacked = set(aggregator.broker.unacked.values()) if aggregator.broker else set()

    @property
    def versions(self) -> int:
        """The number of the newest version."""
        return next(self._lineage()).version

    def _lineage(self) -> Iterator[ModelVersion]:
        """Yield the newest version and those before it."""
        bodies = self._server.bodies(self._topology.models.name)
        by_digest = {record_digest(body): decode_version(body) for body in bodies}
        version = max(by_digest.values(), key=lambda each: each.rank)
        yield version
        while version.parent:
            version = by_digest[version.parent]
            yield version

    def _check(self) -> None:
        """Raise AssertionError for the first promise that is broken."""
        lineage = list(self._lineage())[::-1]
        folded = [one.id for version in lineage for one in version.folded]
        assert len(folded) == len(set(folded)), "an update counts twice"
        for before, after in pairwise(lineage):
            expected = self._after(before, after)
            assert after.vector.tobytes() == expected.tobytes(), f"{after.rank} is not what its updates give"
        opened: list[UpdateId] = []
        for number, closes in self._opened().items():
            assert len(closes) == 1, f"two records of number {number} are opened"
        for closes in self._opened().values():
            opened += [each.id for close in closes for each in decode_close(close).updates]
        assert len(opened) == len(set(opened)), "an update is opened in two sums"
        assert set(folded) <= set(opened)
        self._check_fates(set(folded))

    def _opened(self) -> dict[int, set[bytes]]:
        """Return the close records that any helper has opened, by their number."""
        found: dict[int, set[bytes]] = {}
        for helper in self._helpers.values():
            for close in helper.opened:
                found.setdefault(decode_close(close).number, set()).add(close)
        return found

    def _after(self, before: ModelVersion, after: ModelVersion) -> Vector:
        if not after.folded:
            return before.vector
        total = np.zeros(SIZE, np.uint32)
        for one in after.folded:
            add_multiple(total, self._numbers[one.id], round(one.weight * PLAN.greatest))
        delta = PLAN.fixed_point.decode(PLAN.modulus.signed(total), PLAN.greatest)
        step: Vector = before.vector + np.divide(delta, np.float32(len(after.folded)))
        return step

    def _check_fates(self, folded: set[UpdateId]) -> None:
        refused: set[UpdateId] = set()
        for delivery in self._server.queue(self._topology.rejected.name).ready:
            reason = delivery.headers.get("reason", delivery.headers.get("x-first-death-reason"))
            assert reason in {*REASONS, "delivery_limit"}, reason
            # Helpers refuse a record only if one of a leader that is gone came before it.
            is_of_helpers = "helpers do not open the sum" in str(delivery.headers.get("detail"))
            assert self._has_come_late or not is_of_helpers, "a leader closed a sum that nobody opens"
            if reason != "duplicate":
                refused.add(self._ids[delivery.body])
        queued = {*self._unacked, *self._server.bodies(self._topology.updates.name)}
        waiting = {self._ids[body] for body in queued & self._ids.keys()}
        lost = set(self._bodies) - folded - refused - waiting
        assert not lost, f"nobody knows what became of {sorted(map(str, lost))}"
        workers = {each.worker for each in waiting - folded}
        assert len(workers) < 3, f"updates of {len(workers)} workers wait, and nothing comes of them"


def live_through(seed: int, *, make_leader: type[Leader] = Leader) -> int:
    """Run one simulation, and return how many versions it made.

    What it finds is an AssertionError with the seed and all that happened.
    """
    world = SecureWorld(seed, make_leader=make_leader)
    try:
        world.run()
    except Exception as error:
        happened = "\n".join(world.log)
        raise AssertionError(
            f"{happened}\n{type(error).__name__}: {error}\n"
            f"again: FLUFFLE_SIMULATION_SEEDS={seed} .venv/bin/pytest tests/simulation"
        ) from error
    return world.versions


def blocks(seeds: str) -> list[range]:
    """Return the seeds of "FIRST-LAST" or of a single number, in blocks of one test each."""
    first, _, last = seeds.partition("-")
    end = int(last or first) + 1
    return [range(start, min(start + AT_ONCE, end)) for start in range(int(first), end, AT_ONCE)]


@pytest.mark.parametrize("seeds", blocks(SEEDS), ids=lambda seeds: f"{seeds[0]}-{seeds[-1]}")
def test_whoever_dies_or_comes_late_each_update_is_in_one_sum_and_each_sum_in_one_version(
    seeds: range,
) -> None:
    versions = [live_through(seed) for seed in seeds]

    # They are not empty: most make several versions.
    assert sum(versions) > 2 * len(versions)


class AsksForAnother(Leader):
    """Closes its buffer again when a sum was closed already: the next leader drops what the head says."""

    def begin(self, now: Now) -> list[Effect]:
        """See Leader."""
        if self._securing and self.model.secure:
            self._securing.awaited = None
            self.model.secure.drop()
        return super().begin(now)


class ForgetsWhatWaits(Leader):
    """Drops what waits beside a sum when it is opened."""

    def tick(self, now: Now) -> list[Effect]:
        """See Leader."""
        if self._securing and self._securing.awaited is None:
            while self._securing.waiting.next_aside():
                pass
        return super().tick(now)


@pytest.mark.parametrize(
    ("make_leader", "says"),
    [
        (AsksForAnother, "a leader closed a sum that nobody opens"),
        (ForgetsWhatWaits, "nothing comes of them|nobody knows"),
    ],
    ids=["asks for another", "forgets what waits"],
)
def test_a_leader_that_breaks_a_promise_of_secure_aggregation_is_found_out(
    make_leader: type[Leader], says: str
) -> None:
    def live_on() -> None:
        for seed in range(100):
            live_through(seed, make_leader=make_leader)

    with pytest.raises(AssertionError, match=says):
        live_on()
