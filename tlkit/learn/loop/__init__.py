"""The one loop over phases: how a head, or a head and the deepest stages of a trunk, learn by gradient."""
