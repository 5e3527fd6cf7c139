"""Image formats: their headers, and how images are made and changed."""
