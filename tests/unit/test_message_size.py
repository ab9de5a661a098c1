"""What a message too large is told: its size, the limit, the codecs that would fit, and what to set."""

from dataclasses import replace
from pathlib import Path

import pytest
from builders import a_layout, a_version
from fake_broker import FakeBroker
from sealing import a_sealed_plan
from working import TOPOLOGY, CountingTask, a_federation, sent_updates

from fluffle.compression import CODECS
from fluffle.errors import MessageTooLarge
from fluffle.message_size import (
    codecs_that_fit,
    require_moments_fit,
    require_planned_update_fits,
    require_update_fits,
    require_version_fits,
)
from fluffle.model import Layout
from fluffle.plan import Plan
from fluffle.secure.plan import SecurePlan
from fluffle.topology import MAX_MESSAGE_BYTES, MIB
from fluffle_worker.loop import Worker
from fluffle_worker.spool import Spool

FIVE_MILLION = a_layout(5_000_000)


def test_an_update_that_does_not_fit_is_told_its_size_the_limit_the_codecs_that_do_and_what_to_set() -> None:
    with pytest.raises(MessageTooLarge) as raised:
        require_update_fits(FIVE_MILLION, "float32", 16 * MIB)

    said = str(raised.value)
    assert "5,000,000 parameters in float32 takes 19.1 MiB, and one message has at most 16 MiB" in said
    assert "bfloat16 (9.6 MiB), int8 (4.8 MiB), topk (0.3 MiB)" in said
    assert "FLUFFLE_CODEC" in said
    assert "max_message_size = 536870912" in said
    assert "FLUFFLE_MAX_MESSAGE_MIB" in said
    assert raised.value.limit_bytes == 16 * MIB
    require_update_fits(FIVE_MILLION, "bfloat16", 16 * MIB)


def test_a_masked_update_that_does_not_fit_is_told_its_modulus_and_no_codec() -> None:
    plan = Plan(secure=SecurePlan(epoch=1, clip=1.0, modulus_bits=32))

    with pytest.raises(MessageTooLarge, match=r"modulo 2\*\*32, takes 19.1 MiB.*smaller modulus") as raised:
        require_planned_update_fits(FIVE_MILLION, plan, 16 * MIB)

    assert "FLUFFLE_CODEC" not in str(raised.value)
    require_planned_update_fits(FIVE_MILLION, plan, 20 * MIB)
    with pytest.raises(MessageTooLarge, match="in float32 takes"):
        require_planned_update_fits(FIVE_MILLION, Plan(), 16 * MIB)


def test_a_sealed_model_that_does_not_fit_is_told_the_sizes_of_version_and_update() -> None:
    sealed = a_sealed_plan()
    plan, layout = Plan(codec="sealed", sealed=sealed), a_layout(1_000_000)

    with pytest.raises(MessageTooLarge, match=r"an update takes 25.8 MiB\) takes 29.7 MiB"):
        require_planned_update_fits(layout, plan, 16 * MIB)
    require_planned_update_fits(layout, plan, 30 * MIB)
    head_alone = replace(plan, sealed=replace(sealed, only=("no such tensor",)))
    require_planned_update_fits(layout, head_alone, 16 * MIB)


def test_a_version_that_does_not_fit_is_told_that_no_codec_makes_it_smaller() -> None:
    with pytest.raises(MessageTooLarge, match=r"19.1 MiB.* at most 16 MiB") as raised:
        require_version_fits(FIVE_MILLION, 16 * MIB)

    assert "whatever the codec" in str(raised.value)
    require_version_fits(FIVE_MILLION, 20 * MIB)


def test_a_version_with_its_average_takes_twice_as_much_and_may_leave_it_out() -> None:
    with pytest.raises(MessageTooLarge, match=r"38.2 MiB.* at most 20 MiB.*FLUFFLE_AVERAGE_VERSIONS"):
        require_version_fits(FIVE_MILLION, 20 * MIB, is_averaged=True)

    require_version_fits(FIVE_MILLION, 40 * MIB, is_averaged=True)


def test_moments_that_do_not_fit_name_the_optimizers_that_have_fewer() -> None:
    with pytest.raises(MessageTooLarge, match=r"the moments of adam .*38.2 MiB.*momentum"):
        require_moments_fit(FIVE_MILLION, 2, "adam", 32 * MIB)

    require_moments_fit(FIVE_MILLION, 1, "momentum", 32 * MIB)


def test_what_rabbitmq_can_never_carry_needs_a_smaller_model() -> None:
    with pytest.raises(MessageTooLarge, match="all that RabbitMQ carries: use a smaller model"):
        require_version_fits(a_layout(MAX_MESSAGE_BYTES // 4 + 1), MAX_MESSAGE_BYTES)


def test_what_is_a_little_too_large_never_looks_as_if_it_fitted() -> None:
    with pytest.raises(MessageTooLarge, match=r"takes 1.1 MiB, and one message has at most 1 MiB"):
        require_version_fits(a_layout(MIB // 4 + 1), MIB)


def test_every_codec_fits_where_float32_does_and_none_where_nothing_does() -> None:
    assert set(codecs_that_fit(FIVE_MILLION, MAX_MESSAGE_BYTES)) == set(CODECS)
    with pytest.raises(MessageTooLarge, match="no codec makes it small enough"):
        require_update_fits(FIVE_MILLION, "topk", 1000)


def a_worker(task: CountingTask, folder: Path, *, max_message_bytes: int) -> Worker:
    return Worker(
        name="w1",
        task=task,
        topology=TOPOLOGY,
        spool=Spool(folder, worker="w1", max_bytes=MIB),
        max_message_bytes=max_message_bytes,
    )


def test_a_worker_does_not_train_what_it_could_not_send(tmp_path: Path) -> None:
    layout = Layout.of(CountingTask().initial_weights(0))
    server = a_federation(replace(a_version(values=[0.0] * 2, layout=layout), integers=bytes(8)))
    task = CountingTask()

    with pytest.raises(MessageTooLarge, match="2 parameters in float32"):
        a_worker(task, tmp_path, max_message_bytes=15).work(lambda: FakeBroker(server))

    assert task.started_from == []
    assert sent_updates(server) == []


def test_a_worker_whose_update_the_broker_does_not_take_says_which_codec_would_do_and_keeps_it(
    tmp_path: Path,
) -> None:
    layout = Layout.of(CountingTask().initial_weights(0))
    server = a_federation(replace(a_version(values=[0.0] * 2, layout=layout), integers=bytes(8)))
    server.max_message_bytes = 13

    with pytest.raises(MessageTooLarge, match=r"2 parameters in float32 .* set FLUFFLE_CODEC .* bfloat16"):
        a_worker(CountingTask(), tmp_path, max_message_bytes=MAX_MESSAGE_BYTES).work(
            lambda: FakeBroker(server)
        )

    assert Spool(tmp_path, worker="w1", max_bytes=MIB).waiting == 1
