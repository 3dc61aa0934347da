"""Sequential models over a catalogue (Task 2): what they are started from, the models, and how they are fitted."""
