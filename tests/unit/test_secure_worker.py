"""What a worker of secure aggregation sends is masked, and nothing else leaves its site."""

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from secure_sites import PLAN, Site, a_site
from secure_working import LAYOUT, LOSS, SIZE, STATISTICS, SecretTask, expected_numbers, live, noting, version
from working import (
    TOPOLOGY,
    a_federation,
    publish_versions,
    sent,
    sent_updates,
)

from fluffle.checked_task import CheckedTask
from fluffle.codecs.masked import MaskedVector
from fluffle.errors import ConfigError
from fluffle.events import Event, Progressed
from fluffle.events import Trained as TrainedEvent
from fluffle.events import Validated as ValidatedEvent
from fluffle.model import Layout, Weights
from fluffle.plan import Plan
from fluffle.secure.limbs import LARGEST, decode_limbs
from fluffle.secure.modulus import BITS
from fluffle.sites import SiteEvaluation
from fluffle.task import Progress, Trained
from fluffle.update import UpdateId, WeightUpdate
from fluffle.vector_math import norm
from fluffle.wire import encode_update
from fluffle_worker import round as worker_round
from fluffle_worker.clipping import statistics_beyond


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return a_site(tmp_path_factory.mktemp("keys"))


@pytest.mark.parametrize("bits", BITS)
def test_all_helpers_keys_take_the_masks_off_and_leave_exactly_the_whole_numbers(
    bits: int, site: Site
) -> None:
    plan = replace(PLAN, modulus_bits=bits, bits=8)
    server, task = a_federation(version(secure=plan)), SecretTask()

    live(server, task, site.keys(), updates=2)

    updates = sent_updates(server)
    assert len(updates) == 2
    for at, update in enumerate(updates):
        assert (update.codec, update.epoch) == (f"masked{bits}", 1)
        assert site.numbers(update).tolist() == expected_numbers(task, at, update, plan).tolist()
    means = decode_limbs(site.numbers(updates[0])[SIZE:], plan.bits)
    assert means.tolist() == [2.5] * STATISTICS


def test_the_helpers_open_a_weighted_sum_of_two_updates_exactly(site: Site) -> None:
    server, task = a_federation(version()), SecretTask()
    live(server, task, site.keys(), updates=2)
    first, second = sent_updates(server)

    opened = site.opened([(first, 64), (second, 45)])

    expected = 64 * expected_numbers(task, 0, first) + 45 * expected_numbers(task, 1, second)
    assert opened.tolist() == expected.tolist()


def test_masked_bytes_are_uniform(site: Site) -> None:
    server = a_federation(version())

    live(server, SecretTask(spread=0.0), site.keys(), updates=20)

    payload = b"".join(bytes(each.vector.payload) for each in sent_updates(server))
    counts = np.bincount(np.frombuffer(payload, np.uint8), minlength=256)
    assert stats.chisquare(counts).pvalue > 1e-4


def test_nothing_that_was_learnt_is_in_the_clear(site: Site) -> None:
    events: list[Event] = []
    server, task = a_federation(version()), SecretTask()

    live(server, task, site.keys(), updates=3, event_sink=noting(events))

    [*updates] = sent_updates(server)
    assert len(sent(server)) == len(updates) == 3
    for update, delta, body in zip(updates, task.deltas, server.bodies(TOPOLOGY.updates.name), strict=True):
        assert (update.loss, update.integers, update.statistics.size) == (None, b"", 0)
        numbers = site.numbers(update)
        in_the_clear = [
            *(delta[at : at + 4].astype("<f4").tobytes() for at in range(0, SIZE - 4, 4)),
            *(numbers[at : at + 4].astype("<i4").tobytes() for at in range(0, SIZE - 4, 4)),
            *(PLAN.modulus.pack(numbers[at : at + 4].view(np.uint32)) for at in range(0, SIZE - 4, 4)),
            np.full(STATISTICS, task.moved, "<f4").tobytes(),
            np.array(77_777_777, "<i8").tobytes(),
            np.array(LOSS, ">f8").tobytes(),
            np.array(LOSS, ">f4").tobytes(),
        ]
        assert not [each for each in in_the_clear if each in body]
    assert {each.loss for each in events if isinstance(each, TrainedEvent)} == {None}
    assert not [each for each in events if isinstance(each, ValidatedEvent)]


