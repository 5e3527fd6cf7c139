"""Access to the host: commands, files, mounts, marks of ownership."""
