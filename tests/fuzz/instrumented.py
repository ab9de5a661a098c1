"""One target under atheris, in a process of its own: python -m fuzz.instrumented TARGET OPTIONS."""

import importlib
import logging
import sys

import atheris


def main() -> None:
    """Fuzz one target until libFuzzer's options say that it is enough, or something breaks."""
    name, *options = sys.argv[1:]
    logging.disable()
    with atheris.instrument_imports(include=["fluffle", "fluffle_aggregator", "fluffle_helper"]):
        targets = importlib.import_module("fuzz.targets")
    atheris.Setup([name, *options], targets.TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
