"""What a person meets: commands, options, messages, exit codes. No decisions."""
