"""Flags and the command line."""
