"""Error feedback: whatever is refused, resent, requeued or killed, each delta counts once, now or later."""

import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from broken_files import Crash, failing
from builders import a_layout, a_model, a_strategy, a_version, an_update, refusal, values_of
from hypothesis import given, settings
from hypothesis import strategies as st

from fluffle.compression import decompressed
from fluffle.model import Vector
from fluffle.update import MAX_ABSORBS, UpdateId, WeightUpdate
from fluffle.wire import decode_inbound
from fluffle_aggregator.accumulators import RunningSum
from fluffle_aggregator.gates.gate import Refusal
from fluffle_aggregator.global_model import GlobalModel
from fluffle_worker.feedback import compress_with_feedback
from fluffle_worker.spool import NoRoomForResidual, Spool, open_spool

SIZE = 7
CODEC = "topk:0.3"
SENT = 3  # entries that this codec sends of so many


@dataclass
class Federation:
    """One worker's spool, the queue of updates, and a model that is the plain sum of what is applied."""

    folder: Path
    codec: str = CODEC
    queue: deque[bytes] = field(default_factory=deque)
    rejected: list[bytes] = field(default_factory=list)
    learnt: Vector = field(default_factory=lambda: np.zeros(SIZE, np.float32))

    def __post_init__(self) -> None:
        record = a_version(values=[0.0] * SIZE, layout=a_layout(SIZE))
        self.model: GlobalModel = a_model(a_strategy(buffer_size=10**6, staleness="constant"), record=record)
        self.seen = self.model.applied
        self.open()

    def open(self) -> None:
        """Begin a new process of the worker."""
        self._opened = open_spool(self.folder, worker="w1", max_bytes=1 << 20)
        self.spool: Spool = self._opened.__enter__()

    def close(self) -> None:
        """End the worker's process, kindly or not: what is on disk is the same."""
        self._opened.__exit__(None, None, None)

    def train(self, delta: Sequence[float], *, crash_after: int | None = None, looks: bool = True) -> None:
        """Let the worker learn this, and be killed after so many file operations."""
        if looks:
            self.seen = self.model.applied
        update_id, vector = self.spool.next_id, np.array(delta, np.float32)
        try:
            with failing(crash_after, Crash):
                made = compress_with_feedback(
                    self.spool, self.seen, self.codec, vector, np.random.default_rng(0)
                )
                update = an_update(codec=self.codec, layout=a_layout(SIZE))
                update = replace(update, id=update_id, vector=made.vector, absorbs=made.absorbs)
                self.spool.add(update, made.residual)
        except Crash:
            self.close()
            self.open()
        if self.spool.next_id.sequence > update_id.sequence:
            self.learnt += vector

    def send(self, *, crash_after: int | None = None) -> None:
        """Let the worker publish its oldest update, and be killed before all of it is noted."""
        if waiting := self.spool.oldest():
            self.queue.append(waiting[1])
            try:
                with failing(crash_after, Crash):
                    self.spool.confirm()
            except Crash:
                self.close()
                self.open()

    def take(self, *, refuse: bool = False) -> Refusal | None:
        """Let the aggregator take in the next update."""
        if not self.queue:
            return None
        body = self.queue.popleft()
        update = decoded(body)
        found = refusal(update, self.model)
        if found is None and refuse:
            found = Refusal("too-many", "by the test")
        if found is None:
            self.model.fold(update, now=0.0)
        else:
            self.rejected.append(body)
        return found

    def requeue(self, place: int) -> None:
        """Let the operator send on a message that was refused."""
        if self.rejected:
            self.queue.append(self.rejected.pop(place % len(self.rejected)))

    def round(self, delta: Sequence[float], *, refuse: bool = False) -> Refusal | None:
        """Train, send and take in one update."""
        self.train(delta)
        self.send()
        return self.take(refuse=refuse)

    def settle(self) -> tuple[Vector, Vector]:
        """Let all be sent and taken in; return what the model has, and what the worker keeps for later."""
        while self.spool.waiting:
            self.send()
        while self.queue:
            self.take()
        accumulator = self.model.accumulator
        assert isinstance(accumulator, RunningSum)
        total = accumulator.total
        applied = np.zeros(SIZE, np.float32) if total is None else total
        made = compress_with_feedback(
            self.spool, self.model.applied, self.codec, np.zeros(SIZE, np.float32), np.random.default_rng(0)
        )
        kept = decompressed(made.vector)
        if made.residual.vector.size:
            kept += made.residual.vector
        for one in made.residual.in_flight:
            # Nothing is on its way any more: it was refused, and nothing came after it.
            decoded(self.spool.sent_message(one)).vector.add_to(kept, 1.0)
        return applied, kept


