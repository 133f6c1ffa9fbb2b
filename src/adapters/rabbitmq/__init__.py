"""The Broker on RabbitMQ: ``amqp://`` and ``amqps://``, on connections that are supervised here."""
