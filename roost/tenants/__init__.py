"""Who may do what, and how much of it: keys, roles, quotas of accounts."""
