"""Pictures: where they come from, the packed store, and those that look alike or show nothing."""
