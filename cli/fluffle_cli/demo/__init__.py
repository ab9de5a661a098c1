"""`fluffle demo`: a whole federation on this machine, from the broker to the pictures of what it did."""
