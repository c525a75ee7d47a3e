"""Where is something wrong? One module for each method."""
