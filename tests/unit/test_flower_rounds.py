"""What the benchmark beside Flower's SecAgg+ reads from the times that Flower's server tells."""

import pytest

from benchmarks.flower_rounds import round_of

# Three clients; the four stages begin at 1, 2, 3 and 8.
SAID = {
    "began": 0.5,
    "masked": [4.0, 6.5, 5.0],
    "asked": [1.0, 2.0, 3.0, 8.0],
    "replied": [1.5, 2.5, 7.0, 9.5],
    "ended": 10.0,
    "clients_sent_bytes": 30,
    "clients_received_bytes": 60,
    "error": 0.25,
}


def test_the_time_counts_from_the_last_clients_masked_vector_and_from_its_arrival() -> None:
    found = round_of(SAID, clients=3)

    assert (found.from_client_s, found.from_server_s) == (3.5, 3.0)
    assert (found.waited_s, found.whole_s) == (1.5, 9.5)


def test_bytes_are_those_of_one_client() -> None:
    found = round_of(SAID, clients=3)

    assert (found.client_sends_bytes, found.client_receives_bytes) == (10, 20)


@pytest.mark.parametrize("missing", [{"masked": [4.0, 6.5]}, {"replied": [1.5, 2.5]}])
def test_a_round_without_all_clients_and_stages_does_not_count(missing: dict[str, object]) -> None:
    with pytest.raises(RuntimeError, match="of 3 clients and"):
        round_of(SAID | missing, clients=3)
