"""The command line: one module a subject, each imported without anything heavy; docs/cli.md.

A command imports what it works with inside its function, so that ``--help`` and completion are at once.
"""
