"""What is known of a federation from outside: one view for status, the page, the report and the demo.

watcher.py reads RabbitMQ into a state; state.py makes a view of it; progress.py and findings.py judge the
view; as_json.py and terminal.py show it.
"""
