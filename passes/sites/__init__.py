"""Finding the products of a graph, and what is known of each."""
