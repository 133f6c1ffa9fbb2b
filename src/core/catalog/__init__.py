"""What the Product Service is asked of its products, and how it is."""
