"""What a person meets: commands, options, messages, exit codes. No decisions."""

CUT = 3
"""Something that was asked for is not there in full: an answer that had to match a grammar was cut off."""

INTERRUPTED = 130
"""As shells report a program that SIGINT ended. It stands here for `app`, which may import nothing else."""

process_ends = False
"""Whether the process ends with the command: what the kernel takes back need not be given back before."""

SIGNALLED = 128
"""With the number of a signal, the exit code of what it ended, as shells have it."""
