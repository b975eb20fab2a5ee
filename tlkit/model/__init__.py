"""The network and the artefact."""
