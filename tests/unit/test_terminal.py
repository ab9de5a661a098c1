"""The picture of a federation on a terminal, and the line of it in a log file."""

import math
from dataclasses import replace
from io import StringIO

import pytest
from builders import a_version, an_evaluation
from federation_states import a_view, told
from rich.console import Console, RenderableType

from fluffle.events import Joined, Progressed, Started, TookOver
from fluffle.plan import Plan
from fluffle.record import Contributor, Folded, ModelVersion
from fluffle.update import UpdateId
from fluffle_cli.watching.state import FederationState
from fluffle_cli.watching.terminal import Screen, plain_line, render, workers_table
from fluffle_cli.watching.view import FederationView, QueueStates, Version, metric_to_show
from fluffle_cli.words import SPARKLINE_LENGTH, bar, sparkline

QUEUES = QueueStates(updates_waiting=5, aggregator_active=True, rejected_waiting=3)


def a_training_version(accuracy: float = 0.9472, *, version: int = 36, finished: str = "") -> ModelVersion:
    return replace(
        a_version(version, finished=finished),
        strategy="fedbuff(buffer_size=1, discount=polynomial:0.5, optimizer=sgd(learning_rate=1))",
        contributors={"worker-0": Contributor(74, 740, 37, 74.0, 1, last_update_at=97.0)},
        evaluation=an_evaluation(version - 1, {"accuracy": accuracy, "loss": 0.2}),
        best=an_evaluation(20, {"accuracy": 0.9583}),
        best_by="accuracy:max",
        target_held=2,
        elapsed_s=10.0,
    )


def a_busy_view() -> FederationView:
    """Return the view of somebody who hears what the parts say."""
    state = FederationState("digits", 90.0)
    state.look(QUEUES, 100.0)
    state.read(Version.of(a_training_version()))
    for name in ("aggregator-1", "aggregator-2"):
        told(state, Joined(), name=name)
    told(state, TookOver(1, 0), name="aggregator-1")
    told(state, Started(35), role="worker", name="worker-0")
    told(state, Progressed(3, 60), role="worker", name="worker-1")
    return state.view(1_000.0)


def drawn(picture: RenderableType, *, width: int = 80) -> list[str]:
    written = StringIO()
    Console(file=written, width=width).print(picture)
    return [line.rstrip() for line in written.getvalue().splitlines()]


def test_the_picture_shows_version_accuracy_rate_and_queues() -> None:
    text = "\n".join(drawn(render(a_view(a_training_version(), queues=QUEUES))))

    assert "version 36 (term 1) after 10 s, 4 parameters, 74 updates, 7.4 updates/s" in text
    assert "accuracy 0.9472 (version 35), best (highest) 0.9583 (version 20)" in text
    assert "target held 2x" in text
    assert "5 messages waiting, 3 refused messages kept, an aggregator is active" in text


def test_a_worker_that_sent_no_event_is_shown_with_the_age_of_its_last_update() -> None:
    header, row = drawn(workers_table(a_view(a_training_version(), queues=QUEUES)))

    assert header.split("  ") != row.split("  ")
    assert row.split() == ["worker-0", "3", "s", "ago", "74", "0.5", "██████████", "100%", "1"]


def test_the_states_of_parts_are_shown_even_before_a_workers_first_update() -> None:
    text = "\n".join(drawn(render(a_busy_view())))

    assert "worker-0  training  0 s ago         74" in text
    assert "worker-1  training  0 s ago          0" in text
    assert "aggregator-1 leading, aggregator-2 standing by" in text


def test_the_picture_fits_a_terminal_of_80_columns() -> None:
    lines = drawn(render(a_busy_view()), width=80)

    assert max(map(len, lines)) <= 80
    assert "…" not in "".join(lines)


def test_a_federation_without_a_version_is_drawn_and_says_so() -> None:
    text = "\n".join(drawn(render(a_view(queues=replace(QUEUES, aggregator_active=False)))))

    assert "no version yet" in text
    assert "no aggregator is active" in text


def test_a_version_that_nobody_has_evaluated_is_drawn_and_says_so() -> None:
    assert "no version is evaluated yet" in "\n".join(drawn(render(a_view(a_version(3)))))


