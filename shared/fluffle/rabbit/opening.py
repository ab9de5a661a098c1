"""Opening a connection to RabbitMQ: to one broker or any node of a cluster, in plain text or over TLS."""

import random

import pika
import pika.exceptions
import pika.spec

from fluffle.address import BrokerAddress
from fluffle.errors import BrokerError, ConnectionLost, LimitReached
from fluffle.rabbit.faults import PIKA_ERRORS, translate_refusal
from fluffle.rabbit.large_bodies import LargeBodyConnection, TolerantProperties
from fluffle.rabbit.tls_faults import tls_refusal


def open_connection(
    address: BrokerAddress, *, name: str, heartbeat_s: int, blocked_timeout_s: float
) -> tuple[pika.BlockingConnection, str]:
    """Try the hosts in random order; return a connection and where it leads. RabbitMQ's UI shows `name`.

    Raises LoginRefused when every host refuses this client; LimitReached or ConnectionLost when
    one of them may accept it later; ConfigError for files that cannot be used.
    """
    # For all connections of the process: pika has no other place for it.
    pika.spec.props[pika.BasicProperties.INDEX] = TolerantProperties
    user, password = address.login()
    context = None if address.tls is None else address.tls.context()
    refusals: list[BrokerError] = []
    for host, port in random.sample(address.hosts, len(address.hosts)):
        parameters = pika.ConnectionParameters(
            host=host,
            port=port,
            virtual_host=address.virtual_host,
            credentials=(
                pika.credentials.ExternalCredentials()
                if password is None
                else pika.PlainCredentials(user, password)
            ),
            heartbeat=heartbeat_s,
            blocked_connection_timeout=blocked_timeout_s,
            client_properties={"connection_name": name},
            ssl_options=None if context is None else pika.SSLOptions(context, host),
        )
        where = f"{host}:{port} (virtual host {address.virtual_host!r})"
        try:
            return pika.BlockingConnection(parameters, _impl_class=LargeBodyConnection), where
        except PIKA_ERRORS as error:
            refusal = tls_refusal(error, address.tls, host, port) or translate_refusal(
                error, where=where, user=user, has_password=password is not None
            )
            refusal.__cause__ = error
            refusals.append(refusal)
    if len(refusals) == 1:
        raise refusals[0]
    kinds = [type(refusal) for refusal in refusals]
    kind = next((each for each in (ConnectionLost, LimitReached) if each in kinds), kinds[0])
    all_of_them = "; ".join(map(str, refusals))
    raise kind(f"none of {len(refusals)} brokers accepts a connection: {all_of_them}") from refusals[0]
