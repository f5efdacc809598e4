"""Compiling for a GPU without one."""