@pytest.mark.parametrize("bits", BITS)
def test_a_message_has_the_bytes_of_its_numbers_and_a_header(bits: int, site: Site) -> None:
    layout = Layout.of(
        {"dense/kernel": np.zeros((784, 128), np.float32), "dense/bias": np.zeros(128, np.float32)}
    )
    plan = replace(PLAN, bits=10, modulus_bits=bits, metrics=("loss", "accuracy")).numbered()
    update = WeightUpdate(
        federation="digits",
        id=UpdateId("w1", "0123456789abcdef", 12_345),
        base_term=12,
        base_version=12_345,
        layout_digest=layout.digest,
        sends="delta",
        codec="float32",
        vector=MaskedVector(0, memoryview(b""), plan.modulus),
        examples=12_345,
        steps=1234,
        batch_size=32,
        train_s=12.3456,
    )
    make = site.keys().masking(
        update, np.zeros(layout.size, np.float32), None, plan, np.random.default_rng(0)
    )

    body = encode_update(make(update.id))

    header_bytes = len(body) - plan.length(layout.size, 0) * bits // 8
    assert 0 < header_bytes <= 216
    if bits == 16:
        assert len(body) <= 2 * layout.size + 300


def test_a_worker_with_keys_refuses_a_plan_without_secure_aggregation_and_sends_nothing(site: Site) -> None:
    server, task = a_federation(version(secure=None)), SecretTask()

    with pytest.raises(ConfigError, match=r"insists on secure aggregation.*--secure-aggregation"):
        live(server, task, site.keys())

    assert (sent(server), task.started_from) == ([], [])


def test_a_worker_with_keys_leaves_a_plan_that_loses_secure_aggregation(site: Site) -> None:
    server = a_federation(version())
    task = SecretTask(meanwhile=lambda: publish_versions(server, version(1, None)))

    with pytest.raises(ConfigError, match="insists on secure aggregation"):
        live(server, task, site.keys(), updates=5)

    assert [each.epoch for each in sent_updates(server)] == [1]


def test_a_worker_with_keys_measures_and_sends_nothing_for_a_last_version_in_the_clear(site: Site) -> None:
    server = a_federation(replace(version(secure=None), closing="enough"))

    live(server, SecretTask(), site.keys())

    assert sent(server) == []


def test_a_worker_without_keys_is_told_what_it_needs(caplog: pytest.LogCaptureFixture) -> None:
    server, task = a_federation(version()), SecretTask()

    with pytest.raises(ConfigError) as raised:
        live(server, task, None)

    for word in ("--secure-key", "--secure-registry", "--secure-operator", "fluffle keys worker"):
        assert word in str(raised.value)
    assert (sent(server), task.started_from) == ([], [])


@pytest.mark.parametrize(
    ("change", "given", "says"),
    [
        ({}, {"train_share": 0.5}, "without --train-share 0.5"),
        ({"sends": "weights"}, {}, "choose the strategy fedbuff or fedavg"),
    ],
)
def test_what_would_leave_the_site_in_the_clear_is_refused_before_training(
    change: dict[str, Any], given: dict[str, Any], says: str, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CheckedTask, "train_last", lambda _self, _share: LAYOUT)
    server, task = a_federation(version(**change)), SecretTask()

    with pytest.raises(ConfigError, match=says):
        live(server, task, site.keys(), **given)

    assert (sent(server), task.started_from) == ([], [])


