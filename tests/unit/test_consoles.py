"""What is printed is what was given."""

import io

from fluffle.consoles import PlainConsole


def test_a_setting_with_colons_is_printed_as_it_is() -> None:
    written = io.StringIO()

    PlainConsole(file=written).print("cosine:100:0.05")

    assert written.getvalue() == "cosine:100:0.05\n"
