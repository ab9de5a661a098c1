"""A message's bytes in several places: cut into frames as if they were in one."""

from hypothesis import given
from hypothesis import strategies as st

from fluffle.pieces import Pieces


@given(
    start=st.binary(max_size=40), rest=st.lists(st.binary(max_size=40), max_size=5), size=st.integers(1, 50)
)
def test_runs_are_of_one_size_and_hold_all_bytes_in_order(start: bytes, rest: list[bytes], size: int) -> None:
    whole = start + b"".join(rest)
    pieces = Pieces(start, tuple(map(memoryview, rest)))

    runs = [b"".join(run) for run in pieces.cut(size)]

    assert runs == [whole[start : start + size] for start in range(0, len(whole), size)]
    assert (len(pieces), bytes(pieces)) == (len(whole), whole)


def test_nothing_is_copied() -> None:
    large = bytearray(b"abcdef")

    runs = list(Pieces(b"x", (memoryview(large),)).cut(3))
    large[:] = b"ABCDEF"

    assert [b"".join(run) for run in runs] == [b"xAB", b"CDE", b"F"]
