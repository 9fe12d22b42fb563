"""Train an adapter on a frozen base: objectives, batches, retention, checkpoints and the gate."""
