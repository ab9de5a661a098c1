"""What an evaluator writes for TensorBoard, read back by TensorBoard's own reader."""

from dataclasses import replace
from pathlib import Path

import pytest
from builders import a_version, an_evaluation
from event_files import events_in, points_in

from fluffle.errors import ConfigError
from fluffle.record import Contributor, Folded, ModelVersion
from fluffle.update import UpdateId
from fluffle_worker.curves import MAX_WORKERS, Curves


def a_busy_version(number: int, *, fast: int, slow: int) -> ModelVersion:
    """Return a version after so many updates of two workers; each slow one is 4 versions late."""
    return replace(
        a_version(number),
        contributors={
            "fast": Contributor(fast, 10 * fast, 0, 1.0 * fast),
            "slow": Contributor(slow, 10 * slow, 4 * slow, 0.5 * slow, 1),
        },
        folded=tuple(Folded(UpdateId("slow", "r1", sequence), 0, 4, 0.5) for sequence in range(1, slow + 1)),
        norms=(1.0, 2.0, 4.0),
        committed_at=1_700_000_000.0 + number,
        elapsed_s=2.0 * number,
    )


def test_tensorboard_reads_metrics_staleness_and_weights_of_each_evaluated_version(tmp_path: Path) -> None:
    curves = Curves(tmp_path)
    curves.note(a_busy_version(3, fast=4, slow=1), an_evaluation(3, {"accuracy": 0.5}))
    curves.note(a_busy_version(300, fast=5, slow=2), an_evaluation(300, {"accuracy": 0.75}))
    curves.close()

    found = points_in(tmp_path)

    assert found["metrics/accuracy"] == [(3, 0.5), (300, 0.75)]
    assert found["federation/updates"] == [(3, 5.0), (300, 7.0)]
    assert found["staleness/mean since the last evaluation"] == [(3, pytest.approx(0.8)), (300, 2.0)]
    assert found["staleness/of this version"] == [(3, 1.0), (300, 2.0)]
    assert found["norms/of the last updates"] == [(3, 3.0), (300, 3.0)]
    slow = points_in(tmp_path / "workers" / "slow")
    assert slow["worker/mean staleness"] == [(3, 4.0), (300, 4.0)]
    assert points_in(tmp_path / "workers" / "fast")["worker/updates"] == [(3, 4.0), (300, 5.0)]


def test_a_histogram_keeps_where_its_values_lie(tmp_path: Path) -> None:
    curves = Curves(tmp_path)
    curves.note(a_busy_version(1, fast=1, slow=1), an_evaluation(1))
    curves.close()

    [event] = events_in(tmp_path).Histograms("norms/of the last updates")

    value = event.histogram_value
    assert (value.min, value.max, value.sum, value.sum_squares) == (1.0, 4.0, 7.0, 21.0)
    assert sum(value.bucket) == 3.0
    assert value.bucket_limit[-1] == 4.0


def test_a_histogram_of_equal_values_is_one_bin_at_their_place(tmp_path: Path) -> None:
    curves = Curves(tmp_path)
    curves.note(a_busy_version(1, fast=1, slow=3), an_evaluation(1))
    curves.close()

    [event] = events_in(tmp_path).Histograms("staleness/of this version")

    assert (event.histogram_value.bucket_limit, event.histogram_value.bucket) == ([4.0, 4.0], [0.0, 3.0])


def test_what_float32_does_not_hold_is_left_out_and_nothing_else(tmp_path: Path) -> None:
    curves = Curves(tmp_path)
    metrics = {"nan": float("nan"), "huge": 1e300, "accuracy": 0.5}
    curves.note(a_busy_version(1, fast=1, slow=0), an_evaluation(1, metrics))
    curves.close()

    metrics_tags = [tag for tag in points_in(tmp_path) if tag.startswith("metrics/")]

    assert metrics_tags == ["metrics/accuracy"]


def test_of_very_many_workers_some_have_curves_of_their_own(tmp_path: Path) -> None:
    everyone = {f"w{number:04d}": Contributor(1, 10, 0, 1.0) for number in range(200)}
    curves = Curves(tmp_path)
    curves.note(replace(a_version(1), contributors=everyone), an_evaluation(1))
    curves.close()

    assert len(list((tmp_path / "workers").iterdir())) == MAX_WORKERS


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")

    with pytest.raises(ConfigError, match=r"--tensorboard .* cannot be written: Not a directory"):
        Curves(tmp_path / "file" / "curves")
