"""The `fluffle` command."""
