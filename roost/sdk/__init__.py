"""The command line, over HTTP only; it ships alone and knows nothing of the server's code."""
