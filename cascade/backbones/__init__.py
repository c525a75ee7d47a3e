"""Networks and their inputs, known to no method in particular."""
