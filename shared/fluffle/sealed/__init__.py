"""Sealed federations: updates and model are encrypted for all but workers and evaluators, who share a key."""
