"""From records on disk to batches: records → conversation → token ids and label mask → batch."""
