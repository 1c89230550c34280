"""Measurements of Roost beside its peers. Each module prints its own table: `python -m bench.<module>`."""
