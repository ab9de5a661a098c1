"""Opening a connection to RabbitMQ: to one broker or any node of a cluster, in plain text or over TLS."""

from __future__ import annotations

import random

import pika
import pika.exceptions

from fluffle.address import BrokerAddress
from fluffle.errors import AccessRefused, BrokerError, ConnectionLost
from fluffle.rabbit.faults import in_fluffles_words, root_cause, was_cut_off
from fluffle.rabbit.large_bodies import LargeBodyConnection
from fluffle.rabbit.tls_faults import tls_refusal


def open_connection(
    address: BrokerAddress, *, name: str, heartbeat_s: int, blocked_timeout_s: float
) -> tuple[pika.BlockingConnection, str]:
    """Connect to one of the hosts, tried in random order, and say which; `name` is what RabbitMQ's UI shows.

    When every host has a reason that lasts (TlsRefused, AccessRefused), it is raised; when one of them may
    yet come, ConnectionLost. Raises ConfigError for files that cannot be used.
    """
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
        except (pika.exceptions.AMQPError, OSError) as error:
            refusal = _in_words(error, address, host, port, where)
            refusal.__cause__ = error
            refusals.append(refusal)
    if len(refusals) == 1:
        raise refusals[0]
    may_come = any(isinstance(refusal, ConnectionLost) for refusal in refusals)
    kind = ConnectionLost if may_come else type(refusals[0])
    raise kind(f"none of {len(refusals)} brokers lets us in: {'; '.join(map(str, refusals))}") from refusals[
        0
    ]


def _in_words(error: Exception, address: BrokerAddress, host: str, port: int, where: str) -> BrokerError:
    refusal = tls_refusal(error, address.tls, host, port)
    if refusal is not None:
        return refusal
    user, password = address.login()
    if isinstance(error, pika.exceptions.ProbableAuthenticationError) and not was_cut_off(error):
        if password is None:
            return AccessRefused(
                f"RabbitMQ at {where} refused the login by certificate: it has no user {user!r} (any more), "
                "or takes another name from the certificate (ssl_cert_login_from)"
            )
        return AccessRefused(f"RabbitMQ at {where} refused the user {user!r} or its password")
    if isinstance(error, pika.exceptions.AuthenticationError):
        if password is None:
            return AccessRefused(
                f"RabbitMQ at {where} offers no login by certificate: it needs the plugin "
                "rabbitmq_auth_mechanism_ssl and auth_mechanisms.1 = EXTERNAL, or give a password"
            )
        return AccessRefused(
            f"RabbitMQ at {where} takes no passwords: for a login by certificate set broker_cert_file and "
            "broker_key_file, and no password"
        )
    reason = in_fluffles_words(error, where=where, user=user, what="")
    if isinstance(reason, ConnectionLost):
        return ConnectionLost(
            f"no RabbitMQ answers at {where}: start it, or correct FLUFFLE_BROKER_URL ({root_cause(error)})"
        )
    return reason
