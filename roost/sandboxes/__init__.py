"""Sandboxes: computers that somebody asked for, each an instance with a layer of its own."""
