"""What Roost tells about its work: logs, metrics, traces and usage. Imports the model and libraries alone."""
