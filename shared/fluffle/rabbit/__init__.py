"""The Broker on RabbitMQ: the only package that imports pika.

broker.py        RabbitBroker, which implements fluffle.broker.Broker
connection.py    the thread that owns pika's connection
large_bodies.py  pika's connection, changed so that large bodies are not copied
readers.py       reads streams, and listens to exchanges
faults.py        pika's exceptions as Fluffle's errors
"""

from fluffle.rabbit.broker import RabbitBroker

__all__ = ["RabbitBroker"]
