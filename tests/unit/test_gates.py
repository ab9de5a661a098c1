"""Whether an update is let in: every reason to refuse it, its boundary, and which reason comes first."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from builders import SIZE, a_layout, a_model, a_strategy, a_version, an_update, float32s, refusal

from fluffle.model import Layout, TensorSpec
from fluffle.update import WeightUpdate
from fluffle_aggregator.gates.gate import Refusal
from fluffle_aggregator.gates.limits import Limits
from fluffle_aggregator.global_model import GlobalModel

NAN, INFINITY = float("nan"), float("inf")


def at_version(version: int, *, strategy: str = "fedbuff") -> GlobalModel:
    return a_model(a_strategy(strategy), record=a_version(version))


def reason_of(refused: Refusal | None) -> str | None:
    return refused.reason if refused else None


def test_a_sound_update_is_let_in() -> None:
    assert refusal(an_update(), a_model()) is None


@pytest.mark.parametrize(
    ("update", "reason", "says"),
    [
        (an_update(federation="other"), "wrong-federation", "for 'other', this is 'digits'"),
        (an_update(layout=a_layout(5), values=[1] * 5), "wrong-layout", "run different models"),
        (
            an_update(values=[1] * 3),
            "wrong-layout",
            "3 trained values, 0 statistics and 0 bytes of integers; the model has 4, 0 and 0",
        ),
        (an_update(values=[1] * 5), "wrong-layout", "5 trained values"),
        (an_update(values=[]), "wrong-layout", "0 trained values"),
        (an_update(integers=b"\0"), "wrong-layout", "1 bytes of integers"),
        (an_update(sends="weights"), "wrong-content", "carries weights, but fedbuff needs delta"),
        (an_update(values=[0, 0, 0, NAN]), "not-finite", "NaN or infinite values, in dense/kernel"),
        (an_update(values=[INFINITY, 0, 0, 0]), "not-finite", "NaN or infinite values, in dense/kernel"),
        (
            an_update(values=[0, -INFINITY, 0, 0]),
            "not-finite",
            "NaN or infinite values, in dense/kernel",
        ),
        (an_update(examples=0), "bad-examples", "claims 0 examples; expected 1 to 1000000000"),
        (an_update(examples=-1), "bad-examples", "claims -1 examples"),
        (
            an_update(base_term=1, base_version=1),
            "future-version",
            "started from version 1, but the newest is 0",
        ),
    ],
)
def test_an_update_that_does_not_fit_is_refused_with_its_reason(
    update: WeightUpdate, reason: str, says: str
) -> None:
    refused = refusal(update, a_model())

    assert refused is not None
    assert refused.reason == reason
    assert says in refused.detail


@pytest.mark.parametrize(
    ("examples", "reason"),
    [(0, "bad-examples"), (1, None), (100, None), (101, "bad-examples")],
)
def test_examples_are_counted_from_one_to_the_limit(examples: int, reason: str | None) -> None:
    limits = Limits(limit_examples=100)

    assert reason_of(refusal(an_update(examples=examples), a_model(), limits)) == reason


@pytest.mark.parametrize(
    ("base_version", "reason"),
    [
        (11, "future-version"),
        (10, None),
        (7, None),
        (6, "too-stale"),
        (0, "too-stale"),
    ],
)
def test_staleness_is_allowed_up_to_the_limit(base_version: int, reason: str | None) -> None:
    update = an_update(base_term=1, base_version=base_version)

    assert reason_of(refusal(update, at_version(10), Limits(max_staleness=3))) == reason


def test_a_limit_of_zero_lets_in_fresh_updates_only_and_no_limit_lets_in_any() -> None:
    model = at_version(1_000_000)

    assert reason_of(refusal(an_update(), model, Limits(max_staleness=0))) == "too-stale"
    assert refusal(an_update(base_term=1, base_version=1_000_000), model, Limits(max_staleness=0)) is None
    assert refusal(an_update(), model, Limits(max_staleness=None)) is None


@pytest.mark.parametrize("place", [0, 65_535, 65_536, 99_999])
def test_one_nan_is_found_wherever_it_stands(place: int) -> None:
    layout = a_layout(100_000)
    vector = np.zeros(100_000, np.float32)
    vector[place] = NAN
    update = replace(an_update(layout=layout), vector=float32s(vector))
    model = a_model(record=a_version(layout=layout, values=[0] * 100_000))

    assert reason_of(refusal(update, model)) == "not-finite"


def test_what_is_folded_is_a_duplicate_and_so_it_stays_many_versions_later() -> None:
    model = a_model(a_strategy(buffer_size=1))
    again = an_update("w1", 1)

    model.fold(again, now=0.0)
    at_once = refusal(again, model)
    for sequence in range(2, 50):
        model.fold(an_update("w2", sequence, base_term=1, base_version=model.version), now=0.0)
    much_later = refusal(again, model)

    assert at_once == much_later == Refusal("duplicate", "the model contains update w1/r1/1 already")


def test_an_id_counts_as_folded_whatever_else_the_message_says() -> None:
    model = a_model()
    model.fold(an_update("w1", 1), now=0.0)

    assert reason_of(refusal(an_update("w1", 1, values=[9] * SIZE), model)) == "duplicate"
    assert refusal(an_update("w1", 2), model) is None
    assert refusal(an_update("w1", 1, run="r2"), model) is None


def test_in_a_synchronous_round_each_worker_counts_once_and_only_fresh_updates_do() -> None:
    model = at_version(3, strategy="fedavg")
    model.fold(an_update("w1", 1, base_term=1, base_version=3), now=0.0)

    assert reason_of(refusal(an_update("w1", 2, base_term=1, base_version=3), model)) == "second-in-round"
    assert reason_of(refusal(an_update("w2", 1, base_term=1, base_version=2), model)) == "too-stale"
    assert refusal(an_update("w2", 2, base_term=1, base_version=3), model) is None


def test_a_new_round_takes_every_worker_again() -> None:
    model = a_model(a_strategy("fedavg", buffer_size=1))

    model.fold(an_update("w1", 1), now=0.0)

    assert refusal(an_update("w1", 2, base_term=1, base_version=1), model) is None


def test_in_asynchronous_strategies_a_worker_may_give_many_updates_to_one_version() -> None:
    model = a_model(a_strategy(buffer_size=3))

    model.fold(an_update("w1", 1), now=0.0)

    assert refusal(an_update("w1", 2), model) is None


def test_after_the_end_everything_is_refused_as_finished() -> None:
    model = a_model()
    model.finish("0.95 held")

    refused = refusal(an_update(federation="other"), model)

    assert refused == Refusal("finished", "the federation has finished: 0.95 held")


def test_the_reason_that_says_most_comes_first() -> None:
    """An update with every fault at once, whose faults are mended one after the other."""
    model = at_version(10)
    model.fold(an_update("w1", 1, base_term=1, base_version=10), now=0.0)
    worst = replace(
        an_update(
            "w1",
            1,
            federation="other",
            base_term=1,
            base_version=0,
            sends="weights",
            examples=0,
            values=[NAN] * SIZE,
        ),
        layout_digest="another",
    )
    steps: list[tuple[Callable[[WeightUpdate], WeightUpdate], str]] = [
        (lambda update: replace(update, federation="digits"), "wrong-federation"),
        (lambda update: replace(update, layout_digest=a_layout().digest), "wrong-layout"),
        (lambda update: replace(update, sends="delta"), "wrong-content"),
        (lambda update: replace(update, id=replace(update.id, sequence=2)), "duplicate"),
        (lambda update: replace(update, base_version=10), "too-stale"),
        (lambda update: replace(update, examples=1), "bad-examples"),
        (lambda update: replace(update, vector=an_update().vector), "not-finite"),
    ]

    found = []
    for mend, _ in steps:
        found.append(reason_of(refusal(worst, model, Limits(max_staleness=3))))
        worst = mend(worst)

    assert found == [reason for _, reason in steps]
    assert refusal(worst, model, Limits(max_staleness=3)) is None


def test_a_layout_of_the_same_size_but_other_names_is_refused() -> None:
    renamed = Layout((TensorSpec("dense_1/kernel", (SIZE,), "float32"),))

    assert reason_of(refusal(an_update(layout=renamed), a_model())) == "wrong-layout"
