"""The daemon of a sandbox: E2B's envd and the code interpreter, on the room's app.sock."""
