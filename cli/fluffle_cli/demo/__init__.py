"""`fluffle demo`: a whole federation on this machine, from the broker to the pictures of what it did."""

from fluffle.command_line import settings_command
from fluffle_cli.demo.program import run
from fluffle_cli.demo.settings import DemoSettings

command = settings_command(
    DemoSettings,
    run,
    about="Watch workers of very different speed train one model through a RabbitMQ of their own.\n\n"
    "Everything runs on this machine: a private broker, an aggregator and a standby, an evaluator, and the "
    "workers. At the end there are pictures, the final model and all logs in one folder. The exit code is 1 "
    "if the target was not reached.",
    # The demo has a broker and federations of its own, and its logs are files.
    without=(
        *("federation", "broker_url", "broker_password_file", "heartbeat_s", "connect_timeout_s"),
        *("broker_ca_file", "broker_cert_file", "broker_key_file", "log_format"),
    ),
)
