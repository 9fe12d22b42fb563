"""A frozen base and checked sentences in, an adapter that passed the gate out."""
