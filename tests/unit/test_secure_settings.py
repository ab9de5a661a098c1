"""The settings of secure aggregation: what fits is chosen, and what does not is refused with the numbers."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluffle.errors import ConfigError
from fluffle.secure.closing import MOST_UPDATES
from fluffle.secure.modulus import BITS
from fluffle.secure.weights import MOST_FACTOR
from fluffle_aggregator.secure.settings import SecureSettings, parse_clip
from fluffle_cli.demo.keys import Keys


def settings(**given: object) -> SecureSettings:
    return SecureSettings.model_validate({"secure_aggregation": True, **given})


@given(st.integers(3, 4096), st.sampled_from(BITS), st.booleans())
def test_what_is_chosen_never_overflows_however_many_updates_there_are(
    buffer_size: int, modulus: int, is_synchronous: bool
) -> None:
    # fedbiomed #1210: sums of ten sites and more overflowed, some of the time, and nobody was told before.
    chosen = settings(secure_modulus=modulus)
    if modulus == 16 and buffer_size > 258:
        with pytest.raises(ConfigError, match=r"2\*\*16: at most 258 updates of 8 bits fit"):
            chosen.make_secure_plan(1, buffer_size, is_synchronous=is_synchronous)
        return
    plan = chosen.make_secure_plan(1, buffer_size, is_synchronous=is_synchronous)
    assert 1 <= plan.greatest <= (1 if is_synchronous else MOST_FACTOR)
    assert buffer_size * plan.greatest * plan.fixed_point.levels < 2 ** (modulus - 1)


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "norm:0", "norm:-2", "norm:", "", "l2:3", "0.5:1"])
def test_a_clip_that_is_no_positive_number_is_refused_at_once(text: str) -> None:
    # flower #7633: a clipping range of 0 or less was found out deep inside the quantization, or never.
    with pytest.raises(ValueError, match=r"must be a number above 0 such as 0\.5"):
        parse_clip(text)


@pytest.mark.parametrize(("text", "expected"), [("0.5", (0.5, False)), ("norm:5", (5.0, True))])
def test_a_clip_is_of_each_element_or_of_the_norm(text: str, expected: tuple[float, bool]) -> None:
    assert parse_clip(text) == expected


def test_more_workers_than_a_buffer_has_updates_are_refused() -> None:
    with pytest.raises(ConfigError, match="secure_min_workers is 5, and a buffer has 4 updates"):
        settings(secure_min_workers=5).make_secure_plan(1, 4, is_synchronous=False)


def test_a_buffer_that_no_close_record_can_name_is_refused_with_the_largest() -> None:
    with pytest.raises(
        ConfigError, match="buffer_size is 4097, and with secure_aggregation it is at most 4096"
    ):
        settings().make_secure_plan(1, MOST_UPDATES + 1, is_synchronous=False)


@pytest.mark.parametrize(
    ("case", "warns"),
    [
        ((3, 4, False), False),
        ((3, 100, False), False),
        ((3, 3, True), False),
        ((3, 4, True), True),
        ((2, 5, False), True),
        ((5, 5, True), False),
    ],
)
def test_workers_that_never_fill_a_buffer_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, case: tuple[int, int, bool], warns: bool
) -> None:
    workers, buffer_size, is_synchronous = case
    keys = Keys(tmp_path)
    keys.make("digits", [f"w{number}" for number in range(workers)])
    chosen = settings(**keys.public, secure_min_workers=min(3, workers))

    assert chosen.registry_watch("digits", buffer_size, has_one_of_each=is_synchronous)

    assert ("never fill a buffer" in caplog.text) is warns


def test_bits_that_do_not_fit_are_refused_with_those_that_would() -> None:
    chosen = settings(secure_modulus=16, secure_bits=16)

    with pytest.raises(ConfigError, match=r"of 16 bits can overflow modulo 2\*\*16: at most 14 bits fit"):
        chosen.make_secure_plan(1, 4, is_synchronous=False)


def test_the_settings_have_an_effect_only_together() -> None:
    with pytest.raises(ValueError, match="secure_clip has no effect without secure_aggregation"):
        SecureSettings.model_validate({"secure_clip": "0.5"})