def test_a_finished_federation_says_why() -> None:
    text = "\n".join(drawn(render(a_view(a_training_version(finished="accuracy>=0.95 held")))))

    assert "digits has finished: accuracy>=0.95 held" in text


def test_there_are_no_colour_codes_when_it_is_not_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    Console().print(render(a_busy_view()))

    assert "\x1b" not in capsys.readouterr().out


def test_the_evaluations_are_drawn_as_a_sparkline_and_each_counts_once() -> None:
    seen = ((21, 0.1), (22, 0.5), (22, 0.5), (23, 0.9))
    view = a_view(*(a_training_version(accuracy, version=version + 1) for version, accuracy in seen))

    values = [each.metrics["accuracy"] for each in view.evaluations]
    assert values == [0.9583, 0.1, 0.5, 0.9]
    assert sparkline(values) in drawn(render(view))


def test_each_worker_has_a_curve_of_its_training_loss() -> None:
    records = [
        replace(
            a_training_version(version=36 + sequence),
            folded=(Folded(UpdateId("worker-0", "r", sequence), 0, 0, 1.0, loss=loss),),
        )
        for sequence, loss in enumerate([0.9, 0.5, math.nan, 0.1])
    ]

    lines = drawn(render(a_view(*records)))

    assert ["worker-0", "█▅?▁", "0.1000"] in [line.split() for line in lines]


def test_findings_are_shown_with_what_to_do_and_a_worker_that_was_only_refused_is_listed() -> None:
    refused = Contributor(rejected=2, refusal="bad-layout: another model")
    version = a_training_version()
    version = replace(version, contributors={**version.contributors, "worker-9": refused})

    text = " ".join(" ".join(drawn(render(a_view(version)))).split())

    assert "All 2 messages of worker-9 were refused. The last reason is bad-layout: another model" in text
    assert "Nothing of worker-9 is in the model" in text
    assert "worker-9 only refused never 0" in text


def test_after_the_end_the_picture_says_nothing_of_waiting_updates_and_aggregators() -> None:
    text = "\n".join(drawn(render(a_view(a_training_version(finished="enough"), queues=QUEUES))))

    assert "waiting" not in text
    assert "an aggregator is active" not in text
    assert "3 refused messages are kept, and 5 that came after the end" in text


def test_a_single_message_is_counted_as_one() -> None:
    one = QueueStates(updates_waiting=1, aggregator_active=True, rejected_waiting=1)

    running = a_view(a_training_version(), queues=one)
    finished = a_view(a_training_version(finished="enough"), queues=one)

    assert "1 message waiting, 1 refused message kept" in "\n".join(drawn(render(running)))
    assert "1 refused message is kept" in "\n".join(drawn(render(finished)))


def test_a_metric_that_is_not_finite_is_shown_as_such() -> None:
    view = a_view(a_training_version(math.nan))

    text = " ".join(" ".join(drawn(render(view))).split())

    assert "accuracy NaN (version 35)" in text
    assert "accuracy of version 35 is NaN." in text
    assert "accuracy NaN (version 35)" in plain_line(view)


def test_a_sparkline_goes_from_the_lowest_to_the_highest_block_and_shows_the_last_values() -> None:
    assert sparkline([]) == ""
    assert sparkline([0.5, 0.5]) == "▁▁"
    assert sparkline([0.0, 0.5, 1.0]) == "▁▅█"
    assert len(sparkline(list(range(1000)))) == SPARKLINE_LENGTH


@pytest.mark.parametrize(
    ("share", "drawing"),
    [
        (0.0, "             0%"),
        (0.0125, "▏            1%"),
        (0.5, "█████       50%"),
        (1.0, "██████████ 100%"),
    ],
)
def test_a_share_is_a_bar_in_eighths_of_a_block_with_its_percentage(share: float, drawing: str) -> None:
    assert bar(share) == drawing


def test_the_metric_shown_is_the_wanted_one_else_accuracy_else_loss_else_any() -> None:
    assert metric_to_show({"loss": 1.0, "accuracy": 0.5, "mae": 3.0}, "mae") == "mae"
    assert metric_to_show({"loss": 1.0, "accuracy": 0.5}, "mae") == "accuracy"
    assert metric_to_show({"mae": 3.0, "loss": 1.0}) == "loss"
    assert metric_to_show({"mae": 3.0}) == "mae"
    assert metric_to_show({}) is None


