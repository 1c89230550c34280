"""What runs inside a Python context."""
