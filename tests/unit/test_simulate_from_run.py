"""`fluffle simulate --from-run`: the speeds and settings of a run, to ask what another setting would do."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from run_folders import a_run

from fluffle.errors import ConfigError
from fluffle.settings import load_arguments
from fluffle_cli.report.run import FederationRun, Run, read_run, write_summary
from fluffle_cli.simulate.from_run import speeds_of, with_those_of_its_run
from fluffle_cli.simulate.program import run
from fluffle_cli.simulate.settings import SimulateSettings

REAL = {
    "task": "numpy_task:task",
    "clients": 3,
    "buffer_size": 2,
    "local_epochs": 2,
    "device_seconds": "spread:0.5:4",
    "max_updates": 30,
    "seed": 3,
    "split": "iid",
    "target": "0.99",
}


def settings_of(**given: Any) -> SimulateSettings:
    return load_arguments(SimulateSettings, given)


@pytest.fixture
def real(tmp_path: Path) -> Path:
    """A run that a simulation has left, which has the files of a real one."""
    run(settings_of(**REAL, out=tmp_path / "real"))
    return tmp_path / "real"


def times_of(folder: Path) -> list[tuple[float, int]]:
    [federation] = read_run(folder).federations
    return [(each.committed_at, each.updates) for each in federation.versions]


def test_a_run_that_is_played_again_from_its_folder_takes_the_same_time(
    real: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(settings_of(from_run=real, out=tmp_path / "again"))

    again, before = times_of(tmp_path / "again"), times_of(real)
    assert [updates for _, updates in again] == [updates for _, updates in before]
    assert [at for at, _ in again] == pytest.approx([at for at, _ in before], rel=0, abs=1e-3)
    said = capsys.readouterr().out
    assert "local_epochs 2" in said
    assert "the speeds of its 3 workers" in said


def test_every_setting_that_the_run_had_is_taken_and_those_who_never_sent_are_counted(tmp_path: Path) -> None:
    given = {
        "task": "numpy_task:task",
        "clients": 4,
        "device_seconds": "spread:0.5:100",
        "strategy": "fedbuff",
        "buffer_size": 1,
        "max_staleness": 30,
        "average_versions": 0.9,
        "limit_norm": 50.0,
        "learning_rate_schedule": "step:100:0.5",
        "downlink_codec": "int8",
        "buffer_timeout": 7.0,
        "evaluate_every": 3,
        "held_seconds": 0.5,
        "target": "0.999",
        "local_validation": 0.2,
        "availability": "on-off:500:3",
        "bandwidth": 5.0,
        "late": "0.25:0.1",
        "max_seconds": 10,
    }
    run(settings_of(**given, out=tmp_path / "rich"))

    found, notes = with_those_of_its_run(settings_of(from_run=tmp_path / "rich"))

    taken = {name: getattr(found, name) for name in given}
    assert taken == given | {"clients": 2, "device_seconds": "spread", "target": "accuracy>=0.999"}
    assert notes[1] == "2 workers have no update in it: left out, since nothing says how fast they are"


def test_a_sweep_from_a_run_leaves_out_what_might_end_some_of_its_runs_sooner(real: Path) -> None:
    found, _ = with_those_of_its_run(settings_of(from_run=real, sweep="buffer_size=1,2", max_seconds=20))

    assert found.max_updates is None
    assert found.target == "accuracy>=0.99"


def test_the_folder_of_a_sweep_is_refused_with_one_of_its_runs(real: Path, tmp_path: Path) -> None:
    run_folder = tmp_path / "sweep" / "1-as,given" / "seed-0"
    run_folder.parent.mkdir(parents=True)
    real.rename(run_folder)

    with pytest.raises(ConfigError, match=r"the folder of a sweep: give one of its runs, such as .*seed-0"):
        with_those_of_its_run(settings_of(from_run=tmp_path / "sweep"))


def test_what_is_given_wins_over_what_the_run_says(real: Path) -> None:
    found, notes = with_those_of_its_run(
        settings_of(from_run=real, strategy="fedasync", clients=5, local_epochs=1)
    )

    assert (found.task, found.seed, found.split, found.max_updates) == ("numpy_task:task", 3, "iid", 30)
    assert (found.strategy, found.clients, found.local_epochs) == ("fedasync", 5, 1)
    assert found.target == "accuracy>=0.99"
    # Of another strategy, which does not have it.
    assert "buffer_size" not in found.model_fields_set
    assert "buffer_size" not in notes[0]
    # The fourth and the fifth device are as fast as the first and the second.
    population = found.make_population()
    assert len(set(population.example_s)) == 3
    assert population.example_s[3:] == population.example_s[:2]


def test_a_device_idles_as_in_the_demo_and_takes_the_rest_for_its_examples(real: Path) -> None:
    before = read_run(real)
    [federation] = before.federations
    delays = [0.4, 0.8, 1.6]
    slow = replace(before, about=replace(before.about, delays_s=delays))

    speeds = speeds_of(slow, federation)

    examples = [one.examples for _, one in sorted(federation.last.contributors.items())]
    assert [fixed_s for fixed_s, _ in speeds] == pytest.approx(delays)
    rounds = [fixed_s + 2 * size * each_s for (fixed_s, each_s), size in zip(speeds, examples, strict=True)]
    assert rounds == pytest.approx([0.5, 1.0, 2.0])


def test_a_folder_that_lacks_something_says_what(real: Path, tmp_path: Path) -> None:
    # As `fluffle report --from-broker` makes it.
    before = read_run(real)
    about = replace(before.about, seed=None, settings={"federation": "digits"}, target="")
    write_summary(Run(folder=real, about=about, federations=before.federations))

    found, notes = with_those_of_its_run(settings_of(from_run=real, max_updates=9))

    assert notes[1] == f"{real} does not say task, seed, split: this command's own are used"
    assert (found.clients, found.strategy, found.local_epochs) == (3, "reuse", 2)


def test_a_worker_without_an_update_is_left_out_and_that_is_said(real: Path) -> None:
    before = read_run(real)
    about = replace(before.about, delays_s=[0.4, 0.8, 1.6, 60.0])
    write_summary(Run(folder=real, about=about, federations=before.federations))

    found, notes = with_those_of_its_run(settings_of(from_run=real, max_updates=9))

    assert found.clients == 3
    assert "1 worker has no update in it: left out, since nothing says how fast they are" in notes


def test_a_run_that_does_not_say_how_long_its_rounds_took_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not say how long the rounds of site-1, site-2 took"):
        with_those_of_its_run(settings_of(from_run=a_run(tmp_path / "run")))


def test_a_run_without_an_update_is_refused(real: Path) -> None:
    before = read_run(real)
    [federation] = before.federations
    untrained = FederationRun(about=federation.about, versions=federation.versions[:1])

    with pytest.raises(ConfigError, match="has no update in it"):
        speeds_of(before, untrained)


def test_without_training_the_target_of_a_run_is_left_behind(real: Path) -> None:
    found, notes = with_those_of_its_run(settings_of(from_run=real, train=False, local_steps=4))

    found.check()
    assert found.target is None
    assert found.buffer_size == 2
    assert "target" not in notes[0]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"device_seconds": "constant:1"}, "--from-run and device_seconds both say how long rounds take"),
        ({"redraw": True}, "--from-run and redraw both"),
        ({"from_run": "runs/nowhere"}, r"has no summary\.json"),
    ],
)
def test_what_contradicts_a_run_and_a_folder_that_is_none_are_refused(
    real: Path, given: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        with_those_of_its_run(settings_of(**{"from_run": real} | given))
