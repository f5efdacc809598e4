"""What a policy will cost on a device that need not be there."""
