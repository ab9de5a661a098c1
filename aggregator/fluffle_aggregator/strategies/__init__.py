"""The strategies of aggregation; registry.py lists them."""
