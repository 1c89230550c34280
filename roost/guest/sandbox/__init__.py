"""The daemon of a sandbox: what its clients reach of the room."""
