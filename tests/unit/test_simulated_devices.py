"""The devices of a simulation: their distributions, their traces, and when they are on."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluffle.errors import ConfigError
from fluffle.settings import load_arguments
from fluffle_cli.simulate.availability import Always, Availability, OnOff, Traced, uniform
from fluffle_cli.simulate.devices import DISTRIBUTIONS, DRAWN, seconds_of_devices, seconds_of_rounds
from fluffle_cli.simulate.settings import SimulateSettings
from fluffle_cli.simulate.traces import read_intervals, read_seconds


def a_file(folder: Path, *lines: str) -> Path:
    path = folder / "trace.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


@given(name=st.sampled_from(sorted(DISTRIBUTIONS)), count=st.integers(1, 50), seed=st.integers(0, 99))
def test_each_device_takes_a_finite_time_of_at_least_0(name: str, count: int, seed: int) -> None:
    seconds = seconds_of_devices(name, count, np.random.default_rng(seed))

    assert seconds.shape == (count,)
    assert np.all(np.isfinite(seconds))
    assert np.all(seconds >= 0)


def test_zipf_draws_k_with_a_probability_proportional_to_its_power() -> None:
    drawn = seconds_of_devices("zipf:2:1.5:4", 100_000, np.random.default_rng(0))

    values, counts = np.unique(drawn, return_counts=True)
    shares = np.arange(1, 5) ** -1.5
    assert values.tolist() == [2, 4, 6, 8]
    np.testing.assert_allclose(counts / drawn.size, shares / shares.sum(), atol=0.01)


def test_the_mean_of_half_normal_seconds_is_the_scale_times_the_root_of_2_over_pi_after_the_least() -> None:
    drawn = seconds_of_devices("half-normal:1.25:3", 100_000, np.random.default_rng(0))

    assert drawn.min() >= 3
    assert drawn.mean() == pytest.approx(3 + 1.25 * np.sqrt(2 / np.pi), abs=0.01)


@pytest.mark.parametrize("name", DRAWN)
def test_seconds_can_be_drawn_for_each_round(name: str) -> None:
    rounds = seconds_of_rounds(name, np.random.default_rng(0))

    drawn = [next(rounds) for _ in range(3000)]
    assert len(set(drawn)) > 10
    assert min(drawn) >= 0


def test_a_trace_gives_each_device_its_seconds_in_any_order_of_rows(tmp_path: Path) -> None:
    path = a_file(tmp_path, "\ufeffdevice, seconds_per_round, place", "1,2.5,b", "", "0, 1 ,a", "2,9,c")

    assert read_seconds(path, "seconds_per_round", 2) == [1.0, 2.5]


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (["device,seconds"], "line 1: the column seconds_per_round is missing; expected device, sec"),
        ([""], "line 1: the column device is missing; .* found nothing"),
        (
            ["device,seconds_per_round,seconds_per_round", "0,1,9"],
            "the column seconds_per_round stands there",
        ),
        (["device,seconds_per_round"], "has no row: expected one for each of 3 devices"),
        (["device,seconds_per_round", "0,1"], "rows for 1 devices, and 3 are to be simulated: .*--clients 1"),
        (["device,seconds_per_round", "0,1", "2,1"], "has no row for device 1, but one for device 2"),
        (
            ["device,seconds_per_round", "0,1", "1,-2"],
            "line 3: .* must be finite and at least 0, not -2",
        ),
        (["device,seconds_per_round", "0,nan"], "line 2: .* must be finite and at least 0, not nan"),
        (["device,seconds_per_round", "0,inf"], "line 2: .* must be finite and at least 0, not inf"),
        (["device,seconds_per_round", "0,"], "line 2: .* must be a number of seconds, and the cell is empty"),
        (["device,seconds_per_round", "0,soon"], "line 2: .* must be a number of seconds, not 'soon'"),
        (["device,seconds_per_round", "0,1", "0,2"], "line 3: device 0 stands on line 2 already"),
        (["device,seconds_per_round", "phone,1"], "line 2: device must be a whole number .*, not 'phone'"),
        (["device,seconds_per_round", "0"], "line 2: expected 2 cells, found 1"),
        (["device,seconds_per_round", '0,"1'], "line 2: this is no CSV"),
    ],
)
def test_a_trace_with_a_fault_is_refused_with_its_line(tmp_path: Path, lines: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        read_seconds(a_file(tmp_path, *lines), "seconds_per_round", 3)


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (["0,5,5"], "line 2: to_s must be later than from_s, 5, not 5"),
        (["0,-1,5"], "line 2: from_s must be finite and at least 0, not -1"),
        (["0,0,5", "0,8,9", "0,4,6"], "line 4: device 0 is on from 4 s, .* from 0 to 5 s: join the two rows"),
        (["1,0,5"], "has no row for device 0, but one for device 1"),
        # inference-sim/inference-sim#1405: a recorded trace has Unix times, and nothing happens for 54 years.
        (["0,1700000000,1700000600", "0,1700000900,1700003600"], "so subtract 1700000000 from each from_s"),
    ],
)
def test_a_trace_of_times_with_a_fault_is_refused(tmp_path: Path, rows: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        read_intervals(a_file(tmp_path, "device,from_s,to_s", *rows), 1)


def test_devices_may_be_off_for_longer_than_a_trace_lasts_before_they_are_first_on(tmp_path: Path) -> None:
    at_night = a_file(tmp_path, "device,from_s,to_s", "0,79200,108000")

    assert read_intervals(at_night, 1) == ([[(79200, 108000)]], 108000)


def test_a_trace_that_cannot_be_read_is_refused_with_the_cause(tmp_path: Path) -> None:
    (tmp_path / "binary.csv").write_bytes(b"device,seconds_per_round\n0,\xff\xfe\n")

    with pytest.raises(ConfigError, match=r"missing.csv cannot be read: No such file"):
        read_seconds(tmp_path / "missing.csv", "seconds_per_round", 1)
    with pytest.raises(ConfigError, match="no text in UTF-8"):
        read_seconds(tmp_path / "binary.csv", "seconds_per_round", 1)


def test_a_round_waits_while_its_device_is_off_and_the_trace_begins_again() -> None:
    # On from 2 to 4 and from 6 to 7, and so again from 12 and 16 on.
    traced = Traced([[(2.0, 4.0), (6.0, 7.0)]], loop_s=10.0)

    def after(at: float, seconds: float) -> float:
        return traced.after(0, at, seconds)

    assert [after(0, 0), after(3, 0), after(4, 0), after(8, 0)] == [2, 3, 6, 12]
    assert [after(0, 1), after(2, 2), after(3, 1.5), after(3, 2.5), after(0, 3)] == [3, 4, 6.5, 12.5, 7]
    assert after(3, 30) == 103
    assert after(6.5, 3.5) == 17


@given(
    at=st.floats(0, 50),
    first=st.floats(0, 50),
    second=st.floats(0, 50),
    gaps=st.lists(st.floats(0.1, 5), min_size=2, max_size=8).filter(lambda gaps: len(gaps) % 2 == 0),
)
def test_two_parts_of_a_round_end_when_the_whole_round_ends(
    at: float, first: float, second: float, gaps: list[float]
) -> None:
    ends = np.cumsum(gaps).tolist()
    traced = Traced([list(zip(ends[::2], ends[1::2], strict=True))], loop_s=ends[-1])

    in_parts = traced.after(0, traced.after(0, at, first), second)

    # At the end of an interval no time is left, and the next one may be far.
    whole = traced.after(0, at, first + second)
    assert in_parts == pytest.approx(whole) or second < 1e-9


def test_a_device_is_on_for_the_share_of_time_that_its_means_say() -> None:
    devices = 2000
    switching = OnOff(devices, 30.0, 10.0, seed=1)

    is_on = np.mean([switching.after(device, 0.0, 0.0) == 0.0 for device in range(devices)])
    took_s = np.array([switching.after(device, 0.0, 1000.0) for device in range(devices)])

    assert is_on == pytest.approx(0.75, abs=0.03)
    assert took_s.mean() == pytest.approx(1000 / 0.75, rel=0.01)


@pytest.mark.parametrize("availability", [Always(), OnOff(3, 5.0, 5.0, seed=0), Traced([[(1, 2)]] * 3, 4)])
def test_no_device_ends_a_round_sooner_than_it_takes(availability: Availability) -> None:
    at = 0.0
    for seconds in (0.0, 0.5, 3.0, 0.0, 40.0):
        end = availability.after(2, at, seconds)
        assert end >= at + seconds - 1e-9
        at = end


def test_chance_follows_from_its_arguments_alone_and_is_uniform() -> None:
    drawn = np.array([uniform(3, 1, device, number) for device in range(200) for number in range(100)])

    assert uniform(3, 1, 7, 5) == drawn[705]
    assert np.unique(drawn).size == drawn.size
    np.testing.assert_allclose(np.histogram(drawn, 10, (0, 1))[0] / drawn.size, 0.1, atol=0.01)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"device_seconds": "weibull"}, "must be one of constant"),
        ({"device_seconds": "constant:-1"}, "at least 0"),
        ({"device_seconds": "zipf:1:1:0"}, "most must be at least 1, not 0"),
        ({"device_seconds": "trace:"}, "must name the file of the trace"),
        ({"availability": "sometimes"}, "must be one of always, on-off"),
        ({"availability": "on-off:0:5"}, "on at least 0.001 s"),
        ({"availability": "on-off:1e-300:5"}, "on at least 0.001 s"),
        ({"crashes": 1}, "crashes must be less than 1"),
        ({"duplicates": 2}, "duplicates must be"),
        ({"late": "0.5"}, "must be SHARE:SECONDS, such as 0.25:60, not '0.5'"),
        ({"late": "2:60"}, "the share is from 0 to 1"),
        ({"clients": 0}, "clients must be"),
    ],
)
def test_a_wrong_setting_is_refused_with_what_is_possible(given: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load_arguments(SimulateSettings, {"federation": "digits", **given})


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"device_seconds": "constant:0"}, "device 0 takes 0 s"),
        ({"device_seconds": "lognormal:1:1000"}, "would never end: give smaller numbers"),
        ({"redraw": True}, "with --redraw, --device-seconds must be one of half-normal"),
        ({"availability": "trace:none.csv"}, "the trace none.csv cannot be read"),
    ],
)
def test_devices_that_cannot_be_played_are_refused(given: dict[str, object], says: str) -> None:
    settings = load_arguments(SimulateSettings, {"federation": "digits", **given})

    with pytest.raises(ConfigError, match=says):
        settings.make_population()
