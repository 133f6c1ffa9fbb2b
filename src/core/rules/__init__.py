"""What stock does when it is told to: pure functions over a book of locked stock. Below the ports, beside the facts."""
