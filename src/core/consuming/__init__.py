"""Product events in, by queue or HTTP; what fails is kept, tried again, and mended by people."""
