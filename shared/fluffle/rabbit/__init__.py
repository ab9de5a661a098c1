"""The Broker on RabbitMQ: the only package that knows pika.

broker.py         RabbitBroker, which keeps the contract of fluffle.broker
connection.py     the thread that owns pika's connection
stream_reader.py  reads a stream on a channel of its own
faults.py         what pika raises, in Fluffle's words
"""

from fluffle.rabbit.broker import RabbitBroker

__all__ = ["RabbitBroker"]
