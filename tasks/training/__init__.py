"""How the mini models are made: scenes from the generator, objectives, and one module for each network."""
