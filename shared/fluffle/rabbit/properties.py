"""A message's AMQP properties are what its sender wrote, and pika reads them on the connection's thread.

Some that RabbitMQ passes on make pika raise (a timestamp beyond the year 9999, tables in tables): the
connection would be lost, the message delivered again to the next one, and so on until nobody leads.
"""

from __future__ import annotations

import pika
import pika.spec


def read_properties_cautiously() -> None:
    """Let pika take properties that it cannot read for empty ones: they have no verified sender either."""
    pika.spec.props[pika.BasicProperties.INDEX] = _cautious_properties


def _cautious_properties() -> pika.BasicProperties:
    properties = pika.BasicProperties()
    decode = properties.decode

    def decode_or_empty(encoded: bytes, offset: int = 0) -> pika.BasicProperties:
        try:
            decode(encoded, offset)
        except Exception:  # whatever struct, datetime, decimal and the stack's end have to say
            for name in vars(pika.BasicProperties()):
                setattr(properties, name, None)
        return properties

    properties.decode = decode_or_empty
    return properties
