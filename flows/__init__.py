"""The flows of one machine, one a file, and what they share (`flows.support`)."""
