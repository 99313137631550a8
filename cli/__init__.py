"""What a person meets: commands, options, messages, exit codes. No decisions."""

INTERRUPTED = 130
"""As shells report a program that SIGINT ended. It stands here for `app`, which may import nothing else."""
