"""What an agent answers over HTTP: its health, its figures, and the contents of volumes."""
