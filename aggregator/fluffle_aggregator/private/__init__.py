"""Differential privacy in the aggregator: it clips updates, and adds noise to each sum of them."""
