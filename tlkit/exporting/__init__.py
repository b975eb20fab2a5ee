"""From a bundle to exported graphs, each checked before it is written."""
