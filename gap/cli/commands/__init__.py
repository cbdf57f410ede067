"""The commands, one file each.

At the top, the file of a command imports only what its help needs, which does not include torch. Other modules are
imported inside the function of the command: importing torch takes seconds, and help and completion are to be fast.
"""
