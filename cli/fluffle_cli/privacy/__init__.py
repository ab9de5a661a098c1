"""`fluffle privacy`: the numbers of differential privacy before a federation begins, and its secret."""
