"""The audit log: who did what, in an order and with a content that nobody changes unseen."""
