"""The ready task `tabular`: a small network for the rows of a table, without any code of a user's."""
