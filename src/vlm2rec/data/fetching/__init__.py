"""Pictures from the web: many at once, politely, whole or not at all, and never one twice."""
