"""How far does it reach? One module for each method."""