def decoded(body: bytes) -> WeightUpdate:
    update = decode_inbound(body)
    assert isinstance(update, WeightUpdate)
    return update


@contextmanager
def a_federation(codec: str = CODEC) -> Iterator[Federation]:
    with tempfile.TemporaryDirectory() as folder:
        federation = Federation(Path(folder), codec)
        try:
            yield federation
        finally:
            federation.close()


# Whole numbers, so that sums are exact in any order.
deltas = st.lists(st.integers(-9, 9).map(float), min_size=SIZE, max_size=SIZE)
crashes = st.none() | st.integers(0, 14)
steps: st.SearchStrategy[Callable[[Federation], object]] = st.one_of(
    st.builds(
        lambda delta, crash, looks: lambda one: one.train(delta, crash_after=crash, looks=looks),
        deltas,
        crashes,
        st.booleans(),
    ),
    st.builds(lambda crash: lambda one: one.send(crash_after=crash), st.none() | st.integers(0, 2)),
    st.builds(lambda refuse: lambda one: one.take(refuse=refuse), st.booleans()),
    st.builds(lambda delta, refuse: lambda one: one.round(delta, refuse=refuse), deltas, st.booleans()),
    st.builds(lambda place: lambda one: one.requeue(place), st.integers(0, 9)),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(steps, max_size=25))
def test_what_is_applied_and_what_is_kept_is_the_sum_of_all_that_was_learnt(
    steps: list[Callable[[Federation], object]],
) -> None:
    with a_federation() as federation:
        for step in steps:
            step(federation)

        applied, kept = federation.settle()

        assert (applied + kept).tolist() == federation.learnt.tolist()


def test_what_is_left_out_comes_with_the_next_update() -> None:
    with a_federation() as federation:
        federation.round([1, 2, 3, 4, 5, 6, 7])
        federation.round([0] * SIZE)
        federation.round([0] * SIZE)

        applied, kept = federation.settle()

        assert applied.tolist() == [1, 2, 3, 4, 5, 6, 7]
        assert not kept.any()


def test_what_is_left_out_outlives_the_process() -> None:
    with a_federation() as federation:
        federation.round([1, 2, 3, 4, 5, 6, 7])
        federation.close()
        federation.open()
        federation.round([0] * SIZE)

        applied, kept = federation.settle()

        assert applied.tolist() == [0, 2, 3, 4, 5, 6, 7]
        assert kept.tolist() == [1, 0, 0, 0, 0, 0, 0]


def test_an_update_that_was_refused_is_in_the_next_one_and_can_not_count_again() -> None:
    with a_federation() as federation:
        federation.round([9, 9, 9, 0, 0, 0, 0], refuse=True)
        federation.round([0, 0, 0, 1, 0, 0, 0])
        federation.round([0] * SIZE)
        federation.requeue(0)

        refused = federation.take()

        assert refused is not None
        assert refused.reason == "duplicate"
        assert federation.settle()[0].tolist() == [9, 9, 9, 1, 0, 0, 0]


def test_an_update_is_refused_whose_content_an_operator_has_sent_on_meanwhile() -> None:
    with a_federation() as federation:
        federation.round([9, 9, 9, 0, 0, 0, 0], refuse=True)
        federation.round([0, 0, 0, 1, 0, 0, 0])
        federation.train([0] * SIZE)
        federation.requeue(0)
        federation.take()
        federation.send()

        refused = federation.take()

        assert refused is not None
        assert refused.reason == "absorbs-applied"
        assert refused.detail.endswith("/1, which the model contains already")
        applied, kept = federation.settle()
        assert applied.tolist() == [9, 9, 9, 1, 0, 0, 0]
        assert not kept.any()