def test_one_line_names_a_dozen_workers_of_a_large_fleet() -> None:
    fleet = {f"w{number:04}": Contributor(1, 10, 0, 1.0) for number in range(2_000)}

    line = plain_line(a_view(replace(a_version(1), contributors=fleet)))

    assert line.endswith("w0010 1 w0011 1 and 1988 more")


def test_one_line_says_how_far_a_federation_is() -> None:
    assert plain_line(a_view()) == "digits: no version yet"
    assert plain_line(a_view(a_training_version(finished="enough"), queues=QUEUES)) == (
        "digits: version 36, 74 updates, 7.4 updates/s, accuracy 0.9472 (version 35), worker-0 74, "
        "finished: enough"
    )


def test_one_line_says_what_secure_aggregation_waits_for() -> None:
    view = replace(a_view(a_training_version()), sum_waits="helpers: helper-2 or helper-3, for 20 s")

    assert plain_line(view).endswith(", waits: helpers: helper-2 or helper-3, for 20 s")


def test_an_evaluation_of_the_average_of_the_versions_says_so() -> None:
    view = a_view(replace(a_training_version(), average_decay=0.9))

    assert "accuracy 0.9472 (version 35, averaged), best (highest) 0.9583" in "\n".join(drawn(render(view)))
    assert "accuracy 0.9472 (version 35, averaged), " in plain_line(view)


def test_without_a_terminal_a_line_is_printed_only_when_it_differs_from_the_one_before() -> None:
    written = StringIO()
    views = [a_view(a_training_version(version=version)) for version in (36, 36, 37, 37, 36)]

    with Screen.on(Console(file=written)) as screen:
        for phase in ("loading", "loading"):
            screen.show(a_view(), phase)
        for view in views:
            screen.show_now(view)

    lines = written.getvalue().splitlines()
    assert [line.partition("updates")[0] for line in lines] == [
        "loading",
        *(f" 10.0 s  digits: version {version}, 74 " for version in (36, 37, 36)),
    ]


def test_the_share_of_the_model_is_drawn_once_a_worker_sends_a_part() -> None:
    whole = a_training_version()
    of_small = replace(whole, contributors={**whole.contributors, "small": Contributor(3, 10, share=0.135)})

    assert "share of model" not in "\n".join(drawn(render(a_view(whole))))
    text = "\n".join(drawn(render(a_view(of_small))))

    assert "share of model" in text
    assert "14 %" in text
    assert "100 %" in text


def test_a_table_of_workers_with_all_columns_fits_into_80_characters() -> None:
    name, folded = "long-tail-1", Folded(UpdateId("long-tail-1", "r", 1), 0, 0, 1.0, steps=620, batch_size=64)
    version = replace(
        a_version(1),
        plan=Plan(round_seconds=2.0),
        contributors={name: Contributor(1234, 10, 15_000, 1.0, share=0.135)},
        folded=(folded,),
    )
    view = replace(a_view(version), parts={f"worker {name}": "training"})

    lines = drawn(workers_table(view))

    assert "620 of 64" in lines[-1]
    assert "100 %" in lines[-1]
    assert max(map(len, lines)) <= 80


def test_where_workers_choose_their_minibatches_their_numbers_are_shown() -> None:
    folded = (
        Folded(UpdateId("fast", "r", 1), 0, 0, 1.0, train_s=2.0, steps=62, batch_size=64),
        Folded(UpdateId("own", "r", 1), 0, 0, 1.0, train_s=2.0, steps=4),
    )
    given = {name: Contributor(1, 10, 0, 1.0) for name in ("fast", "own")}
    chosen = replace(a_version(1), plan=Plan(round_seconds=2.0), contributors=given, folded=folded)

    lines = drawn(workers_table(a_view(chosen)))
    others = drawn(workers_table(a_view(replace(chosen, plan=Plan()))))

    assert "minibatches" in lines[0]
    assert " 62 of 64 " in lines[1]
    assert " 4 " in lines[2]
    assert "minibatches" not in others[0]
