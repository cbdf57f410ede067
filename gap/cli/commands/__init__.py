"""The verbs, one file each.

At its top a verb's file imports only what its help needs, and nothing of that imports torch. What does the work is
imported inside the function that does it: torch and its company take seconds, and help and completion take none.
"""
