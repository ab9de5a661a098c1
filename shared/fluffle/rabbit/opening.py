"""Opening a connection to RabbitMQ: to one broker or any node of a cluster, in plain text or over TLS."""

import random
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import TypeVar

import pika
import pika.exceptions
import pika.spec

from fluffle.address import BrokerAddress
from fluffle.errors import BrokerError, ConnectionLost, LimitReached, LoginRefused
from fluffle.rabbit.faults import PIKA_ERRORS, translate_refusal, was_login_refused
from fluffle.rabbit.large_bodies import LargeBodyConnection
from fluffle.rabbit.tls_faults import tls_refusal

Opened = TypeVar("Opened")

LOOK_EVERY_S = 0.2


def unless_stopped(opens: Callable[[], Opened], stop: threading.Event) -> Opened:
    """Return the result of `opens`, which takes long when nothing answers.

    Raises ConnectionLost soon after `stop` is set; `opens` then goes on in a daemon thread.
    """
    future: Future[Opened] = Future()

    def run() -> None:
        try:
            future.set_result(opens())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="opening", daemon=True).start()
    while True:
        with suppress(TimeoutError):
            return future.result(timeout=LOOK_EVERY_S)
        if stop.is_set() and not future.done():
            raise ConnectionLost("RabbitMQ had not answered when this process was asked to stop")


def open_connection(
    address: BrokerAddress, *, name: str, heartbeat_s: int, blocked_timeout_s: float
) -> tuple[pika.BlockingConnection, str]:
    """Try the hosts in random order; return a connection and where it leads. RabbitMQ's UI shows `name`.

    Raises LoginRefused when every host refuses this client; LimitReached or ConnectionLost when
    one of them may accept it later; ConfigError for files that cannot be used.
    """
    _tolerate_bad_properties()
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
            refusal = _translated(error, address, host, port, where)
            refusal.__cause__ = error
            refusals.append(refusal)
    if len(refusals) == 1:
        raise refusals[0]
    kinds = [type(refusal) for refusal in refusals]
    kind = next((each for each in (ConnectionLost, LimitReached) if each in kinds), kinds[0])
    all_of_them = "; ".join(map(str, refusals))
    raise kind(f"none of {len(refusals)} brokers accepts a connection: {all_of_them}") from refusals[0]


def _tolerate_bad_properties() -> None:
    """Make pika read properties that it cannot decode as empty ones, which have no verified sender.

    A sender can write properties that RabbitMQ passes on and that make pika raise: a timestamp beyond the
    year 9999, tables in tables. The connection would be lost, and after the redelivery the next one's, too.
    """
    pika.spec.props[pika.BasicProperties.INDEX] = _tolerant_properties


def _tolerant_properties() -> pika.BasicProperties:
    properties = pika.BasicProperties()
    decode = properties.decode

    def decode_or_empty(encoded: bytes, offset: int = 0) -> pika.BasicProperties:
        try:
            decode(encoded, offset)
        except Exception:  # struct, datetime, decimal and deep recursion raise many kinds
            for name in vars(pika.BasicProperties()):
                setattr(properties, name, None)
        return properties

    properties.decode = decode_or_empty
    return properties


def _translated(error: Exception, address: BrokerAddress, host: str, port: int, where: str) -> BrokerError:
    refusal = tls_refusal(error, address.tls, host, port)
    if refusal is not None:
        return refusal
    user, password = address.login()
    if was_login_refused(error) and password is None:
        return LoginRefused(
            f"RabbitMQ at {where} refused the login by certificate: it has no user {user!r} (any more), "
            "or takes another name from the certificate (ssl_cert_login_from)"
        )
    if isinstance(error, pika.exceptions.AuthenticationError):
        if password is None:
            return LoginRefused(
                f"RabbitMQ at {where} offers no login by certificate: it needs the plugin "
                "rabbitmq_auth_mechanism_ssl and auth_mechanisms.1 = EXTERNAL, or give a password"
            )
        return LoginRefused(
            f"RabbitMQ at {where} takes no passwords: for a login by certificate set broker_cert_file and "
            "broker_key_file, and no password"
        )
    return translate_refusal(error, where=where, user=user)
