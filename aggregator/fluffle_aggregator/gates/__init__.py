"""The checks that each update passes before it is folded, and the limits that an operator sets for them."""
