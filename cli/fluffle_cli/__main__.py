"""`python -m fluffle_cli`, the same as `fluffle`."""

from fluffle_cli.start import run

if __name__ == "__main__":
    run()
