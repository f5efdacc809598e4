"""What every pass needs of a graph: edits, places, products, text."""
