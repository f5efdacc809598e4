"""Models: found, loaded, and with inputs to try them on."""
