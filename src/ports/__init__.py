"""What the service needs from outside, as Protocols: one module per outside thing."""
