"""Secure aggregation in tests: keys, masked updates, and helpers that answer on a fake server."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from builders import FEDERATION, SIZE, a_config, a_layout, a_strategy, a_vector, a_version, an_update
from fake_broker import FakeBroker, FakeServer
from leading import Clock, work_off

from fluffle.broker import Broker
from fluffle.errors import Unroutable
from fluffle.model import Layout
from fluffle.plan import Plan
from fluffle.record import ModelVersion
from fluffle.secure.closing import CloseRecord, Opening, decode_close, encode_not_opened, opening_pieces
from fluffle.secure.committee import Committee
from fluffle.secure.helping import Ledger, Refused, not_opened, openings
from fluffle.secure.key_files import WorkerKey, new_helper_keys, public_part
from fluffle.secure.masking import Masks, whole_numbers
from fluffle.secure.measured import measured_values
from fluffle.secure.modulus import Residues, add_multiple
from fluffle.secure.plan import SecurePlan
from fluffle.secure.registry import Registry
from fluffle.sites import SiteEvaluation
from fluffle.update import WeightUpdate
from fluffle_aggregator.commit_schedule import CommitSchedule, prefetch_of
from fluffle_aggregator.config import AggregatorConfig
from fluffle_aggregator.global_model import GlobalModel
from fluffle_aggregator.goal import Goal
from fluffle_aggregator.head import Head
from fluffle_aggregator.leading import Leading
from fluffle_aggregator.secure.state import SecureState
from fluffle_aggregator.secure.weighing import secured
from fluffle_aggregator.survey import NO_AIM, SurveyAim

NAMES = ("helper-1", "helper-2", "helper-3")
COMMITTEE = Committee(NAMES, 1)
WORKERS = {name: WorkerKey.new(FEDERATION, name) for name in ("w1", "w2", "w3", "w4", "w5")}
PLAN = SecurePlan(epoch=1, clip=4.0, bits=16, modulus_bits=32, greatest=64)


@dataclass(eq=False)
class Epoch:
    """The keys of an epoch."""

    number: int

    def __post_init__(self) -> None:
        """Make them."""
        public, keys = new_helper_keys(FEDERATION, self.number, COMMITTEE)
        self.keys = {key.name: key for key in keys}
        self.registry = Registry(
            federation=FEDERATION,
            epoch=self.number,
            helpers=NAMES,
            colluding=1,
            group_keys=public.group_keys,
            workers={name: public_part(key.private) for name, key in WORKERS.items()},
        )

    def masked(self, update: WeightUpdate, numbers: Residues, plan: SecurePlan = PLAN) -> WeightUpdate:
        """Return an update under the masks of its worker."""
        return Masks(self.registry, WORKERS[update.id.worker].private).masked(update, numbers, plan)


EPOCH = Epoch(1)


def numbers_of(
    values: Sequence[float], behind: Sequence[float] = (), seed: int = 0, *, plan: SecurePlan = PLAN
) -> Residues:
    """Return what is masked of an update with these values, and others behind them."""
    return whole_numbers(a_vector(*values), np.array(behind, np.float64), plan, np.random.default_rng(seed))


def a_masked(
    worker: str = "w1",
    sequence: int = 1,
    *,
    base_version: int = 0,
    base_term: int | None = None,
    values: Sequence[float] = (1.0,) * SIZE,
    statistics: Sequence[float] = (),
    layout: Layout | None = None,
    epoch: Epoch = EPOCH,
    plan: SecurePlan = PLAN,
    found: SiteEvaluation | None = None,
) -> WeightUpdate:
    """Return a masked update, with what its site has found at last."""
    plain = an_update(
        worker, sequence, base_version=base_version, base_term=base_term, layout=layout or a_layout()
    )
    plan = replace(plan, epoch=epoch.number)
    behind = [*statistics, *measured_values(found, plan)]
    return epoch.masked(plain, numbers_of(values, behind, plan=plan), plan)


def a_secure_config(
    *,
    buffer_size: int = 3,
    name: str = "fedbuff",
    optimizer: str = "sgd",
    first: ModelVersion | None = None,
    goal: Goal | None = None,
    epoch: Epoch = EPOCH,
    registry: Registry | None = None,
    schedule: CommitSchedule | None = None,
    fewest_workers: int = 3,
    secure: SecurePlan = PLAN,
    survey_aim: SurveyAim = NO_AIM,
) -> AggregatorConfig:
    """Return what an aggregator with secure aggregation is told when it starts."""
    secure = replace(secure, epoch=epoch.number)
    registry = registry or epoch.registry
    strategy = secured(a_strategy(name, buffer_size=buffer_size, optimizer=optimizer), secure)
    plan = Plan(
        secure=secure,
        codec=secure.codec,
        one_update_per_version=strategy.one_update_per_version,
        sites_decide=bool(goal and goal.by_sites),
    )
    schedule = schedule or CommitSchedule()

    def continue_from(head: Head) -> GlobalModel:
        return GlobalModel(
            head.record,
            head.moments,
            strategy=strategy,
            plan=plan,
            goal=goal or Goal(),
            term=head.term + 1,
            survey_aim=survey_aim,
            secure=SecureState(
                secure,
                head.record,
                buffer_size=buffer_size,
                fewest_workers=fewest_workers,
                registered=frozenset(registry.workers),
                survey_size=survey_aim.wanted if head.record.survey and head.record.survey.is_open else 0,
            ),
        )

    return replace(
        a_config(strategy, goal=goal, commit_schedule=schedule),
        prefetch=prefetch_of(strategy, schedule, is_secure=True),
        first_version=lambda: replace(first or a_version(), plan=plan),
        continue_from=continue_from,
        committee=lambda: COMMITTEE,
    )


class Helper:
    """A helper on a fake server: it reads the close records that are new, and answers the last one."""

    def __init__(
        self,
        name: str,
        server: FakeServer,
        config: AggregatorConfig,
        *,
        epoch: Epoch = EPOCH,
        registry: Registry | None = None,
        changed: Callable[[CloseRecord, Opening], bytes] = lambda _, opening: bytes(opening_pieces(opening)),
    ) -> None:
        self.key = epoch.keys[name]
        self.registry = registry or epoch.registry
        self.ledger = Ledger(epoch.number)
        self.answers = 0
        # Why it refuses what its ledger would let it open.
        self.refuses_with: Refused | None = None
        # The close records that it has opened.
        self.opened: set[bytes] = set()
        self._server = server
        self._config = config
        self._read = 0
        self._changed = changed

    def answer(self) -> None:
        """Read what is new, and answer the last record."""
        bodies = self._server.bodies(self._config.topology.closes.name)[self._read :]
        self._read += len(bodies)
        for number, body in enumerate(bodies, 1):
            close, before = decode_close(body), self.ledger
            self.ledger, refused = self.ledger.checked(close, self.registry)
            if number < len(bodies) or close.epoch < self.ledger.epoch:
                continue
            if refused := refused or self.refuses_with:
                self._send(encode_not_opened(not_opened(close, self.key.name, refused, self.ledger)))
                continue
            self.opened.add(body)
            asked = [at for at, helper in enumerate(close.asked) if helper == self.key.name]
            groups = None if before is self.ledger else asked
            for opening in openings(close, self.key, self.registry, of_groups=groups):
                self._send(self._changed(close, opening))

    def _send(self, body: bytes) -> None:
        with FakeBroker(self._server, user=self.key.name) as broker:
            try:
                broker.publish(self._config.topology.openings_in.name, "", body, {})
            except Unroutable:
                return
        self.answers += 1


WITHOUT_W4 = EPOCH.registry.model_copy(
    update={
        "workers": {name: key for name, key in EPOCH.registry.workers.items() if name != "w4"},
        "revoked": ("w4",),
    }
)
VALUES = {"w1": (0.5, -1.0, 2.0, 0.0), "w2": (1.5, 1.0, -2.5, 0.25), "w3": (-1.0, 0.125, 0.75, 3.0)}


def helpers(server: FakeServer, config: AggregatorConfig, names: Iterable[str] = NAMES) -> list[Helper]:
    return [Helper(name, server, config) for name in names]


def go_on(
    leader: Leading, broker: Broker, answering: Sequence[Helper] = (), clock: Clock | None = None
) -> None:
    """Let the leader and the helpers work until nothing changes."""
    for _ in range(8):
        if delivery := leader.next_delivery(0):
            leader.take_in(delivery)
        work_off(leader, broker)
        for each in answering:
            each.answer()
        leader.hear()
        if clock:
            clock.seconds += 1


def expected(values: Iterable[tuple[Sequence[float], int]], count: int) -> list[float]:
    """Return the step of updates with these values and integer weights, in float32."""
    total = np.zeros(SIZE, np.uint32)
    for each, factor in values:
        add_multiple(total, numbers_of(each), factor)
    delta = PLAN.fixed_point.decode(PLAN.modulus.signed(total), PLAN.greatest)
    return [float(each) for each in np.divide(delta, np.float32(count))]