def test_what_is_measured_at_a_site_travels_in_its_updates_alone_and_a_line_says_so_once(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    plan = replace(PLAN, metrics=("accuracy", "loss"))
    plain, server = a_federation(version(secure=None)), a_federation(version(secure=plan, evaluate_every=1))
    events: list[Event] = []
    caplog.set_level("INFO")
    live(plain, SecretTask(), None, spool=Path("plain"))

    live(server, SecretTask(), site.keys(), updates=3, event_sink=noting(events))

    assert any(isinstance(each, SiteEvaluation) for each in sent(plain))
    assert all(isinstance(each, WeightUpdate) for each in sent(server))
    assert caplog.text.count("what is measured at this site travels masked") == 1
    assert not [each for each in events if isinstance(each, ValidatedEvent)]
    for update in sent_updates(server):
        # The version that the round began from, with an accuracy of 5 examples and no loss.
        values = decode_limbs(site.numbers(update)[SIZE:], plan.bits)[STATISTICS:]
        assert values.tolist() == [
            1.0,
            update.base_version,
            pytest.approx(1.25 / 1024, abs=1e-7),
            5.0,
            0.0,
            0.0,
        ]


@pytest.mark.parametrize("by_norm", [False, True])
def test_an_update_of_which_the_clip_leaves_few_levels_is_not_sent(
    by_norm: bool, site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    # Sums of numbers as small could be taken apart, since their weights differ.
    server, stop = (
        a_federation(version(secure=replace(PLAN, clip=10_000.0, by_norm=by_norm))),
        threading.Event(),
    )

    live(server, SecretTask(meanwhile=stop.set), site.keys(), stop=stop)

    assert sent(server) == []
    assert "an update is not sent: the aggregator's clip is so wide" in caplog.text


def test_the_progress_of_a_round_does_not_tell_how_many_minibatches_a_site_has(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_round, "REPORT_PROGRESS_EVERY_S", 0.0)
    events: list[Event] = []

    class Slow(SecretTask):
        def train(self, weights: Weights, plan: Plan, *, seed: int, progress: Progress) -> Trained:
            for batch in range(1, 54):
                progress(batch, 53)
            return super().train(weights, plan, seed=seed, progress=progress)

    live(a_federation(version()), Slow(), site.keys(), event_sink=noting(events))

    told = [each for each in events if isinstance(each, Progressed)]
    assert told
    assert {each.total for each in told} == {100}


def test_a_clip_that_changes_many_elements_is_warned_of_at_powers_of_two(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    server = a_federation(version(secure=replace(PLAN, clip=0.4)))

    live(server, SecretTask(spread=0.5), site.keys(), updates=5)

    told = [message for message in caplog.messages if "the clip changes updates" in message]
    assert len(told) == 3
    assert "'largest_magnitude': 0.4999" in told[0] or "'largest_magnitude': 0.5" in told[0]
    assert "'clip': 0.4" in told[0]


def test_a_delta_that_is_longer_than_the_clip_is_warned_of_with_its_norm(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    task = SecretTask()

    live(a_federation(version(secure=replace(PLAN, by_norm=True))), task, site.keys())

    [told] = [message for message in caplog.messages if "the clip changes updates" in message]
    assert f"'norm': {norm(task.deltas[0]):.4g}" in told


@pytest.mark.parametrize(("spread", "warnings"), [(0.01, 1), (0.1, 0), (0.0, 0)])
def test_wasted_precision_is_warned_of_once(
    spread: float, warnings: int, site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    live(a_federation(version()), SecretTask(spread=spread), site.keys(), updates=3)

    assert caplog.text.count("which wastes precision") == warnings


def test_a_few_clipped_elements_are_no_cause_for_a_warning(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    live(a_federation(version(secure=replace(PLAN, clip=0.4999))), SecretTask(), site.keys())

    assert "clip" not in caplog.text


def test_statistics_that_are_too_large_are_warned_of_by_name(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    server, task = a_federation(version()), SecretTask(moved=2 * LARGEST)

    live(server, task, site.keys())

    assert "statistics are too large for secure aggregation" in caplog.text
    assert "'tensors': 'mean'" in caplog.text
    means = decode_limbs(site.numbers(sent_updates(server)[0])[SIZE:], PLAN.bits)
    assert means.tolist() == [LARGEST] * STATISTICS
    assert statistics_beyond(LAYOUT, np.zeros(STATISTICS, np.float32), LARGEST) == []
