"""The running average of the versions: what it is, and who evaluates and exports it."""

import logging
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy_task
import pytest
from builders import SIZE, a_config, a_strategy, a_vector, a_version, an_evaluation, an_update
from fake_broker import FakeBroker, FakeServer
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from leading import Clock, a_server, aggregate, newest, send, take_the_lead, versions, work_off
from numpy.typing import NDArray
from typer.testing import CliRunner
from working import TOPOLOGY, CountingTask, Scripted, a_federation, publish_versions, sent

from fluffle.model import Layout, Vector
from fluffle.record import Evaluation, ModelVersion
from fluffle.record_wire import decode_version, decode_without_weights, encode_version, without_weights
from fluffle.safetensors_file import read_model
from fluffle.settings import load_arguments
from fluffle.update import WeightUpdate
from fluffle_aggregator.averaging import decay_at, move_average
from fluffle_aggregator.commit_schedule import CommitSchedule
from fluffle_aggregator.config import AggregatorConfig
from fluffle_aggregator.goal import Goal
from fluffle_aggregator.settings import AggregatorSettings
from fluffle_cli import model_command
from fluffle_cli.main import app
from fluffle_cli.simulate.federation import SimulatedFederation
from fluffle_cli.simulate.settings import SimulateSettings
from fluffle_worker.evaluator import Evaluator

DECAY = 0.6
AVERAGING = a_config(a_strategy(buffer_size=1), average_decay=DECAY)
finite = st.floats(-1e6, 1e6, width=32)


def averaged(vectors: list[NDArray[np.float64]], decay: float) -> NDArray[np.float64]:
    """Average a version 0 and its successors in float64, as the formula says."""
    average = vectors[0]
    for version, vector in enumerate(vectors[1:]):
        kept = min(decay, (1 + version) / (10 + version))
        average = kept * average + (1 - kept) * vector
    return average


def the_updates(count: int) -> list[WeightUpdate]:
    random = np.random.default_rng(3)
    return [
        an_update("w", number, base_version=0, values=random.normal(size=SIZE).tolist())
        for number in range(1, count + 1)
    ]


def after_updates(config: AggregatorConfig, count: int = 6) -> FakeServer:
    """Return a server whose leader has made a version of each of so many updates."""
    server = a_server(config, *the_updates(count))
    aggregate(server, config)
    return server


@given(
    vectors=st.integers(1, 300).flatmap(
        lambda size: st.lists(arrays(np.float32, size, elements=finite), min_size=1, max_size=20)
    ),
    decay=st.floats(0.01, 0.99),
)
def test_the_average_is_that_of_a_float64_reference(vectors: list[Vector], decay: float) -> None:
    average = vectors[0].copy()
    for version, vector in enumerate(vectors[1:]):
        move_average(average, vector, decay_at(decay, version))

    expected = averaged([each.astype(np.float64) for each in vectors], decay)
    largest = max(float(np.abs(each).max()) for each in vectors)
    np.testing.assert_allclose(average, expected, atol=1e-5 * largest + 1e-30)


@given(st.integers(2, 60))
def test_before_its_decay_is_reached_it_is_the_polynomial_decay_average_of_the_paper(count: int) -> None:
    random = np.random.default_rng(count)
    vectors = random.normal(size=(count, 5))
    # Shamir and Zhang (2013), section 4: the first iterate has the number 1.
    eta, paper = 8.0, vectors[0]
    for t, vector in enumerate(vectors[1:], 2):
        paper = (1 - (1 + eta) / (t + eta)) * paper + (1 + eta) / (t + eta) * vector

    average = vectors[0].astype(np.float32)
    for version, vector in enumerate(vectors[1:]):
        move_average(average, vector.astype(np.float32), decay_at(0.999, version))

    np.testing.assert_allclose(average, paper, rtol=1e-4, atol=1e-5)


def test_an_average_of_equal_versions_is_that_version_to_the_bit() -> None:
    vector = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    average = vector.copy()

    for version in range(50):
        move_average(average, vector, decay_at(0.9, version))

    assert average.tobytes() == vector.tobytes()


def test_an_average_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="must have one shape"):
        move_average(a_vector(1, 2), a_vector(1), 0.5)


def test_each_version_carries_the_average_of_all_versions_up_to_it() -> None:
    history = versions(after_updates(AVERAGING), AVERAGING)

    assert [one.average_decay for one in history] == [0.0, *[DECAY] * 6]
    for number in range(1, len(history)):
        expected = averaged([one.vector.astype(np.float64) for one in history[: number + 1]], DECAY)
        np.testing.assert_allclose(history[number].average, expected, rtol=1e-5, atol=1e-6)
    assert not np.allclose(history[-1].average, history[-1].vector)


def test_averaging_changes_nothing_of_the_versions_themselves() -> None:
    plain = replace(AVERAGING, continue_from=a_config(a_strategy(buffer_size=1)).continue_from)

    with_average, without = after_updates(AVERAGING), after_updates(plain)

    vectors = [
        [one.vector.tobytes() for one in versions(server, AVERAGING)] for server in (with_average, without)
    ]
    assert vectors[0] == vectors[1]
    assert all(one.average.size == 0 == one.average_decay for one in versions(without, plain))


def test_versions_that_are_not_published_are_averaged_as_well() -> None:
    strategy = a_strategy(buffer_size=1)
    seldom = a_config(strategy, commit_schedule=CommitSchedule(every=3), average_decay=DECAY)

    often, rarely = newest(after_updates(AVERAGING), AVERAGING), newest(after_updates(seldom), seldom)

    assert often.version == rarely.version == 6
    assert often.average.tobytes() == rarely.average.tobytes()


