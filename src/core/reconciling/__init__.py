"""Whether the records agree, with each other and with the Product Service's, and what is done about it."""
