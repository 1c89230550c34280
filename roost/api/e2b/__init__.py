"""E2B's API, as its official clients speak it: a module per resource."""
