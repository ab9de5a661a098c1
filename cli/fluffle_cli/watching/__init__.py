"""What is known of a federation from outside: one view for status, the page, the report and the demo.

version.py    one version: its record without the model
state.py      takes in records, events and looks at the queues, and yields views
view.py       the view: what is known at one moment
progress.py   whether the model still improves
findings.py   what is wrong, and what to do about it
as_json.py    the view for programs
terminal.py   the view for people, on a terminal
watcher.py    reads records, events and queues from RabbitMQ into a state
"""
