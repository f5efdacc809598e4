"""What a policy did to a model, as data and as text."""
