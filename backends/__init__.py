"""What keeps storage on a host: specs, pool types, images and the host itself."""
