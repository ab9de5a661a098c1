"""The setting of the size of minibatches. Pure."""

from typing import Final

FIRST_BATCH_SIZE: Final = 32


def parse_batch_size(text: str) -> tuple[int, bool]:
    """Return the first size of minibatches, and whether workers look for a better one: "64" or "auto:64".

    Raises ValueError, which says what is expected.
    """
    word, _, first = text.partition(":")
    is_auto = word == "auto"
    number = (first or str(FIRST_BATCH_SIZE)) if is_auto and text != "auto:" else text
    if not (number.isascii() and number.isdecimal() and int(number) > 0):
        raise ValueError(f"must be a number of examples from 1 up, or auto or auto:FIRST, not {text!r}")
    return int(number), is_auto
