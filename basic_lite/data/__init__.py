"""From records on disk to batches: records → conversation → token ids and label mask → batch.

``records`` reads, ``chat`` tokenises, ``images`` decodes and fits, ``check`` looks at everything before
step 0, ``batches`` and ``sampler`` feed the trainer.
"""
