"""The plugin contract, and how plugins are found, validated and registered."""
