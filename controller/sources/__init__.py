"""Where manifests come from: files and folders, a watched directory, a git repository."""
