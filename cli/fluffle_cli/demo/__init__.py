"""`fluffle demo`: a whole federation on this machine, from the broker to the report of what it did."""
