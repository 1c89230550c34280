"""Runs code in contexts that keep their variables. See `server.Interpreter`.

A context is one process: a fork of the daemon (`processes`, `launch`), whose interpreter has the libraries imported
already, or a program of another language. The daemon writes cells to its socket and reads results from it (`frames`),
and its output from pipes (`kernel`); clients get all of it as lines of JSON (`sink`).
"""
