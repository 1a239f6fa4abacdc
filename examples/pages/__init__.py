"""What the examples found, in words and pictures: a module for each of them, which computes nothing."""
