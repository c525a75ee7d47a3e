"""From a map of what is wrong to prompts for SAM."""
