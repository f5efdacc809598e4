"""Which products may be quantized to what: measured, chosen, written as a policy."""