def test_the_closing_and_the_last_version_have_the_average_of_the_last_step() -> None:
    ending = a_config(a_strategy(buffer_size=1), average_decay=DECAY, goal=Goal(max_updates=4))
    server, clock = a_server(ending, an_evaluation(0), *the_updates(4)), Clock()

    with FakeBroker(server) as broker:
        leader = take_the_lead(broker, ending, clock)
        work_off(leader, broker)
        clock.seconds = 1000
        leader.tick()

    closing, last = versions(server, ending)[-2:]
    assert (closing.version, bool(closing.closing), bool(closing.finished)) == (4, True, False)
    assert (last.version, bool(last.finished)) == (5, True)
    before = newest(after_updates(AVERAGING, 4), AVERAGING)
    assert closing.average.tobytes() == last.average.tobytes() == before.average.tobytes()


def test_an_average_begins_at_the_version_from_which_it_is_switched_on_and_goes_when_it_is_switched_off(
    caplog: pytest.LogCaptureFixture,
) -> None:
    plain = a_config(a_strategy(buffer_size=1))
    server = after_updates(plain, 2)
    switched_on = newest(server, plain)

    with caplog.at_level(logging.WARNING):
        goes_on(server, AVERAGING, 3)
        on = newest(server, AVERAGING)
        said_nothing = "average" not in caplog.text
        goes_on(server, plain, 4)
        off = newest(server, plain)

    kept = decay_at(DECAY, 2)
    expected = kept * switched_on.vector + np.float32(1 - kept) * on.vector
    np.testing.assert_allclose(on.average, expected, rtol=1e-5)
    assert said_nothing
    assert "the decay of the versions' average changes" in caplog.text
    assert (off.average.size, off.average_decay) == (0, 0.0)


def goes_on(server: FakeServer, config: AggregatorConfig, number: int) -> None:
    """Let another aggregator take over, and make one more version."""
    send(server, config, the_updates(number)[-1])
    with FakeBroker(server) as broker:
        work_off(take_the_lead(broker, config, Clock()), broker)


def an_averaged_version(number: int = 3) -> ModelVersion:
    """Return a version of the counting task's model whose average is 9 everywhere, and its vector 1."""
    layout = Layout.of(CountingTask().initial_weights(0))
    record = a_version(number, values=[1.0] * 2, layout=layout)
    return replace(record, average=a_vector(9, 9), average_decay=0.9, integers=bytes(8))


def test_an_evaluator_evaluates_the_average() -> None:
    server = a_federation(an_averaged_version())

    def end(served: FakeServer, _sent: int) -> None:
        publish_versions(served, replace(an_averaged_version(4), finished="enough"))

    Evaluator(name="e1", task=CountingTask(), topology=TOPOLOGY, stop=threading.Event()).work(
        lambda: Scripted(server, end)
    )

    [report] = [message for message in sent(server) if isinstance(message, Evaluation)]
    assert (report.version, report.metrics["accuracy"]) == (3, 9.0)


def test_an_export_writes_the_average_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = a_federation(an_averaged_version())
    monkeypatch.setattr(model_command, "found_federation", lambda *_, **__: FakeBroker(server))
    out = tmp_path / "model.safetensors"

    said = CliRunner().invoke(app, ["model", "export", "--federation", "digits", "--out", str(out)])

    assert said.exit_code == 0, said.output
    assert "running average of the versions up to this one" in said.output
    assert "--average-versions 0.9" in said.output
    assert read_model(out)["w"].tolist() == [9, 9]


def test_a_file_for_restore_has_the_version_and_its_average(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = a_federation(an_averaged_version())
    monkeypatch.setattr(model_command, "found_federation", lambda *_, **__: FakeBroker(server))
    out = tmp_path / "model.fluffle"

    said = CliRunner().invoke(app, ["model", "export", "--federation", "digits", "--out", str(out)])

    assert said.exit_code == 0, said.output
    assert "average" not in said.output
    assert out.read_bytes().startswith(encode_version(an_averaged_version()))


def test_statistics_are_not_averaged_again() -> None:
    record = replace(an_averaged_version(), integers=(7).to_bytes(8, "little"))

    assert record.weights_to_evaluate["w"].tolist() == [9, 9]
    assert record.weights_to_evaluate["steps"].tolist() == record.weights["steps"].tolist() == [7]


def test_a_record_without_weights_still_says_that_versions_are_averaged_and_what_they_take() -> None:
    body = encode_version(an_averaged_version())

    shown = decode_without_weights(without_weights(body))

    assert shown.average_decay == 0.9
    assert shown.payload_size_bytes == decode_version(body).payload_size_bytes == 2 * 8 + 8


def test_a_simulation_evaluates_the_average_as_well() -> None:
    given = {"federation": "digits", "task": "numpy_task:task", "buffer_size": 1, "max_updates": 20}
    settings = load_arguments(SimulateSettings, {**given, "average_versions": 0.9})
    history: list[ModelVersion] = []

    SimulatedFederation(settings, numpy_task.task, history.append).run()

    by_number = {one.version: one for one in history}
    evaluation = history[-1].evaluation
    assert evaluation is not None
    evaluated = by_number[evaluation.version]
    assert evaluation.metrics == numpy_task.task.evaluate(evaluated.weights_to_evaluate)
    assert evaluation.metrics != numpy_task.task.evaluate(evaluated.weights)


@pytest.mark.parametrize("decay", ["1", "-0.1", "often"])
def test_a_decay_that_averages_nothing_is_refused(decay: str) -> None:
    with pytest.raises(Exception, match="average_versions"):
        load_arguments(AggregatorSettings, {"average_versions": decay})
