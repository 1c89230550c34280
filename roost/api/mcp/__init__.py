"""Sandboxes by the Model Context Protocol: each one a server of its own, and one server for all of them."""
