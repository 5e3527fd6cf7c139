"""Documents in and out: manifests in YAML or JSON, and libvirt's XML."""
