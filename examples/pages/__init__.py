"""What the examples found, in words and pictures: a module for each of them, which runs no model."""
