"""Secure aggregation at the leader: masked updates become a sum that the helpers open."""
