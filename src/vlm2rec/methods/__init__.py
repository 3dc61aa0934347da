"""Methods: what a run can be of."""
