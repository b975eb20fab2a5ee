"""The network and the artifact."""
