"""How many, where, by when: answers from as near as can be trusted, and published events as they come."""
