"""Features of any number of images: jobs of shards that can be resumed, and search over what they wrote."""
