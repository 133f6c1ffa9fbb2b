"""What is over: holds that run out, records whose time has passed."""
