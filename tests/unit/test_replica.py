"""Which replica of a compose service a container is, by the names that Docker's DNS server gives."""

from __future__ import annotations

import pytest

from fluffle_worker.replica import number_in, replica_number


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("fluffle-worker-1.fluffle_federation.", 0),
        ("fluffle-worker-12.fluffle_federation.", 11),
        ("my-own-project-worker-3.net.", 2),
        ("fluffle-worker-0.net.", 0),
        ("5f0c6ae1d2b3.net.", 0),
        ("localhost.", 0),
        ("", 0),
    ],
)
def test_the_containers_name_says_which_replica_it_is(name: str, number: int) -> None:
    assert number_in(name) == number


def test_a_machine_without_dockers_dns_server_is_the_first_site() -> None:
    assert replica_number() == 0
