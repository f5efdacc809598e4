"""Rewrites of the joint graph, forward and backward in one."""
