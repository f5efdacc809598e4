"""From semantic ops to what the target computes."""
