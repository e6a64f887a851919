"""Which candidate learns from which object."""