def test_of_very_many_that_were_refused_the_oldest_are_given_up() -> None:
    with a_federation() as federation:
        for _ in range(MAX_ABSORBS + 2):
            federation.round([1, 0, 0, 0, 0, 0, 0], refuse=True)
        # Each brought back the one before, and was itself refused.
        applied, kept = federation.settle()

        assert not applied.any()
        assert 0 < kept[0] <= MAX_ABSORBS + 2


@pytest.mark.parametrize("odd", [float("nan"), float("inf")])
def test_a_delta_that_is_no_number_spoils_nothing_but_itself(odd: float) -> None:
    with a_federation() as federation:
        federation.round([1, 2, 3, 4, 5, 6, 7])
        refused = federation.round([odd, 0, 0, 0, 0, 0, 0])
        federation.round([0] * SIZE)
        federation.round([0] * SIZE)

        assert refused is not None
        assert refused.reason == "not-finite"
        assert federation.settle()[0].tolist() == [1, 2, 3, 4, 5, 6, 7]


def test_with_a_codec_that_sends_all_the_rest_comes_at_once() -> None:
    with a_federation() as federation:
        federation.round([1, 2, 3, 4, 5, 6, 7])
        federation.codec = "float32"
        federation.round([1] * SIZE)

        applied, kept = federation.settle()

        assert applied.tolist() == [2, 3, 4, 5, 6, 7, 8]
        assert not kept.any()


@pytest.mark.parametrize("after", range(4))
def test_a_full_disk_leaves_what_was_left_out_as_it_was(after: int) -> None:
    with a_federation() as federation:
        federation.round([1, 2, 3, 4, 5, 6, 7])
        before = federation.spool.residual()
        delta = np.ones(SIZE, np.float32)
        made = compress_with_feedback(
            federation.spool, federation.model.applied, CODEC, delta, np.random.default_rng(0)
        )
        update = replace(an_update(), id=federation.spool.next_id, codec=CODEC, vector=made.vector)

        with (
            failing(after, lambda: OSError(28, "No space left on device")),
            pytest.raises(NoRoomForResidual, match="No space left on device"),
        ):
            federation.spool.add(update, made.residual)
        federation.close()
        federation.open()

        after_all = federation.spool.residual()
        assert before is not None
        assert after_all is not None
        assert before[1].vector.tolist() == after_all[1].vector.tolist() == [1, 2, 3, 4, 0, 0, 0]
        assert federation.spool.waiting == 0


def test_a_damaged_residual_is_begun_anew_and_nothing_counts_twice() -> None:
    with a_federation() as federation:
        federation.round([9, 9, 9, 1, 0, 0, 0], refuse=True)
        federation.round([1, 0, 0, 0, 0, 0, 0])
        federation.train([0] * SIZE)
        [residual] = federation.folder.glob("*.residual")
        residual.write_bytes(b"damaged")
        federation.send()
        federation.take()
        federation.round([0, 0, 0, 0, 0, 0, 5])

        applied, _ = federation.settle()

        assert applied.tolist() in ([10, 9, 9, 0, 0, 0, 5], [10, 9, 9, 1, 0, 0, 5])


def test_files_that_are_done_with_do_not_pile_up() -> None:
    with a_federation() as federation:
        for number in range(20):
            federation.round([number] * SIZE, refuse=number % 3 == 0)
        federation.round([1] * SIZE)
        federation.round([1] * SIZE)

        assert len(list(federation.folder.iterdir())) <= 5


def test_a_finished_federation_leaves_nothing_behind_but_the_last_number() -> None:
    with a_federation() as federation:
        federation.round([1] * SIZE)
        federation.round([1] * SIZE)
        last = federation.spool.next_id

        federation.spool.clear()
        federation.close()
        federation.open()

        assert federation.spool.next_id == last
        assert {path.suffix for path in federation.folder.iterdir()} == {"", ".done"}


def test_only_refused_updates_are_named() -> None:
    with a_federation() as federation:
        federation.round([1] * SIZE, refuse=True)
        federation.round([1] * SIZE)
        federation.train([1] * SIZE)

        waiting = federation.spool.oldest()

        assert waiting is not None
        update = decoded(waiting[1])
        assert update.absorbs == (1,)
        assert update.absorbed == [UpdateId("w1", update.id.run, 1)]
        assert len(values_of(update.vector)) == SIZE
